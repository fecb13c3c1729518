"""From a labelled run to a suggested ensemble's card."""

import json

import numpy as np
import pytest

from ray_app.cli.main import main
from ray_app.ensembles import combine, load_ensemble_card
from ray_app.evaluation.suggestion import SuggestConfig, suggest_ensemble
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.intervals import auc_of
from tests.evaluation.calibrate.drawn import labelled_of
from tests.evaluation.calibrate.runs import labels_of, run_of

SKILL = {"npr": 0.0, "unifd": 1.4, "clip-cues": 1.2, "touchstone-photo": 0.9}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A run of four published names, of which npr knows nothing; 12 sources of real images and as many generators."""
    folder = tmp_path_factory.mktemp("suggest")
    random = np.random.default_rng(0)
    group = np.arange(24).repeat(20)
    fake = group >= 12
    scores = {name: (random.normal(size=len(group)) + fake * skill).astype(np.float32) for name, skill in SKILL.items()}
    names = [f"g{one}" if one > 12 else "FLUX.1" if one == 12 else None for one in group]
    images = labelled_of(fake, scores, generator=names)
    sources = [f"s{one}" if one < 12 else "" for one in group]
    return folder, run_of(folder / "run", images), labels_of(folder / "labels.csv", images, source=sources), images


def suggested(case, **more):
    _, run, labels, _ = case
    return suggest_ensemble(SuggestConfig(run=run, labels=labels, **more))


@pytest.fixture(scope="module")
def report(case):
    return suggested(case, out=str(case[0] / "mine.yaml"))


def test_the_card_is_of_what_was_chosen_and_scores_as_was_said(case, report):
    folder, _, _, images = case
    chosen = [one.detector for one in report.best]
    assert chosen[0] == "unifd"
    assert "npr" not in chosen
    card = load_ensemble_card(folder / "mine.yaml")
    assert [one.detector for one in card.members] == chosen
    assert card.rule == "mean-logit"
    own = {member.detector: member.calibration for member in card.members}
    scores = combine(card, {name: images.scores[name] for name in chosen}, own)
    area = auc_of(ScoreHistogram.of(scores[images.fake]), ScoreHistogram.of(scores[~images.fake])).value
    assert report.best[-1].figure == pytest.approx(area, abs=0.03)
    assert f"{report.best[-1].figure:.4f}" in card.notes


def test_times_that_the_run_measured_one_by_one_are_the_costs(case, tmp_path):
    _, _, labels, images = case
    run = tmp_path / "run"
    run_of(run, images)
    (run / "sessions").mkdir(exist_ok=True)
    session = {"state": "finished", "decoded": 480, "detectors": {name: {"seconds": 4.8, "images": 480} for name in SKILL}}
    (run / "sessions" / "00001.json").write_text(json.dumps(session))
    report = suggest_ensemble(SuggestConfig(run=str(run), labels=labels, size=1))
    assert (report.unit, report.best[0].cost) == ("ms an image", pytest.approx(10.0))


def test_the_command_prints_both_ways_and_writes_the_card(case, capsys):
    folder, run, labels, _ = case
    out = str(folder / "per-cost.yaml")
    assert main(["ensembles", "suggest", run, "--labels", labels, "--size", "1", "--per-cost", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "The most ROC AUC:" in printed
    assert "The most per cost:" in printed
    assert printed.rstrip().endswith(f"touchstone score SOURCE --ensemble {out} --out RUN)")
    assert load_ensemble_card(out).members[0].detector == "touchstone-photo"
    assert main(["ensembles", "suggest", run, "--labels", labels, "--size", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folds"] == 5
