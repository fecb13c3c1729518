"""HTML of results in a notebook: image, a bar per detector, and nothing from a hostile file."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import ray_app
from ray_app.errors import InputError, Status
from ray_app.inference import image_inputs, result_html
from tests.make.images import encoded, photo

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202egpj.exe"


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_ensemble("tiny")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo(160, 120), "PNG"))
    return path


def pictures(html):
    """Return the images in a piece of HTML, decoded."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_result_shows_a_small_image_and_a_bar_per_detector(ensemble, tmp_path):
    large = photo(900, 300)
    data = encoded(large, "PNG")
    (tmp_path / "large.png").write_bytes(data)
    for given in (tmp_path / "large.png", data, io.BytesIO(data), large, np.asarray(large)):
        html = ensemble.score(given)._repr_html_()
        sizes = [] if isinstance(given, io.BytesIO) else [(240, 80)]
        assert [one.size for one in pictures(html)] == sizes
        assert html.count("<tr>") == 1
        for text in ("touchstone-tiny", "no evidence found", "(not calibrated)", "A demonstration"):
            assert text in html
    assert large.size == (900, 300)


def test_hostile_name_and_detail_are_text(ensemble, tmp_path):
    path = tmp_path / HOSTILE.replace("/", "")
    path.write_bytes(encoded(photo(160, 120), "PNG"))
    for given in (path, [path], [path, path / "x"]):
        html = ensemble.score(given)._repr_html_()
        assert "<img src=x" not in html
        assert "\u202e" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
    row = {"source": 1, "status": "corrupt_image", "detail": "<script>alert(1)</script>"}
    assert "<script>" not in result_html.card(row | {"scores": {}}, None)


def test_result_of_a_deleted_file_has_no_image(ensemble, file):
    result = ensemble.score(file)
    file.unlink()
    assert pictures(result._repr_html_()) == []
    assert "no evidence found" in result._repr_html_()


def test_failed_result_shows_its_status(ensemble):
    html = ensemble.score(b"text")._repr_html_()
    assert "<b>not scored</b> · unsupported_format" in html


def test_results_of_a_stream_hold_no_images(ensemble):
    """The caller of a list holds its images anyway."""
    files = [encoded(photo(160, 120, seed=seed), "PNG") for seed in range(3)]
    assert [len(pictures(one._repr_html_())) for one in ensemble.score(files)] == [1, 1, 1]
    assert [one.picture for one in ensemble.score(data for data in files)] == [None] * 3


def test_file_that_grew_over_the_limit_is_not_read_again(ensemble, file):
    data = file.read_bytes()
    picture = ensemble.score(file).picture
    assert image_inputs.load_picture(picture, len(data)) == data
    with pytest.raises(InputError) as refused:
        image_inputs.load_picture(picture, len(data) - 1)
    assert refused.value.status == Status.IMAGE_TOO_LARGE
