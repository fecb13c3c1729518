"""A run over an archive with a folder that cannot be listed on some days, and over sources of which
nothing can be read.
"""

import os
import shutil

import pytest

from ray_app.cli.main import main
from ray_app.errors import ExitCode, Status
from ray_app.runs import RunDirectory, check_conservation
from ray_app.scoring.backlog import is_complete
from tests.make.runs import files_below
from tests.make.unprivileged import closed


@pytest.fixture
def photos(sample_archive, tmp_path):
    """Two pictures in folders of their own."""
    names = [name for name in files_below(sample_archive) if name.endswith(".jpg")][:2]
    for folder, name in zip(("locked", "open"), names, strict=True):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copy(name, tmp_path / "photos" / folder / "1.jpg")
    return tmp_path / "photos"


def statuses_of(rows):
    return {row["status"] for row in rows.values()}


def test_run_keeps_rows_of_a_folder_that_is_closed_later(photos, score, tmp_path, capsys):
    folder = str(photos / "locked")
    _, open_rows = score(photos)
    with closed(folder):
        capsys.readouterr()
        second, rows = score(photos)
        printed = capsys.readouterr().err
        assert f"1 folder cannot be listed, e.g. {folder}" in printed
        assert "--exclude '**/locked/**' leaves it out" in printed
        denied = rows.pop(folder)
        assert rows == open_rows
        assert (denied["status"], denied["member"]) == ("source_denied", None)
        assert denied["detail"] == "this folder cannot be listed: Permission denied"
        assert (second.exit_code, second.summary["session"]["rows"]) == (ExitCode.DONE, 1)
        assert second.summary["statuses"] == {"ok": 2, "source_denied": 1}
        run = RunDirectory.open(second.summary["run"])
        assert is_complete(run)
        assert score(photos)[0].summary["session"]["rows"] == 0
        score(photos, rescore=("source_denied",))
        assert "not retried: 1 that were refused" in capsys.readouterr().err
    third, rows = score(photos)
    assert rows == open_rows
    assert (third.summary["session"]["rows"], third.summary["statuses"]) == (0, {"ok": 2})
    with closed(folder):
        fourth, rows = score(photos)
    assert set(rows) == {*open_rows, folder}
    assert fourth.summary["session"]["rows"] == 0
    assert check_conservation(run) == 3
    assert main(["results", str(tmp_path / "run"), "--status", "source_denied", "--json"]) == 0
    assert folder in capsys.readouterr().out


@pytest.mark.parametrize("retry", [False, True], ids=["listed again", "retried"])
def test_folder_that_can_be_entered_again_is_scored(photos, score, retry):
    with closed(photos / "locked", mode=0o444):
        _, rows = score(photos)
    found = {os.path.relpath(uri, photos): row["status"] for uri, row in rows.items()}
    assert found == {"locked/1.jpg": "source_denied", "open/1.jpg": "ok"}
    denied = rows[str(photos / "locked/1.jpg")]["image_id"]
    finished, rows = score(photos, **({"rescore": ("source_denied",)} if retry else {}))
    assert finished.exit_code is ExitCode.DONE
    assert statuses_of(rows) == {"ok"}
    assert (denied in [row["image_id"] for row in rows.values()]) == retry


def test_list_of_missing_files_has_an_exit_code(score, tmp_path):
    (tmp_path / "list.csv").write_text("path\nnowhere/1.jpg\nnowhere/2.jpg\n")
    for limit, code in ((None, ExitCode.TOO_MANY_BAD), (1.0, ExitCode.DONE)):
        finished, rows = score(tmp_path / "list.csv", max_bad_fraction=limit)
        assert statuses_of(rows) == {Status.SOURCE_MISSING}
        assert finished.exit_code is code


def test_closed_source_exits_with_5(photos, tmp_path, capsys):
    commands = (["score", "--out", str(tmp_path / "run")], ["plan", "--probe", "0"])
    with closed(photos):
        for command in commands:
            assert main([*command, str(photos), "--ensemble", "tiny"]) == ExitCode.CLUSTER
            assert f"cannot list {photos}: Permission denied" in capsys.readouterr().err


def test_plan_names_a_closed_folder_unless_excluded(photos, capsys):
    plan = ["plan", str(photos), "--ensemble", "tiny", "--probe", "0"]
    for options, times in (((), 1), (("--exclude", "locked/**"), 0)):
        with closed(photos / "locked"):
            assert main([*plan, *options]) == 0
        assert capsys.readouterr().err.count(f"cannot be listed, e.g. {photos}/locked") == times


def test_pack_lists_a_closed_folder_as_unpacked(photos, tmp_path, capsys):
    with closed(photos / "locked"):
        assert main(["data", "pack", str(photos), "--out", str(tmp_path / "packed")]) == 0
    printed = capsys.readouterr()
    assert "1 source_denied" in printed.out
    assert f"1 folder cannot be listed, e.g. {photos}/locked" in printed.err
    assert "to list again, pack into another --out" in printed.out
    assert "--retry" not in printed.out, "another attempt does not list the folder"
