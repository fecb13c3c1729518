"""The numbers of the default's card: chosen on one split, measured on another."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tools.default_ensemble import measure_default
from tools.default_ensemble.measure_default import AS_FOUND, Pictures


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_default, "DRAWS", 50)
        patch.setattr(measure_default, "SPLITS", 20)
        yield


@pytest.fixture(scope="module")
def pictures():
    """Of each split 40 sources of 20 pictures, half of them generated; `good` ranks them with an
    AUC of about 0.92, `poor` with one of about 0.76.
    """
    rng, rows = np.random.default_rng(0), []
    for split in ("validation", "test"):
        for number in range(40):
            label = ("real", "fake")[number % 2]
            facts = {"format": "PNG" if label == "fake" else "JPEG", "width": 512, "height": 512}
            facts |= {"quality": None, "size_bytes": 1000, "kind": "art", "generator": label}
            name = f"{split}{number}"
            rows += [{"label": label, "split": split, "source": name, "family": name, **facts}] * 20
    fake = np.array([row["label"] == "fake" for row in rows])
    columns = {
        name: np.where(fake, gap, -gap) + rng.normal(0, 1, len(rows))
        for name, gap in (("good", 1.0), ("poor", 0.5))
    }
    return Pictures(rows, {AS_FOUND: columns, "small": columns})


@pytest.fixture(scope="module")
def measured(few_draws, pictures):
    return measure_default.measure(pictures)


def test_thresholds_keep_their_rates_where_they_were_chosen(pictures, measured):
    held_out = pictures.of_split("validation")
    score = measure_default.Calibrated.fit(held_out).score(held_out.scores[AS_FOUND])
    points = measured["ensemble"]["operating_points"]
    assert [point["rate"] for point in points] == [0.002, 0.01, 0.02, 0.05]
    for point in points:
        assert (score[~held_out.fake] >= point["threshold"]).mean() <= point["rate"]
    thresholds = [point["threshold"] for point in points]
    assert thresholds == sorted(thresholds, reverse=True)


def test_rates_are_those_of_the_test_split(pictures, measured):
    test = pictures.of_split("test")
    fitted = measure_default.Calibrated.fit(pictures.of_split("validation"))
    reals = fitted.score(test.scores[AS_FOUND])[~test.fake]
    for point in measured["ensemble"]["operating_points"]:
        flagged = (reals >= point["threshold"]).mean()
        assert point["false_positive_rate"] == pytest.approx(flagged, abs=1e-5)
        assert flagged < point["upper_bound"]


def test_the_test_split_decides_nothing(pictures, measured):
    scores = {
        view: {
            name: np.where([row["split"] == "test" for row in pictures.rows], -column, column)
            for name, column in columns.items()
        }
        for view, columns in pictures.scores.items()
    }
    other = measure_default.measure(Pictures(pictures.rows, scores))
    for key in ("calibrations", "validation"):
        assert other[key] == measured[key]
    assert thresholds_of(other) == thresholds_of(measured)
    assert other["test"] != measured["test"]


def test_probabilities_are_calibrated_and_shares_are_whole(measured):
    assert measured["calibration_error"][0] < 0.06
    assert 0.9 < measured["test"][AS_FOUND]["auc"][0] < 0.97
    assert measured["file_facts_auc"] == 1.0
    for views in measured["points_on_test"].values():
        for shares in views[AS_FOUND].values():
            assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_listing_keeps_at_most_so_many_files_of_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_default, "MOST", 2)
    rows = [
        {"uri": f"{number}.png", "source": source, "split": split, "sha256": sha256(number)}
        for number, (source, split) in enumerate(
            [("a", "test")] * 3 + [("b", "train")] * 3 + [("c", "validation")]
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "index.parquet")
    held_out = measure_default.held_out_rows(tmp_path / "index.parquet")
    assert [row["source"] for row in held_out] == ["a", "a", "c"]


def thresholds_of(measured):
    ensemble = measured["ensemble"]
    return ensemble["real_below"], [one["threshold"] for one in ensemble["operating_points"]]


def sha256(number):
    return hashlib.sha256(bytes([number])).hexdigest()
