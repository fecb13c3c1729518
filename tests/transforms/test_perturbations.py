"""Shipped lists are those of their sources, and give the same picture for the same seed; steps are
what Pillow, scipy and numpy do.
"""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ray_app.config import load_yaml, named_configs
from ray_app.errors import ConfigError
from ray_app.transforms.ops import jpeg
from ray_app.transforms.perturbations import (
    Perturbation,
    PerturbationList,
    load_perturbations,
    seed_of,
)
from tests.make.images import photo

JPEG, BLUR = {"op": "jpeg"}, {"op": "blur"}
CAP = {"op": "resize", "long_edge": 2048, "filter": "lanczos"}
KERNELS = (3, 7, 11, 15, 19, 23)
LISTS = {
    "sidbench": [
        *([JPEG | {"quality": quality}] for quality in (95, 90, 50, 30)),
        *([BLUR | {"sigma": sigma}] for sigma in (2, 4)),
        [BLUR | {"sigma": 2}, JPEG | {"quality": 50}],
    ],
    "univfd": [
        *([JPEG | {"quality": quality}] for quality in range(100, 29, -10)),
        *([BLUR | {"sigma": sigma}] for sigma in (1, 2, 3, 4)),
    ],
    "openfake": [[CAP], *([CAP, JPEG | {"quality": quality}] for quality in (90, 75, 50, 25))],
    "imdlbenco": [
        *([BLUR | {"kernel": kernel}] for kernel in KERNELS),
        *([{"op": "noise", "variance": variance}] for variance in KERNELS),
        *([JPEG | {"quality": [quality - 1, quality]}] for quality in range(50, 101, 10)),
    ],
    "grip-social": [
        [
            {"op": "random-square", "low": 160, "high": 2048, "share": 5 / 8},
            {"op": "resize", "square": 200, "filter": "lanczos-or-bicubic"},
            JPEG | {"quality": [65, 100]},
        ]
    ],
    "same-history": [
        [{"op": "resize", "long_edge": 1024, "filter": "lanczos"}, JPEG | {"quality": 90}]
    ],
}


@pytest.mark.parametrize("name", LISTS)
def test_published_list_is_as_its_source_states(name):
    assert [perturbation.facts() for perturbation in load_perturbations([name])] == LISTS[name]


@pytest.mark.parametrize("name", named_configs("perturb"))
def test_shipped_list_names_its_source(name):
    listed = load_yaml(named_configs("perturb")[name], PerturbationList)
    assert listed.name == name
    assert len(listed.source) > 20


def test_lists_that_share_a_perturbation_have_it_once():
    names = [one.name for one in load_perturbations(["sidbench", "univfd"])]
    assert len(names) == len(set(names)) == 7 + 12 - 5


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["nothing"], "no such perturbation"),
        (["jpeg:"], "jpeg needs a number"),
        (["jpeg:75+rotate:3"], "rotate:3 is not a step"),
        (["jpeg:[9"], "not a number"),
        (["clean"], "no such perturbation"),
    ],
)
def test_unknown_list_or_step_is_refused(names, told):
    with pytest.raises(ConfigError, match=told) as refused:
        load_perturbations(names)
    assert "--perturb" in str(refused.value)


def test_one_name_for_two_things_is_refused(tmp_path):
    path, one = tmp_path / "mine.yaml", "{name: jpeg-95, steps: [{op: jpeg, quality: 94}]}"
    path.write_text(f"name: mine\nsource: me\nperturbations: [{one}]\n")
    with pytest.raises(ConfigError, match="two different perturbations are called jpeg-95"):
        load_perturbations(["standard", str(path)])
    path.write_text(f"name: mine\nsource: me\nperturbations: [{one}, {one}]\n")
    with pytest.raises(ConfigError, match="two perturbations are called jpeg-95"):
        load_perturbations([str(path)])


OF_STRENGTH = {"ntire-2026", "degraded", "chains", "attacks"}  # see test_degradations
SHIPPED = {
    f"{name}/{perturbation.name}": perturbation
    for name in named_configs("perturb")
    if name not in OF_STRENGTH
    for perturbation in load_perturbations([name])
}


def test_only_crops_move_what_is_in_a_picture():
    pictured = {"photographs/screenshot-1080", "photographs/rephotographed", "everyday/screenshot"}
    moving = {name for name in SHIPPED if not SHIPPED[name].keeps_place}
    assert moving == {"standard/centre-75", "grip-social/grip-social", *pictured}


def test_the_seed_is_the_documented_one():
    documented = hashlib.sha256(b"abjpeg-75").digest()[:8]
    assert seed_of("ab", "jpeg-75") == int.from_bytes(documented, "big")
    assert seed_of("ab", "one") != seed_of("ab", "other")


PICTURE = photo(96, 64)


def perturbed(*steps, image=PICTURE, seed=1):
    return Perturbation(name="test", steps=steps).apply(image, seed)


def through(image, codec, **options):
    encoded = io.BytesIO()
    image.save(encoded, codec, **options)
    return Image.open(encoded).convert("RGB")


def test_codecs_are_pillow_s_with_halved_chroma():
    expected = through(PICTURE, "JPEG", quality=75, subsampling="4:2:0")
    assert perturbed({"op": "jpeg", "quality": 75}).tobytes() == expected.tobytes()
    expected = through(PICTURE, "WEBP", quality=80)
    assert perturbed({"op": "webp", "quality": 80}).tobytes() == expected.tobytes()


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
    expected = PICTURE.resize(size, Image.Resampling.LANCZOS)  # a copy if the size is the same
    assert (result.size, result.tobytes()) == (size, expected.tobytes())


def test_blur_with_a_kernel_is_not_darker():
    def mean(image):
        return np.asarray(image).mean()

    blurred = perturbed({"op": "blur", "sigma": 1, "kernel": 9})
    assert mean(blurred) == pytest.approx(mean(PICTURE), abs=0.15)
    assert mean(perturbed({"op": "blur", "sigma": 1})) < mean(PICTURE) - 0.5


def test_variance_is_the_square_of_a_deviation():
    by_variance = perturbed({"op": "noise", "variance": 9})
    assert by_variance.tobytes() == perturbed({"op": "noise", "sigma": 3}).tobytes()


@pytest.mark.parametrize("name", ["clean", "", "Über", "a b", "x" * 65])
def test_invalid_name_is_refused(name):
    with pytest.raises(ValidationError):
        Perturbation(name=name, steps=({"op": "jpeg", "quality": 9},))


@pytest.mark.parametrize(
    "step",
    [
        {"op": "jpeg", "quality": 0},
        {"op": "jpeg", "quality": [90, 80]},
        {"op": "resize"},
        {"op": "resize", "scale": 2, "square": 3},
        {"op": "resize", "scale": [0.9, 0.8]},
        {"op": "blur"},
        {"op": "noise", "sigma": 1, "variance": 1},
        {"op": "crop", "share": 1.5},
        {"op": "rotate"},
        {"op": "merge-exposures", "stops": 5},
        {"op": "show", "screen": [1080]},
        {"op": "tilt", "most": 0.5},
        {"op": "levels", "black": 200, "white": 100},
        {"op": "jpeg", "quality": 80, "subsampling": 0},
    ],
)
def test_invalid_step_is_refused(step):
    with pytest.raises(ValidationError):
        Perturbation(name="test", steps=(step,))


@pytest.fixture
def own_steps(tmp_path, monkeypatch):
    """A module `own_steps` with functions that a step can call."""
    (tmp_path / "own_steps.py").write_text(
        "import numpy as np\nfrom PIL import Image\n\n"
        "def add(image, amount):\n    return Image.fromarray(np.asarray(image) // 2 + np.uint8(amount))\n\n"
        "def draw(image, rng):\n    return Image.new('L', image.size, int(rng.integers(256)))\n\n"
        "def fail(image):\n    return np.asarray(image)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_own_step_gets_image_arguments_and_generator(own_steps):
    added = perturbed({"op": "call", "path": "own_steps:add", "arguments": {"amount": 7}})
    assert np.array_equal(np.asarray(added), np.asarray(PICTURE) // 2 + 7)
    view = Perturbation.model_validate(
        {"name": "own", "steps": [{"op": "call", "path": "own_steps:draw"}]}
    )
    assert view.apply(PICTURE, 5).mode == "RGB"
    assert view.apply(PICTURE, 5).tobytes() == view.apply(PICTURE, 5).tobytes()
    assert len({view.apply(PICTURE, seed).getpixel((0, 0)) for seed in range(9)}) > 3
    assert not view.keeps_place
    assert Perturbation(name="own", steps=view.facts()) == view


@pytest.mark.parametrize("size", [(1, 1), (2, 90), (201, 170), (66_000, 2)])
def test_any_size_comes_back_changed_as_rgb(size):
    image, given, unchanged = photo(*size), photo(*size).tobytes(), set()
    for name, perturbation in SHIPPED.items():
        result = perturbation.apply(image, 5)
        assert result.mode == "RGB", name
        assert min(result.size) >= 1, name
        if result.tobytes() == given:
            unchanged.add(name)
    assert image.tobytes() == given, "the given image was changed"
    assert unchanged == {"openfake/cap-2048"} or min(size) < 170


def test_views_do_not_depend_on_order_or_threads():
    image = photo(180, 200)

    def view(name):
        return SHIPPED[name].apply(image, seed_of("ab", SHIPPED[name].name)).tobytes()

    expected = {name: view(name) for name in SHIPPED}
    with ThreadPoolExecutor(4) as threads:
        backwards = dict(zip(reversed(SHIPPED), threads.map(view, reversed(SHIPPED)), strict=True))
    assert backwards == expected


def test_value_is_drawn_from_its_whole_range():
    step = {"op": "jpeg", "quality": [49, 51]}
    found = {perturbed(step, seed=seed).tobytes() for seed in range(30)}
    assert found == {jpeg(PICTURE, quality).tobytes() for quality in (49, 50, 51)}
    step = {"op": "resize", "scale": [0.5, 0.75]}
    widths = {perturbed(step, seed=seed).width for seed in range(64)}
    assert 48 <= min(widths) < 52
    assert 68 < max(widths) <= 72


def refusal(folder, step):
    """What the load of a list with this step says."""
    listed = {"name": "mine", "source": "me", "perturbations": [{"name": "a", "steps": [step]}]}
    (folder / "mine.yaml").write_text(json.dumps(listed))
    with pytest.raises(ConfigError) as refused:
        load_perturbations([str(folder / "mine.yaml")])
    return str(refused.value)


@pytest.mark.parametrize(
    "step",
    [
        {"op": "vae", "model": "x"},
        {"op": "img2img", "model": "x", "strength": 0.1},
        {"op": "alter", "share": 0.2},
    ],
)
def test_retired_step_names_its_replacement(step, tmp_path):
    told = f"op {step['op']} is retired: use {{op: call, path: MODULE:FUNCTION}}"
    assert told in refusal(tmp_path, step)


def test_own_step_that_fails_is_named(own_steps, tmp_path):
    with pytest.raises(TypeError, match="own_steps:fail returned ndarray, not a PIL image"):
        perturbed({"op": "call", "path": "own_steps:fail"})
    for path in ("no_such_module:add", "json:no_such_function"):
        told = refusal(tmp_path, {"op": "call", "path": path})
        assert f"{path} cannot be imported" in told
