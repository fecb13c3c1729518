"""Detectors of which it is known where they look: the map has to say it, and the deletion test has to know when it does not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ray_app.detectors import DetectorCard, Preprocessing
from ray_app.detectors.detector import Detector
from ray_app.errors import InputError, Status
from ray_app.inference.occlusion import RANDOM_ORDERS, STEPS, PixelBox, RegionView, _Eraser, explain, view_of
from ray_app.reports.explanation import explanation_figure

SIDE = 112
SQUASH = {"resize": {"mode": "squash", "size": SIDE}}
BLACK, MIRROR = {"center_crop": SIDE}, {"center_crop": SIDE, "pad": "mirror"}


class Planted(nn.Module):
    """Sums up the differences between neighbouring pixels, in regions (top, bottom, left, right) of the prepared image and nowhere else."""

    def __init__(self, *regions, gain=30.0, offset=0.0):
        super().__init__()
        self.regions, self.gain, self.offset = regions, gain, offset
        self.images = 0

    def forward(self, pixels):
        self.images += len(pixels)
        detail = pixels.mean(dim=1).diff(dim=2).abs()
        found = [detail[:, top:bottom, left:right].mean(dim=(1, 2)) for top, bottom, left, right in self.regions]
        return (self.gain * torch.stack(found).amax(dim=0) + self.offset)[:, None]


def planted(network, preprocessing=SQUASH, *, sign=1, **card):
    described = {
        "name": "planted", "title": "A detector of which it is known where it looks", "family": "residual",
        "preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], **preprocessing}, "output": {"sign": sign},
        "weights": {"uri": "none.safetensors", "unverified": "has none"}, "licence": "Apache-2.0", "citation": "none",
        "source": "this test", "training_data": {"name": "none", "licence": "none"}, **card,
    }  # fmt: skip
    return Detector(DetectorCard.model_validate(described), network, fake=0, device="cpu", precision="fp32", resize="exact", slots=4,
                    weights_sha256="0" * 64)  # fmt: skip


def noise(width=SIDE, height=SIDE, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


REGION = (64, 80, 24, 40)  # two by two cells of a grid of 14


@pytest.mark.parametrize(("sign", "side"), [(1, 1), (-1, -1)])
def test_the_map_peaks_where_the_detector_looks_and_passes(sign, side):
    found = explain(planted(Planted(REGION), sign=sign), noise())
    assert found.map.shape == (14, 14)
    assert found.map.dtype == np.float32
    assert found.side == side
    inside = np.zeros((14, 14), bool)
    inside[8:10, 3:5] = True
    peak = np.abs(found.map).max()
    assert (side * found.map[inside] > 0.5 * peak).all()
    around = np.zeros((14, 14), bool)
    around[7:11, 2:6] = True
    np.testing.assert_allclose(found.map[~around], 0, atol=1e-4)
    value, box = found.strongest
    assert value == pytest.approx(side * peak)
    assert 24 <= box.left * SIDE < box.right * SIDE <= 40.001
    assert 64 <= box.top * SIDE < box.bottom * SIDE <= 80.001
    assert found.faithful
    assert side * found.area < (side * found.random_areas).min() - 1
    assert found.words().startswith("Deletion test passed: ")
    assert f"{found.area:+.2f} in the map's order" in found.words()
    assert f"{found.random_areas.mean():+.2f} in 19 random orders" in found.words()


def test_the_curves_go_from_the_score_to_everything_deleted():
    detector = planted(Planted(REGION))
    found = explain(detector, noise())
    assert found.score == detector.score(detector.prepare(noise())[None])[0]
    assert found.deletion.shape == (STEPS + 1,)
    assert found.random_deletions.shape == (RANDOM_ORDERS, STEPS + 1)
    assert set(found.random_deletions[:, 0]) | {found.deletion[0]} == {np.float32(found.score)}
    assert set(found.random_deletions[:, -1]) == {found.deletion[-1]}
    assert found.deletion[-1] < 0.1 * found.score


def test_a_detector_that_ignores_the_image_has_no_reliable_map():
    found = explain(planted(Planted(REGION, gain=0.0, offset=2.0)), noise())
    assert found.score == 2.0
    np.testing.assert_array_equal(found.map, 0)
    assert not found.faithful
    assert found.words().startswith("Nothing to show: the strongest region moves the score of +2.00 by 0.00 only, so the map")
    np.testing.assert_array_equal(np.asarray(found.overlay(noise())), np.asarray(noise()))


def test_effects_that_are_negligible_against_the_score_are_no_map_even_if_deletion_confirms_them():
    """As of a detector whose score of 10.38 no region moves by more than 0.01."""
    found = explain(planted(Planted(REGION)), noise())
    weak, offset = 0.01 / np.abs(found.map).max(), 10.38 - found.score
    curves = {"deletion": found.deletion + offset, "random_deletions": found.random_deletions + offset}
    small = replace(found, score=10.38, map=weak * found.map, **curves)
    assert small.is_deletion_passed
    assert (small.negligible, small.faithful) == (True, False)
    assert small.words().startswith("Nothing to show: the strongest region moves the score of +10.38 by 0.01 only, so the map")
    assert small.as_dict()["negligible"] is True
    assert small.as_dict()["strongest"] == {"effect": pytest.approx(0.01), "least": pytest.approx(0.1038)}
    np.testing.assert_array_equal(np.asarray(small.overlay(noise())), np.asarray(noise()))
    page = np.asarray(explanation_figure(small, Image.new("L", (336, 336), 128).convert("RGB"), "planted")).astype(int)
    assert not ((page.max(axis=2) - page.min(axis=2) > 60) & (page[..., 1] > page[..., 0])).any(), "nothing is green"
    assert not (page[118:698, 640:1220].max(axis=2) - page[118:698, 640:1220].min(axis=2)).any(), "nor is anything drawn over the picture"


def test_colours_tell_how_much_of_the_score_hangs_on_a_region():
    found = explain(planted(Planted(REGION)), noise())
    assert found.full_colour == np.abs(found.map).max(), "more than a tenth of the score hangs on its strongest region"
    sure = replace(found, score=100.0)
    assert sure.full_colour == 10
    surplus = [np.ptp(np.asarray(one.overlay(noise())).astype(int), axis=2).max() for one in (found, sure)]
    assert surplus[1] < 0.5 * surplus[0]


def test_a_map_that_misses_evidence_which_is_there_twice_is_found_out():
    halves = Planted((0, 112, 0, 40), (0, 112, 72, 112))
    image = np.asarray(noise()).copy()
    image[:, 72:] = image[:, :40]
    found = explain(planted(halves), Image.fromarray(image))
    assert np.abs(found.map).max() < 0.05 * found.score  # occluding one half leaves the other's score
    assert not found.faithful


def test_a_map_no_better_than_a_random_order_fails():
    found = explain(planted(Planted(REGION)), noise())
    for order in found.random_deletions:
        assert not replace(found, deletion=order).faithful
    barely = replace(found, deletion=found.random_deletions[0], random_deletions=found.random_deletions[:1] + 0.001)
    assert not barely.faithful


def test_the_same_question_has_the_same_answer_and_another_seed_other_orders():
    detector = planted(Planted(REGION))
    first, second, third = (explain(detector, noise(), grid=6, seed=seed) for seed in (0, 0, 1))
    assert first.as_dict() == second.as_dict()
    np.testing.assert_array_equal(first.map, third.map)
    assert not np.array_equal(first.random_deletions, third.random_deletions)


def test_the_cost_is_told_first_and_is_what_is_paid():
    network = Planted(REGION)
    told = []
    found = explain(planted(network), noise(), announce=lambda cost: told.append((cost, network.images)))
    [(cost, before)] = told
    assert cost == found.cost
    assert cost.passes == 1 + 14 * 14 + 20 * 9 + 1
    assert before <= 16
    assert cost.passes - 1 <= network.images - before <= cost.passes + 3  # the last batch is filled up
    assert 0 < cost.seconds < 60


SHAPES = [
    ("squash", {"resize": {"mode": "squash", "size": 96}}, (300, 200)),
    ("short side and crop", {"resize": {"mode": "short_side", "size": 128}, "center_crop": 96}, (301, 200)),
    ("short side and crop, upright", {"resize": {"mode": "short_side", "size": 128}, "center_crop": 112}, (211, 407)),
    ("crop", {"center_crop": 128}, (301, 222)),
    ("crop, padded on all sides", {"center_crop": 256}, (121, 90)),
    ("crop, padded above and below", {"center_crop": 128}, (303, 90)),
    ("crop, mirrored", {"center_crop": 200, "pad": "mirror"}, (121, 150)),
    ("as it is", {}, (301, 222)),
    ("thumbnail", {"resize": {"mode": "thumbnail", "size": 150}}, (301, 222)),
    ("thumbnail and crop", {"resize": {"mode": "thumbnail", "size": 150}, "center_crop": 120}, (301, 222)),
    ("thumbnail in a corner", {"resize": {"mode": "thumbnail", "size": 150}, "center_crop": 160, "pad": "corner"}, (222, 301)),
    ("thumbnail first", {"resize": {"mode": "short_side", "size": 128, "thumbnail_first": 200}, "center_crop": 96}, (431, 300)),
]


@pytest.mark.parametrize(("preprocessing", "size"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
@pytest.mark.parametrize("place", [(0.5, 0.5), (0.42, 0.61), (0.6, 0.4)])
def test_prepared_pixels_are_led_back_to_where_they_came_from(preprocessing, size, place):
    described = Preprocessing.model_validate(preprocessing)
    width, height = size
    left, top = round(place[0] * width), round(place[1] * height)
    image = np.zeros((height, width, 3), np.uint8)
    image[top - 5 : top + 5, left - 5 : left + 5] = 255
    prepared = described.prepare(Image.fromarray(image))
    view = view_of(described, Image.fromarray(image), prepared)
    region = PixelBox(*map(round, view.prepared))
    inside = prepared[region.top : region.bottom, region.left : region.right, 0].astype(float)
    rows, columns = np.mgrid[: inside.shape[0], : inside.shape[1]] + 0.5
    x = view.image.left + (columns * inside).sum() / inside.sum() / inside.shape[1] * (view.image.right - view.image.left)
    y = view.image.top + (rows * inside).sum() / inside.sum() / inside.shape[0] * (view.image.bottom - view.image.top)
    # To a pixel of the image, of which a prepared one may show more than two.
    assert (x * width, y * height) == pytest.approx((left, top), abs=1.0)


@pytest.mark.parametrize(("preprocessing", "size"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
def test_what_is_called_unseen_does_not_reach_the_detector_and_the_rest_does(preprocessing, size):
    described = Preprocessing.model_validate(preprocessing)
    view = view_of(described, noise(*size), described.prepare(noise(*size)))
    width, height = size
    left, right = math.floor(view.image.left * width) - 4, math.ceil(view.image.right * width) + 4
    top, bottom = math.floor(view.image.top * height) - 4, math.ceil(view.image.bottom * height) + 4
    image = np.full((height, width, 3), 255, np.uint8)
    image[max(top, 0) : bottom, max(left, 0) : right] = 90  # with the few pixels around that a filter reaches
    region = PixelBox(*map(round, view.prepared))
    seen = described.prepare(Image.fromarray(image))[region.top : region.bottom, region.left : region.right]
    assert (seen == 90).all()
    inset = image.copy()
    inset[max(top, 0) + 12 : bottom - 12, max(left, 0) + 12 : right - 12] = 255
    assert (described.prepare(Image.fromarray(inset)) == 255).any()


def test_black_padding_is_not_explained():
    detector = planted(Planted((0, 20, 0, 112), offset=1.0), BLACK)
    found = explain(detector, noise(64, 48))
    assert found.view.prepared == PixelBox(24, 32, 88, 80)
    np.testing.assert_array_equal(found.map, 0)
    assert not found.faithful


def test_a_mirrored_region_is_explained_by_what_it_mirrors():
    reflection = (8, 16, 56, 64)  # of image rows 16 to 24 and columns 32 to 40: the image lies at 32 (rows) and 24 (columns)
    found = explain(planted(Planted(reflection), MIRROR), noise(64, 48), grid=7)
    _, box = found.strongest
    assert 26 <= box.left * 64 < box.right * 64 <= 46
    assert 10 <= box.top * 48 < box.bottom * 48 <= 30
    assert found.faithful


def test_images_of_their_own_size_get_cells_that_are_about_square():
    network = Planted((30, 60, 200, 240))
    found = explain(planted(network, {}), noise(320, 90), grid=6)
    assert found.map.shape == (3, 11)
    _, box = found.strongest
    assert 180 <= box.left * 320 < box.right * 320 <= 260
    assert found.faithful


def test_an_image_of_a_few_pixels_still_has_an_answer():
    found = explain(planted(Planted((0, 4, 0, 5)), {}), noise(6, 5))
    assert found.map.shape == (1, 1)
    assert not found.faithful  # one cell has but one order


def test_an_occluded_copy_has_no_new_edges():
    class Sharpest(nn.Module):
        def forward(self, pixels):
            return pixels.mean(dim=1).diff(dim=2).abs().amax(dim=(1, 2))[:, None] * 255

    ramp = np.linspace(20, 230, SIDE)[None, :, None] * np.ones((SIDE, 1, 3))
    bands = ramp + 12 * np.sin(np.arange(SIDE) / 3)[:, None, None]
    found = explain(planted(Sharpest()), Image.fromarray(bands.round().astype(np.uint8)))
    assert found.score <= 3
    assert (found.score - found.map).max() <= 8  # grey levels; a black patch makes steps of up to 230, a grey one of 105


def test_no_score_is_an_input_error_and_not_a_map():
    with pytest.raises(InputError, match="no finite score for 1 of 1") as told:
        explain(planted(Planted(REGION, offset=math.nan)), noise())
    assert told.value.status is Status.DETECTOR_FAILED


def test_beyond_the_megapixels_of_the_card_nothing_is_scored():
    network = Planted(REGION)
    with pytest.raises(InputError, match=r"planted: 112 × 112, above the valid range \(0.01 megapixels\)") as told:
        explain(planted(network, {}, valid_range={"max_megapixels": 0.01}), noise())
    assert told.value.status is Status.IMAGE_TOO_LARGE
    assert network.images == 0


def test_below_the_smallest_side_a_detector_that_keeps_sizes_scores_nothing():
    network = Planted((0, 20, 0, 20))
    with pytest.raises(InputError, match=r"planted: 90 × 40, below the valid range \(64 px\)") as told:
        explain(planted(network, {}, valid_range={"min_side_px": 64}), noise(90, 40))
    assert told.value.status is Status.DETECTOR_FAILED
    assert network.images == 0


def test_one_that_resizes_is_explained_outside_its_valid_range_as_it_is_scored_there():
    limits = {"min_side_px": 64, "max_megapixels": 0.001}
    assert explain(planted(Planted(REGION), valid_range=limits), noise(90, 40), grid=3).faithful


@pytest.mark.parametrize(("size", "shape"), [((3906, 8), (1, 196)), ((8, 3906), (196, 1)), ((2000, 26), (2, 98)), ((700, 500), (12, 16))])
def test_a_strip_has_no_more_cells_than_a_square(size, shape):
    pixels = np.asarray(noise(*size))
    view = RegionView(PixelBox(0, 0, *size), PixelBox(0, 0, 1, 1))
    assert _Eraser(pixels, view, "black", 14).shape == shape


def test_the_overlay_is_red_for_fake_and_blue_for_real_in_the_image_s_own_geometry():
    image = noise(336, 224)
    for sign, strong, weak in ((1, 0, 2), (-1, 2, 0)):
        found = explain(planted(Planted(REGION), sign=sign), image)
        drawn = np.asarray(found.overlay(image)).astype(int)
        assert drawn.shape == (224, 336, 3)
        surplus = drawn[..., strong] - drawn[..., weak]
        assert surplus[132:156, 78:114].min() > 60  # the region at 2 × (64…80) and 3 × (24…40), without its fading rim
        assert surplus[:100].max() == 0
        assert surplus[:, 155:].max() == 0


def test_what_a_crop_leaves_out_is_hatched():
    image = Image.new("RGB", (200, 140), (90, 90, 90))
    found = explain(planted(Planted((40, 70, 40, 70), offset=1.0), {"center_crop": 100}), image)
    heat, seen = found.heat(*image.size)
    expected = np.zeros((140, 200), bool)
    expected[20:120, 50:150] = True
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(heat[~seen], 0)
    drawn = np.asarray(found.overlay(image))
    assert len(np.unique(drawn[seen])) == 1
    assert len(np.unique(drawn[~seen])) == 2


def test_a_crop_of_the_explained_image_shows_the_same_map():
    found = explain(planted(Planted((40, 70, 40, 70)), {"center_crop": 100}), noise(200, 140))
    heat, seen = found.heat(200, 140)
    part, part_seen = found.cropped(PixelBox(0.2, 0.1, 0.8, 0.9)).heat(120, 112)
    np.testing.assert_allclose(part, heat[14:126, 40:160], atol=1e-6)
    np.testing.assert_array_equal(part_seen, seen[14:126, 40:160])
