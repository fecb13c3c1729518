import json

import pytest

from ray_app.cli.main import main
from ray_app.evaluation.evidence.record import digest, record_text
from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.evidence.conftest import photos, plain_run  # noqa: F401


@pytest.fixture
def record(plain_run, photos, tmp_path, capsys):  # noqa: F811
    assert main(["runs", "evidence", plain_run, str(photos / "photo-3.jpg"), "--out", str(tmp_path / "new" / "folder")]) == 0
    assert "photo-3.jpg: " in capsys.readouterr().out
    return tmp_path / "new" / "folder" / "evidence.json"


def test_a_record_is_written_and_verified(record, photos, capsys):  # noqa: F811
    assert "photo-3.jpg" in record.with_suffix(".html").read_text()
    assert main(["runs", "evidence", "--verify", str(record), "--image", str(photos / "photo-3.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "nothing differs"
    checked = [line for line in lines[:-1] if "not verified: " not in line]
    assert {line.split()[0] for line in checked} == {"agrees"}
    assert lines[:-1] != checked


def test_what_differs_is_said_by_the_exit_code_too(record, photos, capsys):  # noqa: F811
    assert main(["runs", "evidence", "--verify", str(record), "--image", str(photos / "photo-2.jpg")]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "differs: file"
    told = json.loads(record.read_text())
    told["record"]["decision"]["verdict"] = "fake"
    record.write_text(record_text(told | {"sha256": digest(told["record"])}))
    assert main(["runs", "evidence", "--verify", str(record), "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["agrees"] is False
    assert [check["name"] for check in answer["checks"] if check["outcome"] == "differs"] == ["sections"]


def test_a_negative_image_id_is_no_option(plain_run, tmp_path, capsys):  # noqa: F811
    number = min(row["image_id"] for row in current_rows(RunDirectory.open(plain_run)))
    assert number < 0
    assert main(["runs", "evidence", plain_run, str(number), "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["record"]["image"]["image_id"] == number


@pytest.mark.parametrize(
    "words",
    [["RUN"], ["RUN", "1"], ["RUN", "--what", "--out", "x"], ["--verify", "x", "RUN"], ["RUN", "1", "--out", "x", "--image", "y"],
     ["--verify", "/no/such/file"], ["RUN", "nothing.jpg", "--out", "x"]],
)  # fmt: skip
def test_wrong_usage_is_said(plain_run, words, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "evidence", *(plain_run if word == "RUN" else word for word in words)]) == 2
    assert capsys.readouterr().err.startswith("touchstone: ")
