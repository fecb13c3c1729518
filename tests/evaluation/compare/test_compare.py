import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from ray_app.errors import ConfigError, Status
from ray_app.evaluation.compare import compare
from ray_app.reports.compare import comparison_lines
from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.compare.compared import OTHER, TINY, log_odds, make_run, names_of, spec_of

N = 300
BINARY = "internvl-prompt"
NAMES = names_of(N)
FAKE = np.arange(N) % 3 == 0
LABELS = [
    ("fake", f"maker-{place % 4}") if one else ("real", "camera") for place, one in enumerate(FAKE)
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


@pytest.fixture(scope="module")
def scores():
    return {TINY: log_odds(0, N, FAKE), OTHER: log_odds(1, N, FAKE)}


@pytest.fixture(scope="module")
def first(tmp_path_factory, photos, scores):
    return make_run(tmp_path_factory.mktemp("first"), NAMES, scores, labels=LABELS, list_in=photos)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory, photos):
    def make(scores, names=NAMES, labels=LABELS, **how):
        return make_run(
            tmp_path_factory.mktemp("other"), names, scores, labels=labels, list_in=photos, **how
        )

    return make


@pytest.fixture(scope="module")
def shifted(first, other_run, scores):
    return compare(first, other_run({**scores, TINY: scores[TINY] + 0.3}))


def of_system(rows, name):
    return next(row for row in rows if row.system == name)


def of_metric(comparison, system, metric):
    rows = [row for row in comparison.metrics if row.system == system]
    return next(row for row in rows if row.metric == metric)


def test_equal_runs_have_no_difference(first, other_run, scores):
    comparison = compare(first, other_run(scores))
    assert comparison.is_equal
    assert not comparison.settings
    line = f"no difference: statuses, scores, and verdicts of {N} images are equal"
    assert comparison_lines(comparison)[0] == line
    assert {row.p for row in comparison.metrics} == {1.0}
    assert {row.difference.value for row in comparison.metrics} == {0.0}


def test_rates_of_the_ensemble_are_those_of_its_verdicts(shifted, first):
    rows = list(current_rows(RunDirectory.open(first)))
    assert {row["verdict"] for row in rows} == {"real", "fake", "abstain"}
    flagged = np.array([row["verdict"] == "fake" for row in rows])
    is_fake = np.array([row["input"]["label"] == "fake" for row in rows])
    tpr, tnr = (of_metric(shifted, "ensemble", name).a for name in ("tpr", "tnr"))
    assert tpr.value == pytest.approx(flagged[is_fake].mean())
    assert tnr.value == pytest.approx((~flagged[~is_fake]).mean())


def test_shift_of_one_detector_has_its_size(shifted, scores):
    tiny, other = (of_system(shifted.scores, name) for name in (TINY, OTHER))
    assert tiny.mean.value == pytest.approx(0.3, abs=1e-6)
    assert list(tiny.quantiles.values()) == pytest.approx([0.3] * 5, abs=1e-6)
    assert (tiny.equal, tiny.n, tiny.moved.value) == (0, N, 1.0)
    assert (other.equal, other.mean.value, other.max_difference) == (N, 0.0, 0.0)
    expected = ks_2samp(scores[TINY], scores[TINY] + np.float32(0.3), method="asymp")
    assert (tiny.ks, tiny.ks_p) == pytest.approx(tuple(expected))
    [line] = [line for line in comparison_lines(shifted) if line.startswith(TINY)][:1]
    assert line.split()[2] == "+0.300"
    json.dumps(shifted.to_dict(), allow_nan=False)


def test_changed_verdicts_are_counted_in_the_crosstab(first, other_run, scores):
    changed = {name: column.copy() for name, column in scores.items()}
    run = RunDirectory.open(first)
    rows = {row["uri"].rpartition("/")[2]: row["verdict"] for row in current_rows(run)}
    decided = [place for place, name in enumerate(NAMES) if rows[name] in ("real", "fake")]
    turned = decided[: N // 20]
    for place in turned:
        for name in (TINY, OTHER):
            changed[name][place] = -3.0 if rows[NAMES[place]] == "fake" else 3.0
    comparison = compare(first, other_run(changed))
    assert comparison.changed_verdicts == len(turned)
    verdicts = comparison.verdicts
    assert verdicts["real"]["fake"] + verdicts["fake"]["real"] == len(turned)
    assert sum(sum(row.values()) for row in verdicts.values()) == N
    lines = comparison_lines(comparison)
    assert f"verdicts: {len(turned)} of {N} changed" in lines
    [row] = [line.split() for line in lines if line.startswith("no evidence  ")]
    assert row[2:] == [str(verdicts["real"][word]) for word in ("fake", "abstain", "real", "none")]


def test_runs_without_a_shared_image_compare_distributions(tmp_path):
    runs = [
        make_run(
            tmp_path / day, names_of(800, day), {TINY: log_odds(int(day), 800) + 0.4 * int(day)}
        )
        for day in "01"
    ]
    comparison = compare(*runs)
    assert (comparison.shared, comparison.by) == (0, "sha256")
    assert comparison_lines(comparison)[0].startswith("no image is in both runs")
    row = comparison.scores[0]
    assert row.n == 0
    assert row.ks > 0.05
    assert row.ks_p < 0.01
    assert comparison.flagged_b.value > comparison.flagged_a.value
    assert comparison.flagged_a.n == 800


def test_moved_files_are_matched_by_their_bytes(tmp_path, first, scores):
    moved = make_run(tmp_path / "moved", NAMES, scores, list_in=tmp_path / "elsewhere")
    comparison = compare(first, moved)
    assert (comparison.by, comparison.shared, comparison.is_equal) == ("sha256", N, True)
    # The second run has no labels, and its rows are matched with those of the first.
    assert comparison.labelled == N
    assert compare(first, moved, by="image_id").shared == 0


def rewrite(run_url, name, values):
    """Replace the first values of a column in the published rows of a run."""
    run = RunDirectory.open(run_url)
    [path] = run.row_files([0])
    file = run.store.local_path(path)
    rows = pq.read_table(file)
    column = pa.array([*values, *rows[name].to_pylist()[len(values) :]], pa.string())
    pq.write_table(rows.set_column(rows.schema.get_field_index(name), name, column), file)


def test_unknown_and_missing_statuses_stay_apart(first, other_run, scores):
    later = other_run(scores, fails={name: Status.DETECTOR_FAILED for name in NAMES[-2:]})
    rewrite(later, "status", ["of_a_later_version"] * 3 + [None] * 4)
    assert sorted(compare(first, later).statuses) == [
        ("ok", "detector_failed", 2),
        ("ok", "missing", 4),
        ("ok", "of_a_later_version", 3),
    ]
    assert not compare(later, later).statuses


def test_unknown_verdict_is_refused(first, other_run, scores):
    later = other_run(scores)
    rewrite(later, "verdict", ["altered"])
    with pytest.raises(ConfigError, match=f"{later}: the verdict must be one of .*, got altered"):
        compare(first, later)


def test_changed_statuses_are_counted(first, other_run, scores):
    failed = other_run(scores, fails={name: Status.CORRUPT_IMAGE for name in NAMES[:120]})
    comparison = compare(first, failed)
    assert comparison.statuses == [("ok", "corrupt_image", 120)]
    assert f"statuses: 120 of {N} changed" in comparison_lines(comparison)
    tiny = of_system(comparison.scores, TINY)
    assert (tiny.only_a, tiny.n) == (120, N - 120)
    assert sum(row["none"] for row in comparison.verdicts.values()) == 120
    assert not comparison.is_equal
    by_bytes = compare(failed, first, by="sha256")
    assert (by_bytes.rows_a, by_bytes.shared) == (N, N - 120)


def test_different_settings_and_detectors_are_listed(tmp_path, first, scores, photos):
    spec, settings = spec_of((TINY,), thresholds=(0.0, 2.0)), {"resize": "fast"}
    alone = {TINY: scores[TINY]}
    other = make_run(tmp_path, NAMES, alone, spec=spec, list_in=photos, settings=settings)
    comparison = compare(first, other)
    settings = {key: values for key, *values in comparison.settings}
    assert settings["resize"] == ["has none", '"fast"']
    assert settings["decision.thresholds.fake_above"] == ["1.0", "2.0"]
    assert (comparison.detectors_only_a, comparison.detectors_only_b) == ([OTHER], [])
    # Settings of a detector that one run lacks are no difference of their own.
    assert not [key for key in settings if key.startswith(("detectors.", "precision."))]
    # The ensemble of one detector decides in the second run.
    assert [row.system for row in comparison.scores] == ["ensemble", TINY]
    assert of_system(comparison.scores, TINY).equal == N


def test_labels_show_which_run_is_better(first, other_run, scores):
    worse = scores[TINY] + np.where(FAKE, -1.5, 0).astype(np.float32)
    comparison = compare(first, other_run({**scores, TINY: worse}))
    assert comparison.labelled == N
    assert comparison.groups == {"fake": 0, "real": 0}  # Four generators and one source.
    auc, tpr, tnr = (of_metric(comparison, TINY, name) for name in ("auc", "tpr", "tnr"))
    assert auc.a.value == pytest.approx(roc_auc_score(FAKE, scores[TINY]), abs=1e-9)
    assert auc.b.value == pytest.approx(roc_auc_score(FAKE, worse), abs=1e-9)
    assert auc.difference.value == pytest.approx(auc.b.value - auc.a.value, abs=1e-9)
    assert auc.difference.high < 0
    assert auc.p < 1e-9
    assert tpr.a.value == pytest.approx((scores[TINY][FAKE] > 0).mean())
    before, after = ((score[FAKE] > 0).mean() for score in (scores[TINY], worse))
    assert tpr.difference.value == pytest.approx(after - before)
    assert tpr.difference.low < tpr.difference.value < tpr.difference.high < 0
    assert (tnr.difference.value, tnr.p) == (0.0, 1.0)


@pytest.mark.parametrize(("intervals", "groups"), [("generators", 9), ("images", 0)])
def test_intervals_are_for_further_generators(first, other_run, scores, intervals, groups):
    labels = [
        ("fake", f"maker-{place % 27}") if is_fake else ("real", "camera")
        for place, is_fake in enumerate(FAKE)
    ]
    runs = [
        other_run({TINY: scores[TINY] + shift}, labels=labels, settings={"shift": shift})
        for shift in (0.0, 0.5)
    ]
    comparison = compare(*runs, intervals=intervals)
    assert comparison.groups == {"fake": groups, "real": 0}
    assert len(comparison.metrics) == 3


def test_compare_rejects_what_is_not_a_run(tmp_path, first):
    with pytest.raises(ConfigError, match=r"there is no folder|no run in"):
        compare(first, str(tmp_path))
    with pytest.raises(ConfigError, match=r"--by must be .*, got uri"):
        compare(first, first, by="uri")


def test_binary_replies_have_rates_and_no_ranking(tmp_path):
    right = np.where(FAKE, 4.0, -4.0).astype(np.float32)
    wrong = np.where(np.arange(N) % 20, right, -right)
    runs = [
        make_run(tmp_path / name, NAMES, {BINARY: column}, labels=LABELS, list_in=tmp_path / "in")
        for name, column in (("a", wrong), ("b", right))
    ]
    comparison = compare(*runs)
    auc = of_metric(comparison, BINARY, "auc")
    assert (auc.a.value, auc.a.why) == (None, "binary replies have no ranking")
    tpr = of_metric(comparison, BINARY, "tpr")
    assert tpr.b.value == 1.0 > tpr.a.value > 0.9
