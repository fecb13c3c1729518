"""Runs of real images with the masks that a test gives, made without a detector, and labels."""

import io
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_app.archives import read_block, read_blocks
from ray_app.errors import Status
from ray_app.images import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, judge
from ray_app.runs import MASK_SCHEMA, current_tables, result_rows
from ray_app.runs.schema import VIEWED_MASK_SCHEMA
from tests.make.images import photo
from tests.make.small_run import NAME, SPEC, finish, new_run, relist


@dataclass
class Picture:
    """One image of the archive. `masks`: by system and view (None = clean), (h, w) uint8. `truth`:
    (H, W) bool, kept as a PNG.
    """

    size: tuple[int, int] = (60, 40)
    label: str = "fake"
    generator: str = "sd"
    kind: str = "local"
    truth: np.ndarray | None = None
    masks: dict = field(default_factory=dict)
    mask_uri: str | None = None


def write_archive(folder, pictures):
    """The pictures as PNG files; truths as `NAME.mask.png` in a folder beside them."""
    (folder / "archive").mkdir(parents=True)
    (folder / "truths").mkdir()
    for name, picture in pictures.items():
        photo(*picture.size).save(folder / "archive" / name)
        if picture.truth is not None:
            place = folder / "truths" / name
            Image.fromarray(picture.truth.astype(np.uint8) * np.uint8(255)).save(place)
            picture.mask_uri = str(place)


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def masked_run(folder, pictures, *, source=None, name_of=None):
    """A run whose rows and masks stand in its files as scoring writes them. `name_of`: a member's
    row → its key in `pictures`.
    """
    name_of = name_of or (lambda row: row["uri"].rpartition("/")[2])
    run = new_run(folder / "run")
    relist(run, source or folder / "archive")
    for ref in read_blocks(run.store, 0):
        members = read_block(run.store, ref)
        mine = [pictures[name_of(row)] for row in members.to_pylist()]
        outcomes = [
            DecodeResult(Status.OK, None, ImageFileFacts("0" * 64, "PNG", *picture.size))
            for picture in mine
        ]
        scores = {NAME: np.zeros(len(mine), np.float32)}
        scored = judge(SPEC, outcomes, DetectorOutputs.clean(scores=scores))
        rows = [
            {"image_id": image_id, "detector": system, "view": view, "png": png(mask)}
            | {"width": picture.size[0], "height": picture.size[1]}
            for image_id, picture in zip(members["image_id"].to_pylist(), mine, strict=True)
            for (system, view), mask in picture.masks.items()
        ]
        if rows:
            schema = VIEWED_MASK_SCHEMA if any(row["view"] for row in rows) else MASK_SCHEMA
            run.write_sidecar("masks", 0, ref.block, pa.Table.from_pylist(rows, schema))
        facts = {"attempt": 1, "scored_at": datetime(2026, 1, 1, tzinfo=UTC)}
        run.write_part(0, ref.block, result_rows(members, scored, **facts))
    finish(run)
    return run


def joined(run, pictures, *, name_of=None, without=()):
    """What an evaluation hands on: the labelled rows with the columns asked for."""
    name_of = name_of or (lambda row: row["uri"].rpartition("/")[2])

    def tables(columns):
        for table in current_tables(run, ["image_id", "uri", "member"]):
            rows = [
                row | vars(pictures[name_of(row)])
                for row in table.to_pylist()
                if name_of(row) not in without
            ]
            yield pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])

    return tables
