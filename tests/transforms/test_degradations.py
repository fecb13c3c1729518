"""Degradations of one strength, NTIRE 2026's families of them at their levels, and one drawn chain
of them per file.
"""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ray_app.config import load_yaml, named_configs
from ray_app.errors import ConfigError
from ray_app.transforms import perturbations, photography
from ray_app.transforms.registry import STEPS
from tests.make.images import photo

# A weaker and a stronger strength of each.
STRENGTHS = {
    "lens-blur": (1, 4), "motion-blur": (2, 8), "glass-blur": (1, 4), "pixel-jitter": (0.1, 1), "color-shift": (1, 6),
    "saturation": (0.8, -0.4), "color-jitter": (0.1, 0.5), "color-cast": (0.05, 0.3), "channel-shift": (10, 60),
    "quantization": (20, 5), "jpeg2000": (4, 60), "impulse-noise": (0.01, 0.1), "multiplicative-noise": (0.001, 0.05),
    "speckle-noise": (0.1, 0.6), "shot-noise": (60, 3), "iso-noise": (0.02, 0.15), "brightness": (0.1, 1.1), "darkness": (0.1, 0.8),
    "contrast": (-0.3, -0.8), "tone-curve": (0.1, 0.5), "clahe": (1, 6), "pixelation": (0.01, 0.5), "moire": (0.1, 0.5),
    "watermark": (1, 6), "random-crop": (0.9, 0.5), "random-aspect-crop": (0.9, 0.3),
}  # fmt: skip
PICTURE = photo(96, 64, seed=3)


def applied(op, strength, image=PICTURE, seed=5):
    return STEPS[op](op=op, strength=strength)(image, np.random.default_rng(seed))


def change(before, after):
    """How far the values are from where they were; of a crop, the area that is lost."""
    if after.size != before.size:
        return before.width * before.height - after.width * after.height
    return np.abs(np.asarray(after, float) - np.asarray(before, float)).mean()


@pytest.mark.parametrize("name", STRENGTHS)
def test_more_strength_changes_more(name):
    given = PICTURE.tobytes()
    weak, strong = (applied(name, strength) for strength in STRENGTHS[name])
    assert 0 < change(PICTURE, weak) < change(PICTURE, strong)
    assert applied(name, STRENGTHS[name][1]).tobytes() == strong.tobytes(), "by the seed alone"
    assert PICTURE.tobytes() == given
    if STEPS[name].keeps_place:
        assert (weak.mode, weak.size) == ("RGB", PICTURE.size)


def test_any_size_comes_back():
    # JPEG 2000 needs more pixels; the view of such an image is left out.
    for name in STRENGTHS.keys() - {"jpeg2000"}:
        for size in ((1, 1), (41, 2)):
            seen = applied(name, STRENGTHS[name][1], photo(*size, seed=1))
            assert seen.mode == "RGB", name
            assert min(seen.size) >= 1, name


def test_a_lens_blur_is_the_mean_over_a_disk():
    from scipy.ndimage import convolve

    seen = np.asarray(applied("lens-blur", 1.5), float)
    fine = (np.arange(45) + 0.5) / 9 - 2.5
    disk = (np.add.outer(fine**2, fine**2) <= 1.5**2).reshape(5, 9, 5, 9).mean(axis=(1, 3))
    expected = [
        convolve(np.asarray(one, float), disk / disk.sum(), mode="nearest")
        for one in PICTURE.split()
    ]
    assert np.abs(seen - np.stack(expected, axis=-1)).max() < 0.6


def test_curves_go_through_their_points():
    for op, strength, level, expected in (
        ("brightness", 0.4, 128, 128 + 0.2 * 255),
        ("darkness", 0.4, 128, 128 - 0.2 * 255),
        ("contrast", -0.4, round(0.3 * 255), 0.35 * 255),
    ):
        flat = Image.new("RGB", (8, 8), (level, level, level))
        found = np.asarray(applied(op, strength, flat)).mean()
        assert found == pytest.approx(expected, abs=1.5), op
    assert set(np.unique(np.asarray(applied("quantization", 2)))) <= {0, 255}
    assert len(set(np.asarray(applied("saturation", 0))[0, 0].tolist())) == 1


def test_a_halftone_keeps_how_dark_a_picture_is():
    for level in (40, 128, 215):
        flat = Image.new("RGB", (60, 60), (level, level, level))
        seen = np.asarray(photography.halftone(flat, 4, 0.0))
        assert abs(seen.mean() - level) < 12
        assert seen.std() > 30  # dots


def ntire():
    return load_yaml(named_configs("perturb")["ntire-2026"], perturbations.PerturbationList)


def test_ntire_says_what_is_stated_and_what_is_ours():
    families = {one.name: one for one in ntire().families}
    stated = {
        name: next(iter(one.levels.values()))
        for name, one in families.items()
        if one.strengths == "stated"
    }
    assert stated == {  # the organisers' script, as participants publish it
        "gaussian-blur": (0.1, 0.5, 1, 2, 5), "lens-blur": (1, 2, 4, 6, 8), "color-shift": (1, 3, 6, 8, 12),
        "color-saturation": (0.4, 0.2, 0.1, 0, -0.4), "jpeg": (43, 36, 24, 7, 4),
        "white-noise": tuple(pytest.approx(65025 * share) for share in (0.001, 0.002, 0.003, 0.005, 0.01)),
        "impulse-noise": (0.001, 0.005, 0.01, 0.02, 0.03), "brighten": (0.1, 0.2, 0.4, 0.7, 1.1), "darken": (0.05, 0.1, 0.2, 0.4, 0.8),
        "pixel-jitter": (0.05, 0.1, 0.2, 0.5, 1), "color-quantization": (20, 16, 13, 10, 7),
        "linear-contrast": (0.0, 0.15, -0.4, 0.3, -0.6),
    }  # fmt: skip
    assert len(families) == 31
    assert len(ntire().absent) == 4
    assert "name 34 of the 36" in ntire().note


def test_levels_of_a_family_rise():
    for family in ntire().families:
        if family.name == "linear-contrast":
            continue
        changes = [
            change(PICTURE, family.make_step(level)(PICTURE, np.random.default_rng(2)))
            for level in range(5)
        ]
        assert changes == sorted(changes) or family.name == "perspective", (family.name, changes)
        assert changes[0] < changes[-1]


def test_a_list_of_families_is_taken_at_a_level():
    names = [view.name for view in perturbations.load_perturbations(["ntire-2026"])]
    assert names[0] == "gaussian-blur-3"
    assert len(names) == len(set(names)) == 31
    strongest = {view.name: view for view in perturbations.load_perturbations(["ntire-2026:5"])}
    assert strongest["jpeg-5"].facts() == [{"op": "jpeg", "quality": 4}]
    with pytest.raises(ConfigError, match="no such level"):
        perturbations.load_perturbations(["ntire-2026:6"])
    absent = {view.name for view in perturbations.absent_views(["ntire-2026"])}
    assert absent >= {"jpeg-ai", "wm-forger"}


def test_every_file_is_degraded_in_its_own_way():
    (view,) = perturbations.load_perturbations(["degraded"])
    assert len({view.apply(PICTURE, seed).tobytes() for seed in range(6)}) == 6
    assert view.apply(PICTURE, 3).tobytes() == view.apply(PICTURE, 3).tobytes()
    assert not view.keeps_place


def test_drawn_steps_are_in_the_identity():
    (view,) = perturbations.load_perturbations(["degraded"])
    facts = view.facts()
    again = perturbations.Perturbation(name="degraded", steps=facts)
    assert again == view
    with pytest.raises(ValidationError, match="differs from the list that made these images"):
        perturbations.Perturbation(name="degraded", steps=[facts[0] | {"digest": "0" * 16}])
    with pytest.raises(ValidationError, match="less than or equal to 64"):
        perturbations.Perturbation(name="x", steps=[{"op": "lens-blur", "strength": 99}])


@pytest.mark.parametrize(
    ("name", "kind"), [("chains", "chain"), ("attacks", "attack"), ("degraded", "degradation")]
)
def test_view_has_the_kind_of_its_list(name, kind):
    assert {view.kind for view in perturbations.load_perturbations([name])} == {kind}
