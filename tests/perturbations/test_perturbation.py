"""Every shipped perturbation: the same picture for the same seed, whoever applies it and beside what; any size comes back."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ray_app.config import named_configs
from ray_app.perturbations import Perturbation, load_perturbations, seed_of
from tests.images.factory import photo

SHIPPED = {f"{name}/{perturbation.name}": perturbation for name in named_configs("perturb") for perturbation in load_perturbations([name])}
DRAWING = ["standard/noise-5", "grip-social/grip-social", "imdlbenco/jpeg-49-50", "imdlbenco/noise-variance-23"]
SHA = hashlib.sha256(b"a file").hexdigest()


def digest(name, image):
    return hashlib.sha256(SHIPPED[name].apply(image, seed_of(SHA, SHIPPED[name].name)).tobytes()).hexdigest()


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 90), (201, 170)])
def test_any_size_comes_back_as_rgb(size):
    for name, perturbation in SHIPPED.items():
        result = perturbation.apply(photo(*size), 5)
        assert result.mode == "RGB", name
        assert min(result.size) >= 1, name


def test_what_is_longer_than_a_codec_allows_comes_back():
    for name, perturbation in SHIPPED.items():
        result = perturbation.apply(Image.new("RGB", (66_000, 2), (200, 100, 50)), 5)
        assert np.abs(np.asarray(result).mean(axis=(0, 1)) - (200, 100, 50)).max() < 8, name


def test_only_crops_move_what_is_in_a_picture():
    assert {name for name in SHIPPED if not SHIPPED[name].keeps_place} == {"standard/centre-75", "grip-social/grip-social"}


def test_every_perturbation_changes_a_picture():
    image = photo(201, 170)
    unchanged = {name for name in SHIPPED if SHIPPED[name].apply(image, 5).tobytes() == image.tobytes()}
    assert unchanged == {"openfake/cap-2048"}


def test_neither_order_nor_threads_show():
    image = photo(180, 200)
    expected = {name: digest(name, image) for name in SHIPPED}
    with ThreadPoolExecutor(4) as threads:
        backwards = dict(zip(reversed(SHIPPED), threads.map(lambda name: digest(name, image), reversed(SHIPPED)), strict=True))
    assert backwards == expected


def test_another_process_gives_the_same_bytes():
    code = (
        "from tests.perturbations.test_perturbation import SHIPPED, digest\n"
        "from tests.images.factory import photo\n"
        "print('\\n'.join(digest(name, photo(180, 200)) for name in SHIPPED))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "3"})
    assert done.stdout.split() == [digest(name, photo(180, 200)) for name in SHIPPED]


@pytest.mark.parametrize("name", DRAWING)
def test_another_file_is_perturbed_in_another_way(name):
    image = photo(400, 300)
    others = {SHIPPED[name].apply(image, seed_of(hashlib.sha256(bytes([n])).hexdigest(), "x")).tobytes() for n in range(8)}
    assert len(others) > 1


def test_the_seed_is_the_documented_one():
    assert seed_of("ab", "jpeg-75") == int.from_bytes(hashlib.sha256(b"abjpeg-75").digest()[:8], "big")
    assert seed_of(SHA, "one") != seed_of(SHA, "other")


@pytest.mark.parametrize("name", ["clean", "", "Über", "a b", "x" * 65])
def test_names_that_no_column_should_have(name):
    with pytest.raises(ValidationError):
        Perturbation(name=name, steps=({"op": "jpeg", "quality": 9},))
