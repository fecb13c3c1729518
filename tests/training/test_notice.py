"""A machine that will be taken away: what was learned is saved before it goes. And images of which
too many cannot be read.
"""

import shutil
from pathlib import Path

import pytest

from tests.make.nodes import Nodes
from tests.make.waiting import kill_family, wait_until
from tests.training.trainings import committed, finish, lines, noted, start

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


def test_on_notice_it_saves_at_once_though_no_more_data_comes(labelled, tmp_path):
    nodes, out = Nodes(0), tmp_path / "out"
    try:
        settings = {
            "cluster": {"cpus": None, "address": nodes.address},
            "loop": {"epochs": 2000},
            "validation": {"every": 10**6},
        }
        process = start(labelled, tmp_path, out, **settings, faults={"checkpoint_every": 50})
        wait_until(lambda: committed(out) or process.poll() is not None, timeout_s=300)
        # Ray Data gives the loaders of such nodes no more work
        for node in [*nodes.raylets, nodes.head]:
            nodes.tell("drain", node, 600)
        wait_until(lambda: committed(out) % 50, timeout_s=120)
        kill_family(process)
    finally:
        kill_family(nodes.process)


def test_too_many_unreadable_images_end_it_with_the_reason(labelled, tmp_path):
    folder = shutil.copytree(labelled.parent, tmp_path / "labelled")
    for number in range(0, 80, 5):
        (folder / "real" / f"{number:03d}.png").write_bytes(b"no picture")
    code, told = finish(
        start(folder / "labels.csv", tmp_path, tmp_path / "out", loop={"epochs": 30})
    )
    assert code == 1, told
    assert "training images could not be read" in told
    assert "Traceback" not in told
    assert "for example " in told
    assert f"{folder}/real/" in told
    (chunk,) = noted(tmp_path / "out", "unreadable").values()
    assert all("image" in line["detail"] or "format" in line["detail"] for line in chunk)
    assert {line["uri"] for line in chunk} <= {
        f"{folder}/real/{number:03d}.png" for number in range(0, 80, 5)
    }


def test_unreadable_images_are_named_once_everywhere(labelled, tmp_path):
    folder, out = shutil.copytree(labelled.parent, tmp_path / "labelled"), tmp_path / "out"
    broken = {str(folder / "real" / f"{number:03d}.png") for number in (3, 40, 77)}
    for path in broken:
        Path(path).write_bytes(b"")
    code, told = finish(start(folder / "labels.csv", tmp_path, out, loop={"epochs": 4}))
    assert code == 0, told
    assert sorted(line["uri"] for line in lines(out, "unreadable.jsonl")) == sorted(broken)
    assert {line["detail"] for line in lines(out, "unreadable.jsonl")} == {"empty_file: 0 bytes"}
    report = (out / "report.html").read_text()
    for path in broken:
        assert sum(f"could not read {path}" in line for line in told.splitlines()) == 1
        assert Path(path).name in report
