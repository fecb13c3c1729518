"""A run that decides at an operating point of its ensemble."""

import json

import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError, IdentityError
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.identity import resolve
from ray_app.scoring.plan import plan_run
from tests.make.cards import write_points
from tests.make.page_reader import read
from tests.make.runs import begin, rows_of, score_here


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    return str(write_points(tmp_path_factory.mktemp("card") / "points.yaml"))


@pytest.fixture(scope="module")
def flagged(sample_archive, card, tmp_path_factory):
    """A run at the operating point that flags everything."""
    run = tmp_path_factory.mktemp("flagged") / "run"
    score_here(run, sample_archive, ensemble=card, fpr=0.1)
    return run


def resume(run, **settings):
    found = resolve(ScoreConfig(source=("/photos",), **settings), run)
    found.require_same(run)
    return found


def test_run_decides_at_the_point_and_says_so(flagged, capsys):
    assert {row["verdict"] for row in rows_of(flagged).values()} == {"fake", None}
    described = json.loads((flagged / "run.json").read_text())
    assert described["ensemble"]["thresholds"]["target_fpr"] == 0.1
    assert described["identity"]["decision"]["fpr"] == 0.1
    said = "With thresholds chosen for 10 % false positives, the ensemble points flags about 9 % of real images"
    assert said in read((flagged / "report.html").read_text()).text
    assert main(["results", str(flagged)]) == 0
    assert said in capsys.readouterr().out


def test_run_without_the_option_keeps_its_point(flagged, sample_archive, card):
    for settings in ({"ensemble": None}, {"ensemble": card}, {"ensemble": card, "fpr": 0.1}):
        finished, _ = score_here(flagged, sample_archive, **settings)
        assert finished.summary["session"]["rows"] == 0
        assert finished.summary["ensemble"]["thresholds"]["target_fpr"] == 0.1


def test_run_at_another_point_is_refused_by_name(tmp_path, card):
    run = begin(tmp_path / "run", source=("/photos",), ensemble=card, fpr=0.1)
    for again in ({"ensemble": card}, {}):
        assert resume(run, fpr=0.1, **again).spec(0).ensemble.thresholds.fake_above == -50
        with pytest.raises(IdentityError, match=r"decision\.fpr: this command 0\.01, the run 0\.1"):
            resume(run, fpr=0.01, **again)
        with pytest.raises(ConfigError) as refused:
            resume(run, fpr=10, **again)
        assert refused.value.hint == "write 0.1 for 10 %"


def test_run_of_a_card_without_points_has_no_rate(tmp_path):
    run = begin(tmp_path / "run", source=("/photos",), ensemble="tiny")
    assert "fpr" not in run.describe()["identity"]["decision"]
    with pytest.raises(IdentityError, match=r"decision\.fpr: this command 0\.1, the run has none"):
        resume(run, fpr=0.1)
    with pytest.raises(ConfigError) as refused:
        resolve(ScoreConfig(source=("/photos",), detectors=("touchstone-tiny",), fpr=0.1))
    assert "touchstone detectors calibrate" in refused.value.hint


def test_plan_at_a_missing_point_is_refused(sample_archive, card):
    with pytest.raises(ConfigError) as refused:
        plan_run(ScoreConfig(source=(str(sample_archive),), ensemble=card, fpr=0.2), probe=0)
    assert refused.value.hint == "choose one of 0.01, 0.1"
