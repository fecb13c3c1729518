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
from tests.scoring.conftest import files_below
from tests.unprivileged import closed


@pytest.fixture
def photos(sample_archive, tmp_path):
    """Two pictures in folders of their own."""
    names = [name for name in files_below(sample_archive) if name.endswith(".jpg")][:2]
    for folder, name in zip(("locked", "open"), names, strict=True):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copy(name, tmp_path / "photos" / folder / "1.jpg")
    return tmp_path / "photos"


def test_run_keeps_rows_of_a_folder_that_is_closed_later(photos, score, tmp_path, capsys):
    folder = str(photos / "locked")
    _, open_rows = score(photos)
    with closed(folder):
        capsys.readouterr()
        second, rows = score(photos)
        said = capsys.readouterr().err
        assert (
            f"listing: 1 folder cannot be listed, e.g. {folder}: its row shows the reason" in said
        )
        assert "--exclude '**/locked/**' leaves it out" in said
        assert {uri: row for uri, row in rows.items() if uri != folder} == open_rows
        assert (rows[folder]["status"], rows[folder]["member"]) == ("source_denied", None)
        assert rows[folder]["detail"] == "this folder cannot be listed: Permission denied"
        assert (second.exit_code, second.summary["session"]["rows"]) == (ExitCode.DONE, 1)
        assert second.summary["statuses"] == {"ok": 2, "source_denied": 1}
        run = RunDirectory.open(second.summary["run"])
        assert is_complete(run)
        assert score(photos)[0].summary["session"]["rows"] == 0
        score(photos, rescore=("source_denied",))
        assert (
            "not retried: 1 that were refused when the archive was listed"
            in capsys.readouterr().err
        )
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


def test_files_of_a_folder_that_cannot_be_entered_have_rows(photos, score):
    with closed(photos / "locked", mode=0o444):
        finished, rows = score(photos)
        assert {os.path.relpath(uri, photos): row["status"] for uri, row in rows.items()} == {
            "locked/1.jpg": "source_denied",
            "open/1.jpg": "ok",
        }
    denied = rows[str(photos / "locked/1.jpg")]["image_id"]
    finished, rows = score(photos)
    assert [row["status"] for row in rows.values()] == ["ok", "ok"]
    assert denied not in [row["image_id"] for row in rows.values()]
    assert finished.exit_code is ExitCode.DONE


def test_retry_reads_files_of_a_folder_that_can_be_entered_again(photos, score):
    with closed(photos / "locked", mode=0o444):
        score(photos)
    assert {row["status"] for row in score(photos, rescore=("source_denied",))[1].values()} == {
        "ok"
    }


@pytest.mark.parametrize("most", [None, 1.0])
def test_list_of_which_no_file_exists_is_an_exit_code_of_its_own(score, tmp_path, most):
    (tmp_path / "list.csv").write_text("path\nnowhere/1.jpg\nnowhere/2.jpg\n")
    for _ in range(2):
        finished, rows = score(tmp_path / "list.csv", max_bad_fraction=most)
        assert {row["status"] for row in rows.values()} == {Status.SOURCE_MISSING}
        assert finished.exit_code is (ExitCode.TOO_MANY_BAD if most is None else ExitCode.DONE)


def test_source_that_is_closed_itself_exits_with_5(photos, tmp_path, capsys):
    with closed(photos):
        assert (
            main(["score", str(photos), "--ensemble", "tiny", "--out", str(tmp_path / "run")])
            == ExitCode.CLUSTER
        )
        assert main(["plan", str(photos), "--ensemble", "tiny", "--probe", "0"]) == ExitCode.CLUSTER
    assert (
        capsys.readouterr().err.count(
            f"cannot list {photos}: Permission denied\n  → check the permissions of that path"
        )
        == 2
    )


def test_plan_names_a_closed_folder(photos, capsys):
    with closed(photos / "locked"):
        assert main(["plan", str(photos), "--ensemble", "tiny", "--probe", "0"]) == 0
        assert f"1 folder cannot be listed, e.g. {photos}/locked" in capsys.readouterr().err
        assert (
            main(
                [
                    "plan",
                    str(photos),
                    "--ensemble",
                    "tiny",
                    "--probe",
                    "0",
                    "--exclude",
                    "locked/**",
                ]
            )
            == 0
        )
        assert "cannot be listed" not in capsys.readouterr().err


def test_shards_list_a_closed_folder_as_unpacked(photos, tmp_path, capsys):
    with closed(photos / "locked"):
        assert main(["data", "pack", str(photos), "--out", str(tmp_path / "packed")]) == 0
    said = capsys.readouterr()
    assert "1 source_denied" in said.out
    assert f"1 folder cannot be listed, e.g. {photos}/locked" in said.err
    assert "1 folder could not be listed: to list again, pack into a new --out" in said.out
    assert "--retry" not in said.out, "another attempt does not list the folder"
