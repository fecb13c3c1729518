"""The Python door: the same score whatever way an image comes in."""

import io

import numpy as np
import pytest
from PIL import Image

import ray_app
from ray_app.errors import ConfigError, Reason, Status
from tests.images.factory import encoded, flat, jpeg, photo


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_ensemble("tiny")


def test_bytes_paths_and_pil_images_score_alike(ensemble, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg())
    image = Image.open(io.BytesIO(jpeg()))
    results = list(ensemble.score([jpeg(), path, str(path), image]))
    assert {result.status for result in results} == {Status.OK}
    assert len({result.score for result in results}) == 1
    assert results[0].probability == pytest.approx(1 / (1 + np.exp(-results[0].score)))
    assert results[0].calibrated is False
    assert results[0].facts.sha256 == results[1].facts.sha256


def test_one_result_per_image_in_order_whatever_it_is(ensemble):
    results = list(ensemble.score([jpeg(), b"", "/no/such/file.jpg", b"text", jpeg()]))
    assert [result.status.value for result in results] == ["ok", "empty_file", "source_missing", "unsupported_format", "ok"]
    assert results[0].score == results[4].score
    for result in results[1:4]:
        assert (result.verdict, result.score, result.probability) == (None, None, None)
        assert result.scores == {"touchstone-tiny": None}


def test_nothing_in_nothing_out(ensemble):
    assert list(ensemble.score([])) == []


def test_as_a_callable_it_adds_columns(ensemble):
    batch = {"bytes": np.array([jpeg(), b"text"], dtype=object), "id": np.array([1, 2])}
    out = ensemble(batch)
    assert list(out["id"]) == [1, 2]
    assert list(out["status"]) == ["ok", "unsupported_format"]
    assert out["verdict"][1] is None
    assert np.isnan(out["probability"][1])
    assert out["score_touchstone-tiny"][0] == pytest.approx(out["score"][0])


def test_one_detector_is_an_ensemble_of_its_own(ensemble):
    alone = ray_app.load_detector("touchstone-tiny")
    assert alone.score(jpeg()).score == ensemble.score(jpeg()).score
    assert alone.spec.ensemble.thresholds.fake_above == 0.0


def test_an_unknown_ensemble_is_a_config_error():
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        ray_app.load_ensemble("defualt")


def test_an_image_below_the_valid_range_abstains_with_its_score(ensemble):
    buffer = io.BytesIO()
    photo(40, 40).save(buffer, "PNG")
    result = ensemble.score(buffer.getvalue())
    assert (result.status, result.verdict) == (Status.OK, "abstain")
    assert result.verdict_reason is Reason.OUT_OF_RANGE
    assert "valid range" in result.verdict_detail
    assert result.score is not None


def test_a_picture_that_shows_nothing_abstains_by_whatever_way_it_comes(ensemble, tmp_path):
    grey = flat(128, 300, 200)
    (tmp_path / "grey.png").write_bytes(encoded(grey, "PNG"))
    for result in ensemble.score([encoded(grey, "PNG"), tmp_path / "grey.png", grey, encoded(grey, "JPEG")]):
        assert (result.verdict, result.verdict_reason, result.verdict_detail) == ("abstain", Reason.NO_CONTENT, None)
        assert "no_content" in result.facts.flags
        assert result.score > 4


def test_a_bug_of_ours_is_a_result_and_a_log_line(ensemble, monkeypatch, caplog):
    monkeypatch.setattr("ray_app.inference.decoder.decode_image", lambda *_: 1 / 0)
    [result] = ensemble.score([jpeg()])
    assert (result.status, result.verdict) == (Status.DECODER_CRASHED, None)
    assert "image 0: this is a bug in Touchstone" in caplog.text
    assert "ZeroDivisionError" in caplog.text
