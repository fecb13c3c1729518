"""The numbers of the default's card: chosen on some families, measured on others."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.ensembles import EnsembleCard
from tools.default_ensemble import measure_default
from tools.default_ensemble.measure_default import AS_FOUND, Pictures, score_with


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_default, "DRAWS", 50)
        patch.setattr(measure_default, "SPLITS", 20)
        yield


@pytest.fixture(scope="module")
def pictures():
    """Of each split 40 sources of 20 pictures, half of them generated, and 60 sources of reals.

    `good` ranks them with an AUC of about 0.92, `poor` with one of about 0.76. Only every second
    picture was scored after damage.
    """
    rng, rows = np.random.default_rng(0), []
    for split, sources in (("validation", 40), ("test", 40), ("thresholds", 60)):
        for number in range(sources):
            label = ("real", "fake")[number % 2] if split != "thresholds" else "real"
            facts = {"format": "PNG" if label == "fake" else "JPEG", "width": 512, "height": 512}
            facts |= {"quality": None, "size_bytes": 1000, "kind": "art", "generator": label}
            name = f"{split}{number}"
            facts |= {"label": label, "split": split, "source": name, "family": name}
            rows += [facts | {"listed": "FLUX.2"}] * 20
    fake = np.array([row["label"] == "fake" for row in rows])
    columns = {
        name: np.where(fake, gap, -gap) + rng.normal(0, 1, len(rows))
        for name, gap in (("good", 1.0), ("poor", 0.5))
    }
    damaged = {
        name: np.where(np.arange(len(rows)) % 2, column, np.nan) for name, column in columns.items()
    }
    return Pictures(rows, {AS_FOUND: columns, "small": damaged})


@pytest.fixture(scope="module")
def fitted(few_draws, pictures):
    return measure_default.fit(pictures)


def card_of(fitted):
    points = [
        {"rate": rate, "threshold": threshold, "false_positive_rate": 0, "upper_bound": 0}
        for rate, threshold in fitted["thresholds"].items()
    ]
    points = [point | {"recall": 0, "abstain_real": 0, "abstain_fake": 0} for point in points]
    limits = {"real_below": fitted["real_below"], "fake_above": fitted["thresholds"][0.01]}
    return EnsembleCard.model_validate(
        fitted["card"] | {"operating_points": points, "thresholds": limits}
    )


@pytest.fixture(scope="module")
def older():
    members = [{"detector": "poor", "calibration": {"slope": 1, "intercept": 0}}]
    return EnsembleCard.model_validate({"name": "older", "title": "older", "members": members})


@pytest.fixture(scope="module")
def measured(fitted, older, pictures):
    return measure_default.measure(card_of(fitted), older, pictures)


def test_calibrated_detectors_with_independent_errors_weigh_alike(fitted):
    good, poor = (member["weight"] for member in fitted["card"]["members"])
    assert good == pytest.approx(0.5, abs=0.12)
    assert good + poor == pytest.approx(1, abs=1e-3)


def test_thresholds_keep_their_rates_on_the_reals_that_chose_them(pictures, fitted):
    reals = pictures.take(
        np.array(
            [
                row["label"] == "real"
                and (
                    row["split"] == "thresholds"
                    or (
                        row["split"] == "validation"
                        and not measure_default.is_choosing(row["family"])
                    )
                )
                for row in pictures.rows
            ]
        )
    )
    assert fitted["reals"]["images"] == len(reals.rows)
    scores = score_with(card_of(fitted), reals.scores[AS_FOUND])
    for rate, threshold in fitted["thresholds"].items():
        assert (scores >= threshold).mean() <= rate
    thresholds = list(fitted["thresholds"].values())
    assert thresholds == sorted(thresholds, reverse=True)


def test_the_test_split_decides_nothing(pictures, fitted):
    scores = {
        view: {
            name: np.where([row["split"] == "test" for row in pictures.rows], -column, column)
            for name, column in columns.items()
        }
        for view, columns in pictures.scores.items()
    }
    assert measure_default.fit(Pictures(pictures.rows, scores)) == fitted


def test_rates_are_those_of_the_test_split(pictures, fitted, measured):
    test = pictures.of_split("test")
    reals = score_with(card_of(fitted), test.scores[AS_FOUND])[~test.fake]
    for point in measured["operating_points"]:
        flagged = (reals >= point["threshold"]).mean()
        assert point["false_positive_rate"] == pytest.approx(flagged, abs=1e-5)
        assert flagged < point["upper_bound"]


def test_the_gain_is_paired_and_counts_only_pictures_with_scores(measured):
    for view, reals in ((AS_FOUND, 400), ("small", 200)):
        gain, low, high = measured["gain"][view]
        assert low < gain < high
        assert low > 0
        new, old = (measured[part][view] for part in ("test", "older"))
        assert new["auc"][0] - old["auc"][0] == pytest.approx(gain, abs=2e-4)
        assert new["n_real"] == reals


def test_subsets_without_one_class_have_no_metric(measured):
    assert measured["subsets"]["format PNG"] == {"n_real": 0, "n_fake": 400}
    assert measured["subsets"]["short side 512 to 767"]["auc"] == measured["test"][AS_FOUND]["auc"]
    assert measured["subsets"]["generators of 2025 and 2026"]["n_fake"] == 400


def test_probabilities_are_calibrated_and_shares_are_whole(measured):
    assert measured["calibration_error"][0] < 0.06
    assert 0.9 < measured["test"][AS_FOUND]["auc"][0] < 0.97
    assert measured["file_facts_auc"] == 1.0
    for views in measured["points_on_test"].values():
        for shares in views[AS_FOUND].values():
            assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_listing_keeps_at_most_so_many_files_of_a_source(tmp_path):
    rows = [
        {"uri": f"{number}.png", "source": source, "split": split, "sha256": sha256(number)}
        for number, (source, split) in enumerate(
            [("a", "test")] * 3 + [("b", "train")] * 3 + [("c", "validation")]
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "index.parquet")
    held_out = measure_default.held_out_rows(
        tmp_path / "index.parquet", ["test", "validation"], most=2
    )
    assert [row["source"] for row in held_out] == ["a", "a", "c"]


def sha256(number):
    return hashlib.sha256(bytes([number])).hexdigest()
