import io
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
from ray_app.training.loader import BatchLoader, measure_real
from ray_app.transforms.ops import ImageSample
from ray_app.transforms.policies.papers import sharpness
from tests.datasets.tables import labelled

SMALL = Preprocessing(resize={"mode": "squash", "size": 16})
WHOLE = Preprocessing()


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    )


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def rows_in(folder, count: int = 12, **more) -> list[dict]:
    """Pairs of files: a real, a fake, …"""
    for number in range(count):
        (folder / f"{number:02}.png").write_bytes(png(picture(number)))
    return [
        {"uri": folder / f"{number:02}.png", "label": ("real", "fake")[number % 2], "generator": ("real", "g")[number % 2],
         "group": f"p{number // 2}", **more}
        for number in range(count)
    ]  # fmt: skip


def loader(
    rows: list[dict], preprocessing: Preprocessing = SMALL, policy=None, **more
) -> BatchLoader:
    return BatchLoader(labelled(rows, chunk=5), preprocessing, policy=policy, seed=3, **more)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


class Noise:
    """Draws as often as the image's first pixel says, so that images would disturb one another if
    they shared their chance.
    """

    def __call__(self, sample, rng):
        rng.random(np.asarray(sample.image)[0, 0, 0])
        noise = rng.integers(0, 256, (16, 16, 3), np.uint8)
        return ImageSample(Image.fromarray(noise), sample.mask, sample.label, finished=True)


class Left:
    """The left half of the image and its mask."""

    def __call__(self, sample, rng):
        box = (0, 0, sample.image.width // 2, sample.image.height)
        return ImageSample(
            sample.image.crop(box), sample.mask and sample.mask.crop(box), sample.label
        )


def test_a_batch_holds_what_the_rows_say_in_their_order(tmp_path):
    rows = rows_in(tmp_path)
    rows[7]["group"] = None
    asked = [7, 0, 1, 6, 1]
    batch = loader(rows).load(asked, range(5))
    table = labelled(rows)
    expected = [
        SMALL.prepare(decode_image(png(picture(row)), ImageLimits()).pixels) for row in asked
    ]
    assert np.array_equal(batch["image"], expected)
    assert batch["label"].tolist() == [1, 0, 1, 0, 1]
    assert batch["row"].tolist() == asked
    assert batch["usable"].all()
    assert batch["image_id"].tolist() == [table["image_id"][row].as_py() for row in asked]
    seven, zero, one, six, again = batch["group"].tolist()
    assert zero == one == again
    assert len({seven, zero, six}) == 3


def test_an_image_that_cannot_be_read_is_black_and_says_why(tmp_path):
    rows = rows_in(tmp_path)
    rows[1]["uri"].write_bytes(b"")
    rows[2]["uri"].unlink()
    rows[3]["uri"].write_bytes(png(picture(3))[:200])
    batch = loader(rows, masks=True).load([0, 1, 2, 3, 4], range(5))
    assert batch["usable"].tolist() == [True, False, False, False, True]
    assert not batch["image"][1:4].any() | batch["mask"][1:4].any()
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]
    assert [detail.partition(":")[0] for detail in batch["detail"]] == [
        "",
        "empty_file",
        "source_missing",
        "truncated_image",
        "",
    ]


def test_chance_is_of_the_position_alone(tmp_path):
    rows = rows_in(tmp_path)
    whole = loader(rows, policy=Noise()).load([4, 0, 9, 9], [10, 11, 12, 13])
    assert len({image.tobytes() for image in whole["image"]}) == 4
    turned = loader(rows, policy=Noise()).load([9, 9, 0, 4], [13, 12, 11, 10])
    assert_same(whole, {name: values[::-1] for name, values in turned.items()})
    alone = loader(rows, policy=Noise()).load([9], [12])
    assert_same(alone, {name: values[2:3] for name, values in whole.items()})
    other = BatchLoader(labelled(rows), SMALL, policy=Noise(), seed=4).load([9], [12])
    assert not np.array_equal(other["image"], alone["image"])


def test_a_shuffled_batch_has_its_images_in_their_slots_and_reads_no_more_of_a_table_than_one_in_order(
    tmp_path,
):
    images = [png(picture(number, (64, 64))) for number in range(100)]
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
        batch = loader(rows, WHOLE, fetcher=fetcher).load(order, order)
        assert np.array_equal(
            batch["image"],
            [np.asarray(picture(row if row < 100 else row - 100, (64, 64))) for row in order],
        )
        read.append(fetcher.bytes_read)
    assert read[1] == read[0]


def test_a_batch_takes_slices_of_the_table_and_copies_none_of_it(tmp_path):
    rows = rows_in(tmp_path, 4) * 500
    table = labelled(
        [row | {"prompt": f"{number} " * 2000} for number, row in enumerate(rows)], chunk=100
    )
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
    native = loader(rows, WHOLE)
    assert native.load([1], [0])["image"].shape == (1, 9, 30, 3)
    with pytest.raises(ConfigError, match="30 × 9 and 24 × 20 pixels"):
        native.load([0, 1], [0, 1])
    with pytest.raises(ConfigError, match="resize mode short_side"):  # which masks cannot follow
        loader(rows, Preprocessing(resize={"mode": "short_side", "size": 8}), masks=True)
    assert loader(rows, WHOLE, policy=Noise()).load([0, 1], [0, 1])["image"].shape == (2, 16, 16, 3)


def test_where_nothing_can_be_read_and_nobody_knows_the_size(tmp_path):
    rows = rows_in(tmp_path)
    for row in rows[:2]:
        row["uri"].unlink()
    assert loader(rows, WHOLE).load([0, 2], [0, 1])["image"].shape == (2, 20, 24, 3)
    assert loader(rows, SMALL).load([0, 1], [0, 1])["image"].shape == (2, 16, 16, 3)
    with pytest.raises(
        StorageError, match="not one of 2 images can be read; the first: source_missing"
    ):
        loader(rows, WHOLE).load([0, 1], [0, 1])


def ellipse(width: int, height: int) -> np.ndarray:
    """The mask of golden/maskclip.md §2."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    rx, ry = width // 5, height // 6
    return (x - 3 * width // 8) ** 2 * ry**2 + (y - 5 * height // 8) ** 2 * rx**2 <= rx**2 * ry**2


def with_mask(folder, mask: np.ndarray, name: str = "mask.png") -> str:
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(folder / name)
    return str(folder / name)


def test_masks_of_reals_of_whole_fakes_and_of_parts(tmp_path):
    part = np.zeros((20, 24), bool)
    part[5:10, 3:20] = True
    rows = rows_in(tmp_path)
    rows[0]["mask_uri"] = rows[1]["mask_uri"] = with_mask(tmp_path, part)
    batch = loader(rows, WHOLE, masks=True).load([0, 1, 3], [0, 0, 0])
    assert [int(mask.sum()) for mask in batch["mask"]] == [0, 17 * 5, 20 * 24]
    assert np.array_equal(batch["mask"][1], part)
    assert [bool(edge.any()) for edge in batch["edge"]] == [False, True, False]
    assert set(np.unique(batch["mask"])) == set(np.unique(batch["edge"])) == {0, 1}
    assert "mask" not in loader(rows).load([0], [0])


def test_mask_and_edge_have_the_reference_s_pixels_after_the_resize(tmp_path):
    rows = [
        {
            "uri": tmp_path / "a.png",
            "label": "fake",
            "generator": "g",
            "mask_uri": with_mask(tmp_path, ellipse(480, 360)),
        }
    ]
    picture(0, (480, 360)).save(tmp_path / "a.png")
    squash = Preprocessing(resize={"mode": "squash", "size": 512}, resampler="opencv")
    batch = loader(rows, squash, masks=True).load([0], [0])
    assert batch["mask"].sum() == 27_420  # golden/maskclip.md §2, case B
    assert batch["edge"].sum() == 4_120


@pytest.mark.parametrize("side", [10, 30])
def test_masks_are_cropped_and_padded_as_images_are(tmp_path, side):
    mask = ellipse(24, 20)
    rows = [
        {
            "uri": with_mask(tmp_path, mask, "image.png"),
            "label": "fake",
            "generator": "g",
            "mask_uri": with_mask(tmp_path, mask),
        }
    ]
    batch = loader(rows, Preprocessing(center_crop=side), masks=True).load([0], [0])
    assert batch["mask"].shape == (1, side, side)
    assert batch["mask"].any()
    assert np.array_equal(batch["mask"], batch["image"][..., 1] // 255)


def test_a_fake_whose_altered_part_was_cropped_away_is_real_and_one_with_an_empty_mask_stays_fake(
    tmp_path,
):
    left, right = np.zeros((2, 20, 24), bool)
    left[:, 3], right[:, 20] = True, True
    rows = rows_in(tmp_path)
    for row, mask, name in (
        (1, left, "left.png"),
        (3, right, "right.png"),
        (7, left & right, "empty.png"),
    ):
        rows[row]["mask_uri"] = with_mask(tmp_path, mask, name)
    asked = ([1, 3, 5, 0], range(4))
    assert loader(rows, SMALL, Left(), masks=True).load(*asked)["label"].tolist() == [1, 0, 1, 0]
    assert loader(rows, SMALL, Left()).load(*asked)["label"].tolist() == [1, 1, 1, 0], (
        "without masks, nobody can tell"
    )
    assert loader(rows, SMALL, masks=True).load([3, 7], [0, 1])["label"].tolist() == [1, 1], (
        "nothing was cropped"
    )
    assert loader(rows, SMALL, Left(), masks=True).load([7], [0])["label"].tolist() == [1], (
        "no part was lost"
    )


def test_batches_show_masks_that_mark_nothing_or_everything(tmp_path):
    rows = rows_in(tmp_path)
    for row, mask in (
        (1, np.zeros((20, 24), bool)),
        (3, np.ones((20, 24), bool)),
        (5, ellipse(24, 20)),
    ):
        rows[row]["mask_uri"] = with_mask(tmp_path, mask, f"mask{row}.png")
    batch = loader(rows, SMALL, Left(), masks=True).load([0, 1, 3, 5, 7], range(5))
    assert batch["coverage"].tolist() == ["part", "empty", "full", "part", "part"]
    assert "coverage" not in loader(rows, SMALL).load([0], [0])


def test_a_mask_of_another_size_or_none_at_all_makes_an_image_unusable(tmp_path):
    rows = rows_in(tmp_path)
    rows[1]["mask_uri"] = with_mask(tmp_path, np.ones((5, 5), bool))
    rows[3]["mask_uri"] = str(tmp_path / "none.png")
    batch = loader(rows, masks=True).load([1, 3, 5], range(3))
    assert batch["usable"].tolist() == [False, False, True]
    assert batch["detail"][0] == "corrupt_image: its mask is 5 × 5 pixels, the image 24 × 20"
    assert batch["detail"][1].startswith("source_missing: its mask: ")


@pytest.mark.parametrize(
    "is_beside", [True, False], ids=["of the image's own row", "of another table"]
)
def test_masks_in_tables(tmp_path, is_beside):
    masks = np.random.default_rng(0).random((6, 20, 24)) > 0.5
    cells = [
        {
            "bytes": png(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).convert("RGB")),
            "path": None,
        }
        for mask in masks
    ]
    images = pa.array([png(picture(number)) for number in range(6)], pa.binary())
    pq.write_table(
        pa.table({"image": images, "mask": cells}), tmp_path / "a.parquet", row_group_size=2
    )
    pq.write_table(pa.table({"mask": cells}), tmp_path / "other", row_group_size=3)
    rows = [
        {"item": item, "label": "fake", "generator": "g",
         "mask_uri": item.input["mask_uri"] if is_beside else f"{tmp_path}/other#row={number}&column=mask"}
        for number, item in enumerate(Archive([str(tmp_path / "a.parquet")]))
    ]  # fmt: skip
    batch = loader(rows, WHOLE, masks=True).load([4, 0, 5, 2], range(4))
    assert np.array_equal(batch["mask"], masks[[4, 0, 5, 2]])


def test_steps_are_the_same_for_any_number_of_workers_and_one_by_one(tmp_path):
    table = labelled(rows_in(tmp_path))
    order = SampleOrder(table, Sampling(), 1, 8)
    make = lambda: BatchLoader(table, SMALL, policy=Noise(), seed=1)  # noqa: E731
    whole = [make().load_steps(order, [step]) for step in range(4)]
    for step, batch in enumerate(whole):
        shares = [make().load_steps(order, [step], rank, 2) for rank in range(2)]
        assert_same(
            batch, {name: np.concatenate([share[name] for share in shares]) for name in batch}
        )
    several = make().load_steps(order, [3, 1, 2])
    assert_same(
        several,
        {name: np.concatenate([whole[step][name] for step in (3, 1, 2)]) for name in several},
    )


def test_real_images_are_measured_and_fakes_are_not(tmp_path):
    rows = rows_in(tmp_path)
    picture(2, (40, 10)).save(rows[2]["uri"])
    picture(1, (99, 99)).save(rows[1]["uri"])
    rows[4]["uri"].unlink()
    found = measure_real(loader(rows), 100, 0)
    assert sorted(found.areas_px.tolist()) == [400, 480, 480, 480, 480]
    expected = [
        sharpness(picture(2, (40, 10))),
        *(sharpness(picture(number)) for number in (0, 6, 8, 10)),
    ]
    assert sorted(found.sharpness) == pytest.approx(sorted(expected))
    few = [measure_real(loader(rows), 2, seed).sharpness.tolist() for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    with pytest.raises(ConfigError, match="none of 0 real images"):
        measure_real(loader(rows[1::2]), 2, 0)
