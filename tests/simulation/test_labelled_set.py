import csv
from pathlib import Path

import pytest
from PIL import Image

from tests.simulation.archive import LABELS, SPLITS, SimulatedSet, build_labelled_set

FILE_PX = {"train": 72, "test": 80}
PLAN = SimulatedSet(
    pairs={"train": 11, "test": 2},
    histories={"train": 2},
    picture_px={"train": 96, "test": 96},
    file_px=FILE_PX,
    seed=5,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_labelled_set(
        tmp_path_factory.mktemp("simulated") / "set", PLAN, processes=1
    ).parent


@pytest.fixture(scope="module")
def rows(built):
    with (built / LABELS).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_row_is_a_file_of_the_asked_size_and_names_what_only_its_split_may_draw_from(
    built, rows
):
    assert len(rows) == 2 * (11 * 2 + 2)
    for row in rows:
        image = Image.open(built / row["path"])
        side = FILE_PX[row["split"]]
        assert (image.size, image.mode) == ((side, side), "RGB")
        split, real = SPLITS[row["split"]], row["label"] == "real"
        assert row["prompt"] in split.scenes
        assert row["generator"].removeprefix("real:") in (split.cameras if real else split.decoders)
    on_disk = {
        str(path.relative_to(built))
        for split in ("train", "test")
        for path in (built / split).iterdir()
    }
    assert on_disk == {row["path"] for row in rows}


def _facts(path):
    """All that a file tells besides its pixels: container, size, mode, and for JPEG the tables that
    quality and subsampling set.
    """
    image = Image.open(path)
    return (
        image.format,
        image.size,
        image.mode,
        getattr(image, "quantization", None),
        getattr(image, "layer", None),
        sorted(image.info),
    )


def test_a_group_is_one_pair_and_metadata_of_twins_of_one_history_tell_nothing(built, rows):
    assert [row["group"] for row in rows[:8]] == ["train-000000"] * 4 + ["train-000001"] * 4
    for real, fake in zip(rows[::2], rows[1::2], strict=True):
        assert (real["label"], fake["label"]) == ("real", "fake")
        assert (real["group"], real["prompt"]) == (fake["group"], fake["prompt"])
        assert _facts(built / real["path"]) == _facts(built / fake["path"])
        assert (built / real["path"]).read_bytes() != (built / fake["path"]).read_bytes()
