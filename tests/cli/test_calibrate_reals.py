"""`touchstone detectors calibrate --reals`: a threshold from real images alone."""

import json

import numpy as np
import pytest
from PIL import Image

from ray_app.ensembles import load_ensemble_card
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.reals import calibrate_on_reals, name_source
from ray_app.reports.calibration import calibration_lines
from ray_app.runs.scored_run import load_run

SOURCES, EACH = 12, 8


@pytest.fixture(scope="module")
def reals(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("reals"), np.random.default_rng(0)
    for source in range(SOURCES):
        (folder / f"camera-{source}").mkdir()
        for number in range(EACH):
            pixels = rng.integers(0, 256, (9 + source, 12, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((240, 200), Image.Resampling.BICUBIC)
            image.save(folder / f"camera-{source}" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def calibrated(reals, tmp_path_factory):
    out = tmp_path_factory.mktemp("card") / "mine.yaml"
    return calibrate_on_reals(
        CalibrateConfig(reals=str(reals), ensemble="tiny", fpr=0.2, out=str(out))
    )


def test_threshold_keeps_the_rate_on_the_given_images(calibrated):
    scores = load_run(calibrated.run).table(["score"])["score"].to_numpy()
    card = load_ensemble_card(calibrated.path)

    assert len(scores) == SOURCES * EACH
    assert (scores >= card.thresholds.fake_above).mean() <= 0.2
    assert card.guarantee.groups == SOURCES
    assert card.guarantee.n_real == SOURCES * EACH
    rates = [point.rate for point in card.operating_points]
    assert 0.2 in rates
    assert rates == sorted(rates)


def test_other_settings_stay_those_of_the_ensemble(calibrated):
    before, after = load_ensemble_card("tiny"), load_ensemble_card(calibrated.path)
    assert after.rule == before.rule
    assert after.calibration == before.calibration
    assert after.thresholds.real_below == min(
        before.thresholds.real_below, after.thresholds.fake_above
    )


def test_report_shows_what_few_images_are_worth(calibrated):
    text = " ".join(" ".join(calibration_lines(calibrated)).split())
    assert f"{SOURCES * EACH} real images of {SOURCES} sources" in text
    assert "Give at least 1,000 images of 10 sources" in text
    assert "it is not known how many fakes" in text


def test_card_decides_other_images(calibrated, reals, touchstone):
    ended = touchstone(f"check {reals}/camera-0 --ensemble {calibrated.path} --json")
    fake_above = load_ensemble_card(calibrated.path).thresholds.fake_above
    images = [json.loads(line) for line in ended.out.splitlines()]
    assert len(images) == EACH
    assert [image["verdict"] == "fake" for image in images] == [
        image["score"] >= fake_above for image in images
    ]


def test_source_is_the_first_folder_below_the_given_one(tmp_path, monkeypatch):
    folder = tmp_path / "photos" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert name_source(f"{folder}/photos/nikon/2019/1.jpg", "photos/") == "nikon"
    assert name_source(f"{folder}/photos/1.jpg", "photos") == ""
    assert name_source("s3://bucket/photos/nikon/1.jpg", "s3://bucket/photos/") == "nikon"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--out {out}", "either a RUN with labels or --reals"),
        ("run --reals photos --out {out}", "either a RUN with labels or --reals"),
        ("run --ensemble tiny --out {out}", "--ensemble requires --reals"),
        ("--reals photos --rule stacked --out {out}", "--rule requires labelled fakes"),
        ("--reals photos --ensemble tiny --detector npr --out {out}", "either --ensemble or"),
    ],
)
def test_calibrate_rejects_contradicting_options(line, said, tmp_path, touchstone):
    ended = touchstone(f"detectors calibrate {line.format(out=tmp_path / 'card.yaml')}")
    assert ended.code == 2
    assert said in " ".join(ended.err.split())


def test_calibrate_rejects_a_folder_without_images(tmp_path, touchstone):
    (tmp_path / "empty").mkdir()
    ended = touchstone(
        f"detectors calibrate --reals {tmp_path}/empty --ensemble tiny --out {tmp_path}/card.yaml"
    )
    assert ended.code == 2
    assert "empty" in ended.err
    assert not (tmp_path / "card.yaml").exists()
