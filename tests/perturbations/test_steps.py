"""Steps as YAML says them: what each does is what Pillow, scipy and numpy do, and what makes no sense is refused."""

import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ray_app.perturbations import Perturbation
from ray_app.perturbations.compression import jpeg
from tests.images.factory import photo

PICTURE = photo(96, 64)


def perturbed(*steps, image=PICTURE, seed=1):
    return Perturbation(name="test", steps=steps).apply(image, seed)


def through(image, codec, **options):
    encoded = io.BytesIO()
    image.save(encoded, codec, **options)
    return Image.open(encoded).convert("RGB")


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_pillow_s_with_halved_chroma(quality):
    expected = through(PICTURE, "JPEG", quality=quality, subsampling="4:2:0")
    assert perturbed({"op": "jpeg", "quality": quality}).tobytes() == expected.tobytes()


def test_webp_is_pillow_s():
    assert perturbed({"op": "webp", "quality": 80}).tobytes() == through(PICTURE, "WEBP", quality=80).tobytes()


def test_a_quality_is_drawn_from_its_whole_range():
    found = {perturbed({"op": "jpeg", "quality": [49, 51]}, seed=seed).tobytes() for seed in range(30)}
    assert found == {jpeg(PICTURE, quality).tobytes() for quality in (49, 50, 51)}


def test_steps_follow_one_another():
    blur, codec = {"op": "blur", "sigma": 2}, {"op": "jpeg", "quality": 50}
    assert perturbed(blur, codec).tobytes() == perturbed(codec, image=perturbed(blur)).tobytes()
    assert perturbed(blur, codec).tobytes() != perturbed(codec, blur).tobytes()


@pytest.mark.parametrize(
    ("step", "size"),
    [
        ({"scale": 0.5}, (48, 32)),
        ({"short_side": 100}, (150, 100)),
        ({"long_edge": 48}, (48, 32)),
        ({"long_edge": 480}, (96, 64)),
        ({"screen": [32, 72]}, (48, 32)),
        ({"square": 20}, (20, 20)),
    ],
)
def test_resizes(step, size):
    result = perturbed({"op": "resize", "filter": "lanczos", **step})
    assert result.size == size
    assert result.tobytes() == (PICTURE.resize(size, Image.Resampling.LANCZOS) if size != PICTURE.size else PICTURE).tobytes()


def test_a_scale_that_is_drawn_stays_within_its_range():
    view = Perturbation.model_validate({"name": "drawn", "steps": [{"op": "resize", "scale": [0.5, 0.75]}]})
    widths = {view.apply(PICTURE, seed).width for seed in range(64)}
    assert 48 <= min(widths) < 52
    assert 68 < max(widths) <= 72
    assert view.apply(PICTURE, 5).tobytes() == view.apply(PICTURE, 5).tobytes()


def test_a_blur_with_kernel_and_sigma_is_not_darker():
    def mean(image):
        return np.asarray(image).mean()

    assert mean(perturbed({"op": "blur", "sigma": 1, "kernel": 9})) == pytest.approx(mean(PICTURE), abs=0.15)
    assert mean(perturbed({"op": "blur", "sigma": 1})) < mean(PICTURE) - 0.5


def test_noise_by_its_variance_is_noise_by_its_deviation():
    assert perturbed({"op": "noise", "variance": 9}).tobytes() == perturbed({"op": "noise", "sigma": 3}).tobytes()


def test_the_given_image_is_left_as_it_is():
    before = PICTURE.tobytes()
    perturbed({"op": "noise", "sigma": 9}, {"op": "blur", "sigma": 2}, {"op": "gamma", "gamma": 2}, {"op": "sharpen", "percent": 90})
    assert PICTURE.tobytes() == before


@pytest.mark.parametrize(
    "step",
    [
        {"op": "jpeg", "quality": 0},
        {"op": "jpeg", "quality": [90, 80]},
        {"op": "jpeg"},
        {"op": "resize"},
        {"op": "resize", "scale": 2, "square": 3},
        {"op": "resize", "scale": [0.9, 0.8]},
        {"op": "resize", "scale": [0, 0.8]},
        {"op": "blur"},
        {"op": "blur", "kernel": 4},
        {"op": "noise", "sigma": 1, "variance": 1},
        {"op": "crop", "share": 1.5},
        {"op": "rotate"},
        {"op": "jpeg", "quality": 80, "subsampling": 0},
    ],
)
def test_what_makes_no_sense_is_refused(step):
    with pytest.raises(ValidationError):
        Perturbation(name="test", steps=(step,))
