import shutil

import numpy as np
import pyarrow as pa
import pytest

from ray_app.config import config_root
from ray_app.datasets.label_reader import open_labels
from ray_app.detectors import load_card
from ray_app.ensembles import (
    EnsembleCard,
    EnsembleMember,
    Thresholds,
    build_ensemble,
    combine,
    select_audited,
)
from ray_app.ensembles.card import Cascade
from ray_app.evaluation.accumulate import COLUMNS, count_rows
from ray_app.evaluation.join import read_labels
from ray_app.evaluation.systems import ENSEMBLE, combined_overlap, list_systems, training_overlap
from ray_app.runs import RunDirectory
from tests.make.evaluations import cut, labelled, made_run, random_rows


@pytest.mark.parametrize(
    ("detector", "generator", "word"),
    [
        ("cnndetection", "progan", "in-training"),
        ("cnndetection", "stylegan2", "unseen"),
        ("maskclip", "Stable Diffusion v1.5", "in-training"),
        ("clip-d-10k-plus", "flux", "unknown"),
        ("cnndetection", "real:lsun", "unknown"),
    ],
)
def test_training_overlap_is_read_from_cards(detector, generator, word):
    assert training_overlap(load_card(detector), generator) == word


def test_one_member_that_saw_it_decides():
    assert combined_overlap(["unseen", "in-training", "unknown"]) == "in-training"
    assert combined_overlap(["unseen", "unseen"]) == "unseen"
    assert combined_overlap(["unseen", "unknown"]) == combined_overlap([]) == "unknown"


CALIBRATION = {"slope": 2.0, "intercept": 0.5}


def run_of(folder, names, ensemble, calibrations=None):
    run = RunDirectory.open(str(folder))
    facts = {name: {"calibration": (calibrations or {}).get(name)} for name in names}
    run.claim({"detectors": facts}, names, ensemble.model_dump(mode="json") if ensemble else {})
    return run


def test_one_plain_detector_is_its_ensemble(tmp_path):
    [only] = list_systems(run_of(tmp_path / "1", ["npr"], build_ensemble(["npr"]))).all
    assert (only.name, only.kind, only.decides) == ("npr", "detector", True)
    assert (only.threshold, only.strict) == (0.0, True)
    assert only.card.name == "npr"
    assert only.title == only.card.title


@pytest.mark.parametrize(
    ("changes", "calibrations"),
    [
        ({}, {"npr": CALIBRATION}),
        ({"bias": 1.0}, {}),
        ({"thresholds": Thresholds(real_below=-1, fake_above=1)}, {}),
    ],
)
def test_ensemble_of_one_detector_is_one_system(tmp_path, changes, calibrations):
    ensemble = build_ensemble(["npr"]).model_copy(update=changes)
    run = run_of(tmp_path / "run", ["npr"], ensemble, calibrations)
    systems = list_systems(run)
    [only] = systems.all
    assert (only.name, only.kind, only.title) == ("npr", ENSEMBLE, ensemble.title)
    assert only.threshold == ensemble.thresholds.fake_above
    assert (only.strict, only.decides) == (False, True)
    assert only.calibrated is bool(calibrations)
    assert only.card.name == "npr"
    raw = np.array([-2.0, 0.5], np.float32)
    scores = combine(ensemble, {"npr": raw}, systems.calibrations)
    shown = pa.StructArray.from_arrays([pa.array(raw)], ["npr"])
    views = pa.StructArray.from_arrays([shown], ["jpeg-70"])
    table = pa.table({"scores": shown, "score": scores, "views": views})
    assert systems.read_scores(table)["npr"] == pytest.approx(scores)
    assert systems.read_views(table)["jpeg-70"]["npr"] == pytest.approx(scores)


def test_threshold_of_protocol_is_of_raw_scores(tmp_path):
    run = run_of(tmp_path, ["npr"], build_ensemble(["npr"]), {"npr": CALIBRATION})
    [only] = list_systems(run, threshold=0.3).all
    assert (only.name, only.kind, only.threshold, only.decides) == ("npr", "detector", 0.3, True)
    names = ["npr", "unifd"]
    two = run_of(tmp_path / "two", names, build_ensemble(names))
    both = list_systems(two, threshold=0.3, strict=False)
    assert {(one.threshold, one.strict) for one in both.all} == {(0.3, False)}


def test_binary_and_unknown_detectors_are_systems(tmp_path):
    names = ["internvl-prompt", "gone", "npr"]
    systems = list_systems(run_of(tmp_path, names, build_ensemble(names)))
    assert [(one.name, one.binary, one.card is None) for one in systems.all[1:]] == [
        ("internvl-prompt", True, False), ("gone", False, True), ("npr", False, False)
    ]  # fmt: skip
    assert list_systems(run_of(tmp_path / "none", ["npr"], None)).headline.name == ENSEMBLE


def test_members_are_known_by_the_names_of_the_run(tmp_path):
    shutil.copy(config_root() / "detectors" / "npr.yaml", tmp_path / "copy.yaml")
    members = EnsembleMember(detector=str(tmp_path / "copy.yaml")), EnsembleMember(detector="unifd")
    card = EnsembleCard(name="mine", title="Mine", members=members)
    systems = list_systems(run_of(tmp_path / "run", ["npr", "unifd", "ladeda9"], card))
    assert systems.members == ("npr", "unifd")
    assert [one.name for one in systems.all] == [ENSEMBLE, "npr", "unifd", "ladeda9"]


def test_a_view_is_decided_by_the_runs_own_rule(tmp_path):
    members = EnsembleMember(detector="b", weight=2.0), EnsembleMember(detector="a", weight=-1.0)
    card = EnsembleCard(name="two", title="Two", members=members, rule="weighted", bias=0.25)
    systems = list_systems(run_of(tmp_path, ["a", "b"], card, {"a": CALIBRATION}))
    columns, _, scores = random_rows(50, views=("v",))
    [piece] = cut(columns, [])
    found = systems.read_views(pa.table(piece))["v"]
    wanted = combine(card, {"b": scores["b"], "a": scores["a"]}, systems.calibrations)
    np.testing.assert_allclose(found[ENSEMBLE], wanted, atol=1e-12)
    a, b = (scores[name].astype(float) for name in "ab")
    np.testing.assert_allclose(found[ENSEMBLE], 2 * b - (2 * a + 0.5) + 0.25, atol=1e-12)
    assert set(systems.read_scores(pa.table(piece))) == {ENSEMBLE, "a", "b"}


def test_a_cascades_audit_draws_a_view_with_its_file(tmp_path):
    columns, truths, scores = random_rows(200, views=("v",))
    cascade = Cascade(first=1, band=(-0.5, 0.5), audit_share=0.5)
    members = (EnsembleMember(detector="a"), EnsembleMember(detector="b"))
    card = EnsembleCard(name="two", title="Two", members=members, rule="cascade", cascade=cascade)
    run = made_run(tmp_path / "run", columns, ensemble=card.model_dump(mode="json"))
    labels = labelled(tmp_path, columns, truths)
    systems = list_systems(run)
    assert [one.name for one in systems.all if one.late] == ["b"]
    with read_labels(open_labels(str(labels))) as read:
        views = count_rows(read.join(run, COLUMNS, systems=systems), systems).views(ENSEMBLE)
        [(view, column)] = views
    drawn = select_audited(card, columns["sha256"])
    wanted = combine(card, {name: scores[name] for name in "ab"}, {}, audited=drawn)
    assert view == "v"
    np.testing.assert_allclose(np.sort(column.scores), np.sort(wanted[np.isfinite(wanted)]))
    alone = combine(card, {name: scores[name] for name in "ab"}, {})
    assert not np.array_equal(wanted, alone, equal_nan=True)
