import json

import pytest

from ray_app.cli.main import main
from ray_app.evaluation.assemble import write_result
from ray_app.storage import Store
from tests.make.evaluations import labelled, made_run, measured, random_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two evaluations of the same labels, `a` and `b`, and one of fewer, `other`."""
    folder = tmp_path_factory.mktemp("leaderboard")
    columns, truths, _ = random_rows(100)
    made_run(folder / "run", columns)
    for name, left_out in (("a", ()), ("b", ()), ("other", range(50))):
        labels = labelled(folder, columns, truths, left_out)
        write_result(measured(folder, labels=str(labels)), Store.open(str(folder / name)))
    return folder


def test_leaderboard_ranks_the_systems_of_evaluations(folder, capsys):
    places = [str(folder / "a"), str(folder / "b")]
    assert main(["runs", "leaderboard", *places, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 6
    values = [one["value"] for one in entries]
    assert values == sorted(values, reverse=True)
    assert {one["evaluation"] for one in entries} == set(places)
    assert main(["runs", "leaderboard", *places, "--figure", "eer", "--json"]) == 0
    values = [one["value"] for one in json.loads(capsys.readouterr().out)]
    assert values == sorted(values), "less is better"
    assert main(["runs", "leaderboard", *places]) == 0
    table = capsys.readouterr().out
    assert "ROC AUC" in table
    assert "not known" in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "other"], "do not have the same labelled images"),
        (["a", "nowhere"], "has no metrics.json"),
        (["a", "--figure", "aucc"], "did you mean 'auc'"),
    ],
)
def test_evaluations_that_do_not_compare_are_refused(folder, words, said, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["runs", "leaderboard", *words]) == 2
    assert said in capsys.readouterr().err


def test_leaderboard_of_undefined_metric_shows_reason(folder, capsys):
    places = [str(folder / "a"), str(folder / "b")]
    assert main(["runs", "leaderboard", *places, "--figure", "tpr_at_fpr_01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    reasons = [line for line in lines if line.startswith("–: ")]
    assert reasons
    assert all("needs 1,000 reals or more" in line for line in reasons)
    assert len(set(reasons)) == len(reasons)
