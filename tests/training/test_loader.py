import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.archives import Archive
from ray_app.datasets.config import Sampling
from ray_app.datasets.sampling import SampleOrder
from ray_app.detectors import Preprocessing
from ray_app.errors import ConfigError, StorageError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher
from ray_app.training.loader import BatchLoader, measure_real_images
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies.papers import sharpness
from tests.make.datasets import labelled
from tests.training.labelled_rows import picture, png, rows_in

SMALL = Preprocessing(resize={"mode": "squash", "size": 16})
WHOLE = Preprocessing()


def loader_of(rows: list[dict], preprocessing=SMALL, policy=None, **more) -> BatchLoader:
    return BatchLoader(labelled(rows, chunk=5), preprocessing, policy=policy, seed=3, **more)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


class Noise:
    """A policy that draws as often as the first pixel says, so that shared chance would show."""

    def __call__(self, sample, rng):
        rng.random(np.asarray(sample.image)[0, 0, 0])
        noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
        return ImageSample(Image.fromarray(noise), sample.mask, sample.label, finished=True)


class Left:
    """A policy that keeps the left half of the image and its mask."""

    def __call__(self, sample, rng):
        box = (0, 0, sample.image.width // 2, sample.image.height)
        mask = sample.mask and sample.mask.crop(box)
        return ImageSample(sample.image.crop(box), mask, sample.label)


def test_batch_has_the_rows_in_the_given_order(tmp_path):
    rows = rows_in(tmp_path)
    rows[7]["group"] = None
    asked = [7, 0, 1, 6, 1]
    batch = loader_of(rows).load(asked, range(5))
    pixels = [decode_image(png(picture(row)), ImageLimits()).pixels for row in asked]
    assert np.array_equal(batch["image"], [SMALL.prepare(one) for one in pixels])
    assert batch["label"].tolist() == [1, 0, 1, 0, 1]
    assert batch["row"].tolist() == asked
    assert batch["usable"].all()
    ids = labelled(rows)["image_id"]
    assert batch["image_id"].tolist() == [ids[row].as_py() for row in asked]
    seven, zero, one, six, again = batch["group"].tolist()
    assert zero == one == again
    assert len({seven, zero, six}) == 3


def test_unreadable_image_is_black_with_its_reason(tmp_path):
    rows = rows_in(tmp_path)
    rows[1]["uri"].write_bytes(b"")
    rows[2]["uri"].unlink()
    rows[3]["uri"].write_bytes(png(picture(3))[:200])
    batch = loader_of(rows, masks=True).load([0, 1, 2, 3, 4], range(5))
    assert batch["usable"].tolist() == [True, False, False, False, True]
    assert not batch["image"][1:4].any() | batch["mask"][1:4].any()
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]
    reasons = [detail.partition(":")[0] for detail in batch["detail"]]
    assert reasons == ["", "empty_file", "source_missing", "truncated_image", ""]


def test_chance_depends_on_seed_and_position_alone(tmp_path):
    rows = rows_in(tmp_path)
    whole = loader_of(rows, policy=Noise()).load([4, 0, 9, 9], [10, 11, 12, 13])
    assert len({image.tobytes() for image in whole["image"]}) == 4
    turned = loader_of(rows, policy=Noise()).load([9, 9, 0, 4], [13, 12, 11, 10])
    assert_same(whole, {name: values[::-1] for name, values in turned.items()})
    alone = loader_of(rows, policy=Noise()).load([9], [12])
    assert_same(alone, {name: values[2:3] for name, values in whole.items()})
    other = BatchLoader(labelled(rows), SMALL, policy=Noise(), seed=4).load([9], [12])
    assert not np.array_equal(other["image"], alone["image"])


def test_shuffled_batch_reads_no_more_than_an_ordered_one(tmp_path):
    pictures = [picture(number, (64, 64)) for number in range(100)]
    images = [png(one) for one in pictures]
    table = pa.table({"image": pa.array(images, pa.binary())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for number in range(9):
            archive.writestr(f"{number}.png", images[number])
    items = list(Archive([str(tmp_path)]))
    rows = [{"item": item, "label": "real", "generator": "real"} for item in items]
    read = []
    for order in (np.arange(109), np.random.default_rng(0).permutation(109)):
        fetcher = Fetcher()
        batch = loader_of(rows, WHOLE, fetcher=fetcher).load(order, order)
        assert np.array_equal(batch["image"], [np.asarray(pictures[row % 100]) for row in order])
        read.append(fetcher.bytes_read)
    assert read[1] == read[0]


def test_batch_copies_nothing_of_a_large_table(tmp_path):
    rows = rows_in(tmp_path, 4) * 500
    rows = [row | {"prompt": f"{number} " * 2000} for number, row in enumerate(rows)]
    table = labelled(rows, chunk=100)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        BatchLoader(table, SMALL, policy=None, seed=0).load(range(0, 2000, 250), range(8))
    finally:
        pa.set_memory_pool(default)
    assert table.nbytes > 15e6
    assert pool.max_memory() < 1e6


def test_images_of_several_sizes_make_no_batch(tmp_path):
    rows = rows_in(tmp_path)
    picture(1, (30, 9)).save(rows[1]["uri"])
    assert loader_of(rows, WHOLE).load([1], [0])["image"].shape == (1, 9, 30, 3)
    with pytest.raises(ConfigError, match="30 × 9 and 24 × 20 pixels"):
        loader_of(rows, WHOLE).load([0, 1], [0, 1])
    resized = loader_of(rows, WHOLE, policy=Noise()).load([0, 1], [0, 1])
    assert resized["image"].shape == (2, 16, 16, 3)


def test_masks_cannot_follow_a_resize_of_the_short_side(tmp_path):
    short = Preprocessing(resize={"mode": "short_side", "size": 8})
    with pytest.raises(ConfigError, match=r"resize\.mode short_side cannot resize masks"):
        loader_of(rows_in(tmp_path), short, masks=True)


def test_batch_without_any_image_needs_a_known_size(tmp_path):
    rows = rows_in(tmp_path)
    for row in rows[:2]:
        row["uri"].unlink()
    assert loader_of(rows, WHOLE).load([0, 2], [0, 1])["image"].shape == (2, 20, 24, 3)
    assert loader_of(rows, SMALL).load([0, 1], [0, 1])["image"].shape == (2, 16, 16, 3)
    with pytest.raises(StorageError, match=r"none of 2 images can be read.*source_missing"):
        loader_of(rows, WHOLE).load([0, 1], [0, 1])


def ellipse(width: int, height: int) -> np.ndarray:
    """Return the mask of golden/maskclip.md §2."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    rx, ry = width // 5, height // 6
    return (x - 3 * width // 8) ** 2 * ry**2 + (y - 5 * height // 8) ** 2 * rx**2 <= rx**2 * ry**2


def with_mask(folder, mask: np.ndarray, name: str = "mask.png") -> str:
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / name)
    return str(folder / name)


def row_with_mask(folder, image, mask):
    image.save(folder / "image.png")
    row = {"uri": folder / "image.png", "label": "fake", "generator": "g"}
    return row | {"mask_uri": with_mask(folder, mask)}


def test_masks_are_empty_for_reals_and_full_for_fakes(tmp_path):
    part = np.zeros((20, 24), bool)
    part[5:10, 3:20] = True
    rows = rows_in(tmp_path)
    rows[0]["mask_uri"] = rows[1]["mask_uri"] = with_mask(tmp_path, part)
    batch = loader_of(rows, WHOLE, masks=True).load([0, 1, 3], [0, 0, 0])
    assert [int(mask.sum()) for mask in batch["mask"]] == [0, 17 * 5, 20 * 24]
    assert np.array_equal(batch["mask"][1], part)
    assert [bool(edge.any()) for edge in batch["edge"]] == [False, True, False]
    assert set(np.unique(batch["mask"])) == set(np.unique(batch["edge"])) == {0, 1}
    assert "mask" not in loader_of(rows).load([0], [0])


def test_resized_mask_and_edge_match_the_reference(tmp_path):
    row = row_with_mask(tmp_path, picture(0, (480, 360)), ellipse(480, 360))
    squash = Preprocessing(resize={"mode": "squash", "size": 512}, resampler="opencv")
    batch = loader_of([row], squash, masks=True).load([0], [0])
    assert batch["mask"].sum() == 27_420  # golden/maskclip.md §2, case B
    assert batch["edge"].sum() == 4_120


@pytest.mark.parametrize("side", [10, 30], ids=["cropped", "padded"])
def test_masks_are_cropped_and_padded_as_images_are(tmp_path, side):
    mask = ellipse(24, 20)
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    row = row_with_mask(tmp_path, image, mask)
    batch = loader_of([row], Preprocessing(center_crop=side), masks=True).load([0], [0])
    assert batch["mask"].shape == (1, side, side)
    assert batch["mask"].any()
    assert np.array_equal(batch["mask"], batch["image"][..., 1] // 255)


def test_fake_is_real_if_its_altered_part_is_cropped_away(tmp_path):
    left, right = np.zeros((2, 20, 24), bool)
    left[:, 3], right[:, 20] = True, True
    rows = rows_in(tmp_path)
    for row, mask, name in ((1, left, "left"), (3, right, "right"), (7, left & right, "empty")):
        rows[row]["mask_uri"] = with_mask(tmp_path, mask, f"{name}.png")

    def labels(asked, policy, **more):
        loader = loader_of(rows, SMALL, policy, **more)
        return loader.load(asked, range(len(asked)))["label"].tolist()

    assert labels([1, 3, 5, 0], Left(), masks=True) == [1, 0, 1, 0]
    assert labels([1, 3, 5, 0], Left()) == [1, 1, 1, 0], "without masks, it is unknown"
    assert labels([3, 7], None, masks=True) == [1, 1], "nothing was cropped"
    assert labels([7], Left(), masks=True) == [1], "no part was lost"


def test_batch_shows_masks_that_mark_nothing_or_everything(tmp_path):
    rows = rows_in(tmp_path)
    masks = {1: np.zeros((20, 24), bool), 3: np.ones((20, 24), bool), 5: ellipse(24, 20)}
    for row, mask in masks.items():
        rows[row]["mask_uri"] = with_mask(tmp_path, mask, f"mask{row}.png")
    batch = loader_of(rows, SMALL, Left(), masks=True).load([0, 1, 3, 5, 7], range(5))
    assert batch["coverage"].tolist() == ["part", "empty", "full", "part", "part"]
    assert "coverage" not in loader_of(rows, SMALL).load([0], [0])


def test_image_without_its_own_mask_is_unusable(tmp_path):
    rows = rows_in(tmp_path)
    rows[1]["mask_uri"] = with_mask(tmp_path, np.ones((5, 5), bool))
    rows[3]["mask_uri"] = str(tmp_path / "none.png")
    batch = loader_of(rows, masks=True).load([1, 3, 5], range(3))
    assert batch["usable"].tolist() == [False, False, True]
    assert batch["detail"][0] == "corrupt_image: its mask is 5 × 5 pixels, the image 24 × 20"
    assert batch["detail"][1].startswith("source_missing: its mask: ")


@pytest.mark.parametrize("is_beside", [True, False], ids=["own-row", "other-table"])
def test_masks_in_tables_are_read(tmp_path, is_beside):
    masks = np.random.default_rng(0).random((6, 20, 24)) > 0.5
    grey = [Image.fromarray(mask.astype(np.uint8) * np.uint8(255)) for mask in masks]
    cells = [{"bytes": png(image.convert("RGB")), "path": None} for image in grey]
    images = pa.array([png(picture(number)) for number in range(6)], pa.binary())
    table = pa.table({"image": images, "mask": cells})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.table({"mask": cells}), tmp_path / "other", row_group_size=3)
    rows = []
    for number, item in enumerate(Archive([str(tmp_path / "a.parquet")])):
        other = f"{tmp_path}/other#row={number}&column=mask"
        uri = item.input["mask_uri"] if is_beside else other
        rows.append({"item": item, "label": "fake", "generator": "g", "mask_uri": uri})
    batch = loader_of(rows, WHOLE, masks=True).load([4, 0, 5, 2], range(4))
    assert np.array_equal(batch["mask"], masks[[4, 0, 5, 2]])


def test_steps_do_not_depend_on_the_number_of_workers(tmp_path):
    table = labelled(rows_in(tmp_path))
    order = SampleOrder(table, Sampling(), 1, 8)

    def load(steps, *share):
        return BatchLoader(table, SMALL, policy=Noise(), seed=1).load_steps(order, steps, *share)

    def joined(batches):
        return {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}

    whole = [load([step]) for step in range(4)]
    for step, batch in enumerate(whole):
        assert_same(batch, joined([load([step], rank, 2) for rank in range(2)]))
    assert_same(load([3, 1, 2]), joined([whole[step] for step in (3, 1, 2)]))


def test_only_real_images_are_measured(tmp_path):
    rows = rows_in(tmp_path)
    wide = picture(2, (40, 10))
    wide.save(rows[2]["uri"])
    picture(1, (99, 99)).save(rows[1]["uri"])
    rows[4]["uri"].unlink()
    found = measure_real_images(loader_of(rows), 100, 0)
    assert sorted(found.areas_px.tolist()) == [400, 480, 480, 480, 480]
    measured = [wide, *(picture(number) for number in (0, 6, 8, 10))]
    assert sorted(found.sharpness) == pytest.approx(sorted(map(sharpness, measured)))
    few = [measure_real_images(loader_of(rows), 2, seed).sharpness.tolist() for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    with pytest.raises(ConfigError, match="none of 0 real images"):
        measure_real_images(loader_of(rows[1::2]), 2, 0)
