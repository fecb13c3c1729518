import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ray_app.errors import ConfigError, Status
from ray_app.evaluation.compare.changes import ComparedRun, truth_of
from ray_app.evaluation.compare.compare import compare
from ray_app.evaluation.join import own_labels
from ray_app.reports.compare import comparison_lines
from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.compare.compared import OTHER, TINY, log_odds, make_run, names_of, spec_of

N = 600
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


def system(document, name):
    return next(one for one in document["systems"] if one["name"] == name)


def test_equal_runs_differ_in_nothing(first, other_run, scores):
    document = compare(first, other_run(scores))
    assert document["examples"] == document["identity"] == []
    assert document["equal"]
    assert (
        comparison_lines(document)[0]
        == "no difference: statuses, scores, and verdicts are equal for 600 images in both runs"
    )
    assert {one["p"] for one in document["labelled"]["generators"]} == {1.0}
    # A verdict is right only if it is no abstention.
    rows = list(current_rows(RunDirectory.open(first)))
    assert {row["verdict"] for row in rows} == {"real", "fake", "abstain"}
    right = np.mean([row["verdict"] == row["input"]["label"] for row in rows])
    assert document["labelled"]["systems"][0]["right"]["a"]["value"] == pytest.approx(right)


def test_a_shift_of_one_detector_is_found_with_its_size(shifted):
    tiny, other = system(shifted, TINY)["shift"], system(shifted, OTHER)["shift"]
    assert tiny["mean"]["value"] == pytest.approx(0.3, abs=1e-6)
    assert tiny["quantiles"] == pytest.approx([0.3] * 7, abs=1e-6)
    assert (tiny["equal"], tiny["n"], tiny["moved"]["value"]) == (0, N, 1.0)
    assert (other["equal"], other["mean"]["value"]) == (N, 0.0)
    assert tiny["p"] < 1e-12
    [line] = [
        line
        for line in comparison_lines(shifted)
        if line.startswith(TINY) and "log-odds" not in line and "AUC" not in line
    ][:1]
    assert line.split()[1] == "+0.300"
    json.dumps(shifted, allow_nan=False)


def test_a_twentieth_of_verdicts_flipped_is_found(first, other_run, scores):
    changed = {name: column.copy() for name, column in scores.items()}
    rows = {
        row["uri"].rpartition("/")[2]: row["verdict"]
        for row in current_rows(RunDirectory.open(first))
    }
    turned = [place for place, name in enumerate(NAMES) if rows[name] in ("real", "fake")][
        : N // 20
    ]
    for place in turned:
        for name in (TINY, OTHER):
            changed[name][place] = -3.0 if rows[NAMES[place]] == "fake" else 3.0
    document = compare(first, other_run(changed))
    verdicts = document["verdicts"]
    assert verdicts["flips"] == len(turned)
    assert verdicts["matrix"]["real"]["fake"] + verdicts["matrix"]["fake"]["real"] == len(turned)
    assert any(
        line.startswith(f"verdicts: {len(turned)} of {N} changed; flagged ")
        for line in comparison_lines(document)
    )
    moved = [abs(one["score_b"] - one["score_a"]) for one in document["examples"]]
    assert len(moved) == 12
    assert moved == sorted(moved, reverse=True)
    assert all(
        {one["verdict_a"], one["verdict_b"]} == {"real", "fake"} for one in document["examples"]
    )
    assert {one["uri"].rpartition("/")[2] for one in document["examples"]} <= {
        NAMES[place] for place in turned
    }


def test_two_halves_of_one_archive_have_not_drifted(tmp_path):
    runs = [
        make_run(
            tmp_path / str(half),
            names_of(N // 2, f"half{half}"),
            {TINY: log_odds(half + 20, N // 2)},
        )
        for half in (0, 1)
    ]
    document = compare(*runs)
    assert document["rows"]["both"] == 0
    assert document["rows"]["why"] == "the runs share neither an image_id nor the bytes of an image"
    assert (
        comparison_lines(document)[0]
        == "no image is in both runs: only the distributions of their scores can be compared"
    )
    assert document["systems"][0]["distribution"]["drift"]["ks_p"] > 0.01


def test_two_nights_that_drifted_apart_without_a_shared_image(tmp_path):
    n = 800
    runs = [
        make_run(
            tmp_path / str(night),
            names_of(n, f"night{night}"),
            {TINY: log_odds(night, n) + 0.4 * night},
        )
        for night in (0, 1)
    ]
    document = compare(*runs)
    drift = document["systems"][0]["distribution"]["drift"]
    assert drift["ks"] > 0.05
    assert drift["ks_p"] < 0.01
    assert document["flagged"]["p"] < 0.01
    a, b = (document["flagged"][side]["value"] for side in "ab")
    assert document["flagged"]["difference"]["value"] == pytest.approx(b - a)
    assert b > a


def test_moved_files_are_matched_by_their_bytes(tmp_path, first, scores):
    moved = make_run(tmp_path / "moved", NAMES, scores, list_in=tmp_path / "elsewhere")
    document = compare(first, moved)
    assert (document["rows"]["by"], document["rows"]["both"], document["equal"]) == (
        "sha256",
        N,
        True,
    )
    assert (
        document["rows"]["why"]
        == "the runs share no image_id, so images are matched by their bytes"
    )
    assert compare(first, moved, by="image_id")["rows"]["both"] == 0


def test_statuses_that_changed(first, other_run, scores):
    fails = {name: Status.CORRUPT_IMAGE for name in NAMES[:120]}
    failed = other_run(scores, fails=fails)
    document = compare(first, failed)
    assert document["statuses"]["pairs"] == [["ok", "corrupt_image", 120]]
    assert f"statuses: 120 of {N} changed" in comparison_lines(document)
    assert system(document, TINY)["shift"]["lost"] == 120
    assert system(document, TINY)["shift"]["n"] == N - 120
    assert not document["equal"]
    by_bytes = compare(failed, first, by="sha256")["rows"]
    assert (by_bytes["unnamed_a"], by_bytes["both"], by_bytes["only_a"]) == (120, N - 120, 120)


def test_settings_detectors_and_ensembles_that_differ(tmp_path, first, scores, photos):
    spec = spec_of((TINY,), thresholds=(0.0, 2.0))
    other = make_run(
        tmp_path,
        NAMES,
        {TINY: scores[TINY]},
        spec=spec,
        list_in=photos,
        settings={"resize": "fast"},
    )
    document = compare(first, other)
    keys = {one["key"]: (one["a"], one["b"]) for one in document["identity"]}
    assert keys["resize"] == ("has none", '"fast"')
    assert keys["decision.thresholds.fake_above"] == ("1.0", "2.0")
    assert document["only_detectors"] == {"a": [OTHER], "b": []}
    assert [one["name"] for one in document["systems"]] == ["ensemble", TINY]
    assert system(document, TINY)["shift"]["equal"] == N


def test_labels_tell_which_is_better(first, other_run, scores):
    worse = scores[TINY] + np.where(FAKE, -1.5, 0).astype(np.float32)
    labelled = compare(first, other_run({**scores, TINY: worse}))["labelled"]
    assert (labelled["n"], labelled["n_fake"], labelled["n_real"]) == (N, 200, 400)
    auc, right = (labelled["systems"][1][key] for key in ("auc", "right"))
    assert auc["a"]["value"] == pytest.approx(roc_auc_score(FAKE, scores[TINY]), abs=1e-9)
    assert auc["b"]["value"] == pytest.approx(roc_auc_score(FAKE, worse), abs=1e-9)
    assert auc["difference"]["value"] == pytest.approx(
        auc["b"]["value"] - auc["a"]["value"], abs=1e-9
    )
    assert auc["test"] == "auc"
    assert auc["p"] < 1e-9
    assert labelled["intervals"] == {
        "fakes": "images",
        "reals": "images",
        "generators": 4,
        "sources": 1,
    }
    assert right["a"]["value"] == pytest.approx(((scores[TINY] > 0) == FAKE).mean())
    assert right["difference"]["value"] == pytest.approx(
        ((worse > 0) == FAKE).mean() - right["a"]["value"]
    )
    tiny = {one["generator"]: one for one in labelled["generators"] if one["system"] == TINY}
    assert {name: one["n"] for name, one in tiny.items()} == {
        f"maker-{maker}": 50 for maker in range(4)
    } | {"real:camera": 400}
    assert all(one["p"] < 0.01 for name, one in tiny.items() if name.startswith("maker"))
    assert tiny["real:camera"]["p"] == 1


def test_no_run_and_a_run_that_grows_meanwhile_are_refused(tmp_path, photos, scores, first):
    with pytest.raises(ConfigError, match=r"there is no folder|no run in"):
        compare(first, str(tmp_path))
    run = ComparedRun.open(
        make_run(
            tmp_path, NAMES[:20], {TINY: scores[TINY][:20]}, list_in=photos, labels=LABELS[:20]
        )
    )
    [path] = run.run.row_files([0])
    table = next(run.run.rows_in(path))
    pq.write_table(pa.concat_tables([table, table.slice(0, 3)]), run.run.store.local_path(path))
    with (
        own_labels(run.run.store.url) as labels,
        pytest.raises(ConfigError, match="changed while it was read"),
    ):
        truth_of(run, labels, np.arange(20))
