"""Photographs of installed packages: there, decodable, and read without importing the package."""

import subprocess
import sys

import pytest

from ray_app.datasets.packaged_photographs import PHOTOGRAPHS, PackagedPhotograph, packaged_photographs
from ray_app.images import ImageLimits, decode_image


@pytest.mark.parametrize(("photograph", "file"), packaged_photographs(), ids=lambda one: getattr(one, "name", ""))
def test_each_is_a_picture_that_can_be_judged(photograph, file):
    pixels = decode_image(file.read_bytes(), ImageLimits()).pixels
    assert min(pixels.size) >= 256
    assert photograph.author
    assert photograph.licence


def test_scikit_learn_s_two_are_always_there():
    assert [one.name for one, _ in packaged_photographs()][:2] == ["china.jpg", "flower.jpg"]


def test_what_is_not_installed_is_left_out(tmp_path, monkeypatch):
    assert PackagedPhotograph("none", "no_such_module", "a.jpg", "nobody", "none").file() is None
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "skimage" / "data" / "coffee.png").write_bytes(b"coffee")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {one.name for one, _ in packaged_photographs()}
    assert "coffee.png" in found  # and the package's own code did not run
    assert len({one.name for one in PHOTOGRAPHS}) == len(PHOTOGRAPHS)


def test_nothing_of_the_packages_is_imported():
    code = "import sys; from ray_app.datasets.packaged_photographs import packaged_photographs as p; p(); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
