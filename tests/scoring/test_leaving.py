"""Nodes that are announced to go, and GPUs that have nothing left to do, on a cluster of three nodes."""

import pytest
import yaml

from benchmarks.seeded import seeded_card
from ray_app.datasets.simulation.archive import write_photographs
from ray_app.runs import RunDirectory
from tests.scoring.conftest import IMAGES, kill_family, rows_of, start, wait_until
from tests.scoring.nodes import Nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def nodes(request):
    running = Nodes(getattr(request, "param", 0))
    yield running
    kill_family(running.process)


def begin(source, out, nodes, *settings):
    process = start(str(source), str(out), "block_members=16", f"cluster.address={nodes.address}", *settings)
    run = RunDirectory.open(str(out))
    wait_until(lambda: run.parts(0) or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return run, process


def test_a_node_with_notice_takes_no_more_and_the_others_finish(many_photographs, nodes, tmp_path):
    run, process = begin(many_photographs, tmp_path / "run", nodes)
    nodes.tell("drain", min(nodes.raylets), 30)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert "1 node will be taken away" in errors
    rows = rows_of(tmp_path / "run")
    assert len(rows) == IMAGES
    assert run.read_json("summary.json")["session"]["rows"] == IMAGES, "something was scored twice"


def test_notice_to_the_driver_s_own_node_stops_the_run(many_photographs, nodes, tmp_path):
    run, process = begin(many_photographs, tmp_path / "run", nodes)
    nodes.tell("drain", nodes.head, 30)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 130, errors
    assert "this machine will be taken away" in errors
    assert errors.strip().splitlines()[-1].startswith("resume: touchstone score ")
    assert 0 < run.read_json("sessions/00001.json")["rows"] < IMAGES
    assert not run.store.exists("lease.json")


@pytest.mark.parametrize("nodes", [1], indirect=True)
def test_a_gpu_is_free_before_the_last_block_has_ended(nodes, tmp_path):
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(seeded_card("community-forensics-vits384", tmp_path).model_dump(mode="json", exclude_none=True)))
    write_photographs(tmp_path / "photos", 48, size=(320, 320))
    settings = [f"detectors=[{card}]", "device=cpu", "batch_slots=4", "cluster.workers=2"]
    run, process = begin(tmp_path / "photos", tmp_path / "run", nodes, *settings)
    blocks = run.read_json("manifest/0/_complete")["blocks"]

    def free_gpus():
        nodes.tell("free")
        return nodes.free_gpus

    assert free_gpus() == 1, "two of three GPUs are at work"
    wait_until(lambda: free_gpus() > 1 or process.poll() is not None)
    assert len(run.parts(0)) < blocks
    assert process.poll() is None
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
