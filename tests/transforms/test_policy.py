"""What every policy keeps: the same draws give the same image, the mask goes where the image goes,
and no image is too odd.
"""

import io
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import laplace

from ray_app.errors import ConfigError
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies.papers import (
    RealStatistics,
    load_statistics,
    save_statistics,
    sharpness,
)
from ray_app.transforms.policy import POLICIES, Augmentation, make_policy
from tests.make.images import photo
from tests.transforms.given import STATISTICS, marked, rng, seen_and_told

SIDE = 64
# Policies that give every image its final size.
FINAL = {"community-forensics": {}, "openfake-v2": {}, "cnndetection": {}, "flips": {"crop": SIDE}}


def policy_of(name, side=SIDE, **arguments):
    augmentation = Augmentation(policy=name, arguments=FINAL.get(name, {}) | arguments)
    return make_policy(augmentation, side=side, statistics=STATISTICS)


def same(one: ImageSample, other: ImageSample) -> bool:
    first, second = (
        (sample.image.tobytes(), sample.mask and sample.mask.tobytes(), sample[2:])
        for sample in (one, other)
    )
    return first == second


@pytest.mark.parametrize("name", POLICIES)
def test_same_draws_give_the_same_image_under_any_global_seed(name):
    policy = policy_of(name)
    for seed in range(6):
        first = policy(marked(), rng(seed))
        for reseed in (torch.manual_seed, np.random.seed, random.seed):
            reseed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
        again = pickle.loads(pickle.dumps(policy))(marked(), rng(seed))
        assert same(first, again)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tobytes(), random.getstate()) == before[1:]


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "none"])
def test_other_draws_give_other_images_and_no_mask(name):
    policy = policy_of(name)
    results = [policy(ImageSample(photo(96, 80), None, 1), rng(seed)) for seed in range(30)]
    assert len({result.image.tobytes() for result in results}) > 5
    assert {(result.label, result.mask) for result in results} == {(1, None)}


@pytest.mark.parametrize("name", POLICIES)
def test_the_mask_goes_where_the_image_goes(name):
    policy = policy_of(name, side=160)
    apart = []
    for seed in range(40):
        sample = marked(320, 240)
        before = sample.image.tobytes(), sample.mask.tobytes()
        result = policy(sample, rng(seed))
        assert (sample.image.tobytes(), sample.mask.tobytes()) == before, "the sample changed"
        assert (result.image.mode, result.mask.mode, result.label) == ("RGB", "L", 1)
        assert result.image.size == result.mask.size
        seen, told = seen_and_told(result)
        # Filters and codecs smear a pixel or two on either side of an outline that is 3 % of the
        # picture.
        apart.append((seen != told).mean())
    assert np.mean(apart) < (1e-9 if name in ("none", "flips") else 0.025)
    assert max(apart) < 0.09


@pytest.mark.parametrize("name", POLICIES)
def test_any_size_comes_back(name):
    policy = policy_of(name)
    for size in ((1, 1), (1, 300), (30_000, 2), (61, 97)):
        for seed in range(2):
            sample = ImageSample(photo(*size), Image.new("L", size, 255), 1)
            result = policy(sample, rng(seed))
            assert result.image.mode == "RGB", size
            assert result.image.size == result.mask.size, size
            assert result.finished == (name in FINAL), size
            if name in FINAL:
                assert result.image.size == (SIDE, SIDE), size


@pytest.mark.parametrize("name", ["community-forensics", "openfake-v2", "cnndetection"])
def test_network_s_side_is_the_crop_unless_the_recipe_has_one(name):
    sample = ImageSample(photo(200, 150), None, 1)
    assert policy_of(name, side=48)(sample, rng(0)).image.size == (48, 48)
    assert policy_of(name, side=48, crop=40)(sample, rng(0)).image.size == (40, 40)
    with pytest.raises(ConfigError, match=f"augmentation {name}: crop: missing"):
        policy_of(name, side=None)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("flips", {"mirrors": True}, "mirrors: unknown key — did you mean 'mirror'"),
        ("cnndetection", {"probability": 1.5}, "probability: .*less than or equal to 1"),
        ("cnndetection", {"short_side": 50}, r"short_side must be at least `crop` \(64\)"),
        ("community-forensics", {"repeats": [2, 1]}, "must be an ascending range"),
        ("maskclip", {"crop": 3}, "crop: unknown key"),
    ],
)
def test_a_wrong_argument_is_named(name, arguments, message):
    with pytest.raises(ConfigError, match=f"augmentation {name}: .*{message}"):
        policy_of(name, **arguments)


def test_openfake_v1_alone_reads_statistics_and_needs_them(tmp_path):
    with pytest.raises(ValueError, match="requires policy openfake-v1, got flips"):
        Augmentation(policy="flips", statistics="real.npz")
    with pytest.raises(ConfigError, match="needs statistics of real images"):
        make_policy(Augmentation(policy="openfake-v1"), side=256)
    place = tmp_path / "real.npz"
    save_statistics(place, RealStatistics(np.array([50 * 50]), np.array([1e9])))
    arguments = {"statistics": str(place), "arguments": {"probability": 1}}
    policy = make_policy(Augmentation(policy="openfake-v1", **arguments), side=256)
    assert policy(ImageSample(photo(100, 100), None, 1), rng(0)).image.size == (50, 50)


def test_sharpness_is_the_variance_of_the_laplacian():
    image = photo(96, 64)
    assert sharpness(image) == pytest.approx(
        laplace(np.asarray(image.convert("L")).astype(float), mode="mirror").var()
    )
    assert sharpness(image.filter(ImageFilter.GaussianBlur(1))) < sharpness(image) / 3
    assert np.isfinite([sharpness(photo(*size)) for size in ((1, 1), (1, 9), (9, 1))]).all()


def test_statistics_are_read_in_the_authors_form_and_in_ours(tmp_path):
    place = tmp_path / "real_train_stats.npz"
    sizes = np.array([[671, 740], [480, 640], [1, 1]])
    np.savez(place, blur_vals=np.array([78.0, 645.0]), res_vals=sizes)
    read = load_statistics(place)
    assert read.areas_px.tolist() == [671 * 740, 480 * 640, 1]
    assert read.sharpness.tolist() == [78.0, 645.0]
    mine = RealStatistics(np.array([5, 7]), np.array([1.5, 0.0, 3.0]))
    save_statistics(tmp_path / "mine.npz", mine)
    kept = load_statistics(tmp_path / "mine.npz")
    assert (kept.areas_px.tolist(), kept.sharpness.tolist()) == ([5, 7], [1.5, 0.0, 3.0])


def written(saved=np.savez, **arrays):
    stream = io.BytesIO()
    saved(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04 cut short", id="cut"),
        pytest.param(written(np.save, arr=np.ones(3)), id="one array"),
        pytest.param(written(blur_vals=np.ones(2)), id="no sizes"),
        pytest.param(written(blur_vals=np.ones(2), res_vals=np.ones(4, int)), id="flat sizes"),
        pytest.param(written(blur_vals=np.array([{}]), res_vals=np.ones(4)), id="objects"),
        pytest.param(None, id="absent"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "other.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.npz"):
        load_statistics(tmp_path / "other.npz")


def test_impossible_statistics_are_refused():
    for areas, blur in (([], [1]), ([0], [1]), ([4], [-1]), ([4], [np.nan]), ([[4]], [1])):
        with pytest.raises(ConfigError, match="statistics of real images"):
            RealStatistics(np.array(areas, np.int64), np.array(blur, float))
