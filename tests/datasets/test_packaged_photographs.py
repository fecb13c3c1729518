"""Photographs of installed packages: there, decodable, and read without importing the package."""

import pytest

from ray_app.images import ImageLimits, decode_image
from ray_app.scoring.demo import PackagedPhotograph, packaged_photographs


@pytest.mark.parametrize(("photograph", "file"), packaged_photographs(), ids=lambda one: getattr(one, "name", ""))
def test_each_is_a_picture_that_can_be_judged(photograph, file):
    pixels = decode_image(file.read_bytes(), ImageLimits()).pixels
    assert min(pixels.size) >= 256
    assert photograph.author
    assert photograph.licence


def test_what_is_not_installed_is_left_out(tmp_path, monkeypatch):
    assert PackagedPhotograph("none", "no_such_module", "a.jpg", "nobody", "none").file() is None
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "skimage" / "data" / "coffee.png").write_bytes(b"coffee")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {one.name for one, _ in packaged_photographs()}
    assert {"coffee.png", "china.jpg", "flower.jpg"} <= found  # and the package's own code did not run
