"""The engine: the same scores, verdicts, and masks as the library, and refusals that cost one image."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

import ray_app
from ray_app.serving import ServeConfig
from ray_app.serving.engine import MAX_SILENT_IMAGES, Engine, ScoreRequest
from tests.make.images import encoded, photo
from tests.serving.in_process import answers_of

REAL_WORLD = Path(__file__).resolve().parents[3] / "shared" / "realworld"
POINTS = [
    {"rate": 0.01, "threshold": 4.0, "false_positive_rate": 0.01, "upper_bound": 0.02, "recall": 0.3},
    {"rate": 0.1, "threshold": -9.0, "false_positive_rate": 0.1, "upper_bound": 0.12, "recall": 0.9},
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The engine of the ensemble `tiny`, and of one with two operating points."""
    path = tmp_path_factory.mktemp("points") / "points.yaml"
    card = {
        "name": "points",
        "title": "Two operating points",
        "members": [{"detector": "touchstone-tiny"}],
        "thresholds": {"real_below": 0.0, "fake_above": 2.0},
        "operating_points": POINTS,
    }
    path.write_text(yaml.safe_dump(card))
    with closing(Engine(ServeConfig(ensembles=("tiny", str(path))))) as engine:
        yield engine


@pytest.fixture(scope="module")
def file():
    return encoded(photo(seed=3), "JPEG")


@pytest.mark.skipif(not REAL_WORLD.is_dir(), reason="needs the photographs of ../shared")
def test_scores_equal_the_library_to_the_bit(tiny):
    paths = [path for path in sorted(REAL_WORLD.rglob("*")) if path.is_file()]
    files = [path.read_bytes() for path in paths if path.suffix in (".jpg", ".png", ".webp")][:40]
    expected = ray_app.load_ensemble("tiny").score(files)
    for answer, result in zip(answers_of(tiny, files), expected, strict=True):
        assert answer.score == result.score
        assert answer.verdict == result.verdict


def test_score_does_not_depend_on_its_batch(tiny):
    files = [encoded(photo(seed=seed), "PNG") for seed in range(5)]
    together = [answer.score for answer in answers_of(tiny, files)]
    alone = [answers_of(tiny, [data])[0].score for data in files]
    assert together == alone


def test_detectors_agree_with_the_library(several, file):
    card, names = several
    config = ServeConfig(ensembles=(str(card),), accept_licences=names)
    files = [file, encoded(photo(400, 300, seed=8), "PNG")]
    with closing(Engine(config)) as engine:
        answers = answers_of(engine, files, masks=True)
    library = ray_app.load_ensemble(str(card), accept_licences=names)
    for answer, expected in zip(answers, library.score(files), strict=True):
        for name in ("scores", "verdict", "verdict_reason", "verdict_detail"):
            assert getattr(answer, name) == getattr(expected, name), name
        assert {name for name, mask in expected.masks.items() if mask is not None} == {"maskclip"}
        assert {name for name, one in answer.detectors.items() if one.mask} == {"maskclip"}


def test_optional_detector_has_no_part_in_the_verdict(several, file):
    card, names = several
    config = ServeConfig(
        ensembles=("tiny",),
        optional_detectors=(str(card.with_name("unifd.yaml")),),
        accept_licences=names,
    )
    with closing(Engine(config)) as engine:
        [plain] = answers_of(engine, [file])
        [asked] = answers_of(engine, [file], detectors=("unifd",))
    assert (plain.score, plain.verdict) == (asked.score, asked.verdict)
    assert list(plain.detectors) == ["touchstone-tiny"]
    assert asked.detectors["unifd"].beside
    assert asked.scores["unifd"] is not None


def test_operating_point_decides_by_its_thresholds(tiny, file):
    options = [{}, {"fpr": 0.01}, {"fpr": 0.1}]
    answers = [answers_of(tiny, [file], ensemble="points", **one)[0] for one in options]
    [other] = answers_of(tiny, [file])
    assert len({answer.score for answer in answers}) == 1
    assert [answer.verdict == "fake" for answer in answers] == [False, False, True]
    assert len({answer.ensemble.fingerprint for answer in [*answers, other]}) == 4
    assert [answer.ensemble.fpr for answer in answers] == [None, 0.01, 0.1]
    assert "about 1 %" in answers[1].error_rates
    assert "about 10 %" in answers[2].error_rates


def test_images_of_several_ensembles_share_a_call(tiny, file):
    requests = [
        ScoreRequest(file),
        ScoreRequest(file, ensemble="points"),
        ScoreRequest(b"no image"),
    ]
    answers = tiny.answer([tiny.decode(request) for request in requests])
    assert [answer.ensemble for answer in answers] == ["tiny", "points", "tiny"]
    assert [answer.status for answer in answers] == [200, 200, 415]
    assert answers[2].refused == "unsupported_format"


def test_image_on_which_a_detector_raises_costs_no_other(tiny, file):
    images = [tiny.decode(ScoreRequest(encoded(photo(seed=seed), "PNG"))) for seed in range(3)]
    spoilt = next(iter(images[1].pixels))
    images[1].pixels[spoilt] = np.zeros((3, 5, 2), np.uint8)
    answers = tiny.answer(images)
    assert [answer.refused for answer in answers] == [None, "detector_failed", None]
    [expected] = answers_of(tiny, [encoded(photo(seed=2), "PNG")])
    assert json.loads(answers[2].body)["score"] == expected.score


def test_refused_image_among_several_is_an_answer(tiny):
    [image] = [tiny.decode(ScoreRequest(b"", is_alone=False))]
    (answer,) = tiny.answer([image])
    body = json.loads(answer.body)
    assert (answer.status, body["status"], body["verdict"]) == (200, "empty_file", None)
    assert body["error"]["code"] == "empty_file"


def test_images_without_a_score_in_a_row_are_counted(tiny, file, monkeypatch):
    real = tiny._scorer.score

    def silent(batches, only=None):
        outputs = real(batches, only)
        for column in outputs.scores.values():
            column[:] = np.nan
        return outputs

    monkeypatch.setattr(tiny._scorer, "score", silent)
    while tiny.silent_images < MAX_SILENT_IMAGES:
        tiny.answer([tiny.decode(ScoreRequest(file)) for _ in range(tiny.slots)])
    monkeypatch.undo()
    answers_of(tiny, [file])
    assert tiny.silent_images == 0
