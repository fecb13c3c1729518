"""Images with masks and what labels say of them, side by side. Knows runs, manifests and labels; reads no pixels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.archives import Member, iter_blocks, manifests, member_rows, read_block
from ray_app.runs import RunDirectory

COLUMNS = ("image_id", "label", "generator", "kind", "mask_uri")
Kind = Literal["real", "whole", "local"]


class MaskTruth(NamedTuple):
    """What labels say of where an image was altered. `kind`: real, whole (generated as a whole) or local (altered where its mask says)."""

    kind: Kind
    generator: str
    mask_uri: str | None


class MaskTruths:
    """Labels by image id, from tables with `COLUMNS`: some 20 bytes each, and the places of masks."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        pieces = [_columns(table) for table in tables]
        whole = pa.concat_tables(pieces, promote_options="permissive").unify_dictionaries().combine_chunks() if pieces else None
        ids = np.empty(0, np.int64) if whole is None else whole["image_id"].to_numpy()
        order = np.argsort(ids)
        self._ids: npt.NDArray[np.int64] = ids[order]
        self._rows = None if whole is None else whole.take(pa.array(order))

    def of(self, image_ids: Sequence[int]) -> dict[int, MaskTruth]:
        """Those of these images that are labelled."""
        if self._rows is None:
            return {}
        asked = np.unique(np.array(image_ids, np.int64))
        places = np.minimum(np.searchsorted(self._ids, asked), len(self._ids) - 1)
        rows = self._rows.take(pa.array(places[self._ids[places] == asked])).to_pylist()
        return {row["image_id"]: _truth(row) for row in rows}


@dataclass(frozen=True)
class MaskedImage:
    """One labelled image with all its masks, as rows of `masks/`; `member` carries what `datasets.masks` asks for."""

    member: Member
    truth: MaskTruth
    masks: list[dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image that was scored."""
        return self.masks[0]["width"], self.masks[0]["height"]


def has_masks(run: RunDirectory) -> bool:
    """Whether any detector of a run said where."""
    return bool(run.store.folders("masks"))


def masked_images(run: RunDirectory, truths: MaskTruths) -> Iterator[MaskedImage | None]:
    """Every image of a run that has masks, a block in memory at a time; None in place of one without a label.

    Only current rows are labelled, so masks of members that vanished are among those without.
    """
    for manifest in manifests(run.store):
        with_masks = {int(name.removesuffix(".parquet")) for name in run.store.names(f"masks/{manifest:05d}")}
        for ref in iter_blocks(run.store, manifest):
            if ref.block in with_masks and len(masks := run.block_masks(manifest, ref.block)):
                members = {member.image_id: member for member in member_rows(read_block(run.store, ref))}
                yield from _of_block(masks, members, truths)


def _of_block(masks: pa.Table, members: dict[int, Member], truths: MaskTruths) -> Iterator[MaskedImage | None]:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in masks.to_pylist():
        by_image.setdefault(row["image_id"], []).append(row)
    labelled = truths.of(list(by_image))
    for image_id, rows in by_image.items():
        truth = labelled.get(image_id)
        if truth is None:
            yield None
            continue
        said = {"label": "real" if truth.kind == "real" else "fake", "mask_uri": truth.mask_uri}
        yield MaskedImage(replace(members[image_id], input=said), truth, rows)


def _columns(table: pa.Table) -> pa.Table:
    """`COLUMNS`, places of masks with room for more than 2 GiB of them."""
    told = table.select(COLUMNS)
    return told.set_column(COLUMNS.index("mask_uri"), "mask_uri", told["mask_uri"].cast(pa.large_string()))


def _truth(row: dict[str, Any]) -> MaskTruth:
    if row["label"] == "real":
        return MaskTruth("real", row["generator"] or "real", None)
    is_local = row["mask_uri"] is not None or row["kind"] == "local"
    return MaskTruth("local" if is_local else "whole", row["generator"] or "unknown", row["mask_uri"])
