"""What a notebook shows of results: the picture, a bar per detector, and nothing that a hostile
file could put there.
"""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

import ray_app
from ray_app.errors import InputError, Status
from ray_app.inference import image_inputs, result_html
from tests.images.factory import encoded, photo

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202egpj.exe"


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_ensemble("tiny")


def pictures(html):
    """The pictures in a piece of HTML, decoded."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_result_has_its_picture_small_and_a_bar_per_detector(ensemble, tmp_path):
    large = photo(900, 300)
    (tmp_path / "large.png").write_bytes(encoded(large, "PNG"))
    data = (tmp_path / "large.png").read_bytes()
    for given in (tmp_path / "large.png", data, io.BytesIO(data), large, np.asarray(large)):
        html = ensemble.score(given)._repr_html_()
        assert [one.size for one in pictures(html)] == (
            [] if isinstance(given, io.BytesIO) else [(240, 80)]
        )
        assert html.count("<tr>") == 1
        assert all(
            words in html
            for words in (
                "touchstone-tiny",
                "no evidence found",
                "(not calibrated)",
                "A demonstration",
            )
        )
    assert large.size == (900, 300)  # and is as it was


def test_a_hostile_name_is_text(ensemble, tmp_path):
    path = tmp_path / HOSTILE.replace("/", "")
    path.write_bytes(encoded(photo(160, 120), "PNG"))
    for given in (path, [path], [path, path / "x"]):
        html = ensemble.score(given)._repr_html_()
        assert "<img src=x" not in html
        assert "\u202e" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html
    row = {
        "source": 1,
        "status": "corrupt_image",
        "detail": "<script>alert(1)</script>",
        "scores": {},
    }
    assert "<script>" not in result_html.card(row, None)


def test_no_picture_where_there_is_none_any_more_or_of_a_stream(ensemble, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(photo(160, 120), "PNG"))
    result, failed = ensemble.score(tmp_path / "a.png"), ensemble.score(b"text")
    (tmp_path / "a.png").unlink()
    assert pictures(result._repr_html_()) == []
    assert "no evidence found" in result._repr_html_()
    assert "<b>not scored</b> · unsupported_format" in failed._repr_html_()
    # The caller of a list holds its images anyway; of a stream, results would be the only ones that
    # do.
    files = [encoded(photo(160, 120, seed=seed), "PNG") for seed in range(3)]
    assert [len(pictures(one._repr_html_())) for one in ensemble.score(files)] == [1, 1, 1]
    assert [one.picture for one in ensemble.score(data for data in files)] == [None] * 3


def test_a_file_that_grew_beyond_the_limit_is_not_read_again(ensemble, tmp_path):
    (tmp_path / "a.png").write_bytes(data := encoded(photo(160, 120), "PNG"))
    picture = ensemble.score(tmp_path / "a.png").picture
    assert image_inputs.loaded_picture(picture, len(data)) == data
    with pytest.raises(InputError) as refused:
        image_inputs.loaded_picture(picture, len(data) - 1)
    assert refused.value.status == Status.IMAGE_TOO_LARGE
