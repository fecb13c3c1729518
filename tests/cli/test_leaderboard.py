import json

import pytest

from ray_app.cli.main import main
from tests.reports.evaluation_example import example_document, large_document


@pytest.fixture
def evaluations(tmp_path):
    for name, document in (("a", example_document()), ("b", large_document())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(document))
    return tmp_path


def test_folders_and_files_become_one_page(evaluations, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")  # narrower terminals break names
    out = evaluations / "pages" / "board.html"
    assert (
        main(["leaderboard", str(evaluations / "a"), str(evaluations / "b" / "metrics.json"), str(evaluations / "a"), "--out", str(out)])
        == 0
    )
    page = out.read_text(encoding="utf-8")
    assert "Stacked ensemble of four" in page
    assert "Detector 7" in page
    assert "<dt>Evaluations</dt><dd>2</dd>" in page  # the one that was named twice counts once
    printed = capsys.readouterr().out
    assert "Stacked ensemble of four" in printed
    assert printed.endswith(f"page: {out}\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no metrics.json there"),
        ("{", "not JSON"),
        ("[]", "not an evaluation's metrics.json"),
        ('{"rows": 3}', "not an evaluation's metrics.json"),
        ('{"systems": 3}', "not an evaluation's metrics.json"),
    ],
)
def test_what_is_no_evaluation_is_named(tmp_path, capsys, content, said):
    (tmp_path / "a").mkdir()
    if content is not None:
        (tmp_path / "a" / "metrics.json").write_text(content)
    assert main(["leaderboard", str(tmp_path / "a"), "--out", str(tmp_path / "x.html")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_the_page_wants_a_name(evaluations, capsys):
    assert main(["leaderboard", str(evaluations / "a"), "--out", str(evaluations)]) == 2
    assert "leaderboard.html" in capsys.readouterr().err
