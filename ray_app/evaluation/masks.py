"""Images with masks beside their labels (`masked_images`), and each mask measured against its truth (`MaskMeasurer`).

Masks are measured at the network's size and at the image's own.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.typing import NDArray

from ray_app.archives import ManifestMember, iter_blocks, manifests, member_rows, read_block
from ray_app.datasets.masks import MaskReader
from ray_app.errors import ConfigError, InputError, Status
from ray_app.images import ImageLimits
from ray_app.metrics.localization import THRESHOLD, MaskFigures, PixelLevels
from ray_app.runs import RunDirectory, mask_image
from ray_app.storage import Fetcher

COLUMNS = ("image_id", "label", "generator", "kind", "mask_uri")
Kind = Literal["real", "whole", "local"]
RESIZING = {
    "network": "truth to the network's size by its nearest pixel (rounded down, as OpenCV's INTER_NEAREST): it stays black and white, and "
    "is what OpenSDI and IMDLBenCo compare with",
    "original": "mask to the image's size, bilinearly, as `touchstone masks` writes it: its steps become slopes, no truth is lost",
}
_WORKERS, _AHEAD = 4, 16
T = TypeVar("T")
R = TypeVar("R")


class MaskTruth(NamedTuple):
    """Where an image was altered, by its labels. `kind`: real, whole (generated as a whole) or local (altered where its mask says)."""

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
    """One labelled image with all its masks, as rows of `masks/`; `member` carries what `datasets.masks` needs."""

    member: ManifestMember
    truth: MaskTruth
    masks: list[dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image that was scored."""
        return self.masks[0]["width"], self.masks[0]["height"]


class MaskMeasurement(NamedTuple):
    """One mask of an image. `network`, `original` (None where not requested): at the requested threshold; `half`: network size, at ½, where
    that is another threshold.
    """

    system: str
    view: str | None
    network: MaskFigures
    original: MaskFigures | None
    half: MaskFigures | None


@dataclass(frozen=True)
class UnreadableMask:
    """Why an image's truth is not known: nothing of it is measured."""

    image: MaskedImage
    status: str
    detail: str


class MaskMeasurer:
    """Reads truths and measures masks. Safe to share between threads: each keeps the tables open that it reads masks from.

    `at_original`: the kinds of images that are measured at their own size, too.
    """

    def __init__(self, fetcher: Fetcher, limits: ImageLimits, *, threshold: float, at_original: Collection[Kind]) -> None:
        self._fetcher, self._limits, self._threshold, self._at_original = fetcher, limits, threshold, at_original
        self._own = threading.local()

    def measure(self, image: MaskedImage) -> list[MaskMeasurement] | UnreadableMask:
        """All masks of one image."""
        try:
            truth = self.truth(image)
        except InputError as refused:
            return UnreadableMask(image, refused.status, refused.detail)
        except ConfigError as error:
            return UnreadableMask(image, "no_reference", error.message)
        return [self._measured(row, truth, image) for row in image.masks]

    def truth(self, image: MaskedImage) -> NDArray[np.uint8]:
        """(H, W) at the image's own size, 255 where it was altered. Raises InputError or ConfigError where that is not known."""
        if image.truth.kind == "local" and image.truth.mask_uri is None:
            raise InputError(Status.SOURCE_MISSING, "a local edit without a mask: where it was altered is not known")
        if not hasattr(self._own, "reader"):
            self._own.reader = MaskReader(self._fetcher, self._limits)
        truth: NDArray[np.uint8] = np.asarray(self._own.reader.read(image.member, image.size))
        return truth

    def _measured(self, row: dict[str, Any], truth: NDArray[np.uint8], image: MaskedImage) -> MaskMeasurement:
        small = np.asarray(mask_image(row, stretched=False)[0])
        levels = PixelLevels.of(small, nearest(truth, small.shape))
        original = None
        if image.truth.kind in self._at_original:
            original = PixelLevels.of(np.asarray(mask_image(row, stretched=True)[0]), truth).figures(self._threshold)
        half = None if self._threshold == THRESHOLD else levels.figures(THRESHOLD)
        return MaskMeasurement(row["detector"], row.get("view"), levels.figures(self._threshold), original, half)


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


def nearest(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mask (H, W) at another size (h, w): of each new pixel the old one at its upper left corner, as OpenCV's INTER_NEAREST."""
    rows, columns = (np.arange(new) * old // new for old, new in zip(truth.shape, shape, strict=True))
    smaller: NDArray[np.uint8] = truth[rows][:, columns]
    return smaller


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work` gives of each, in their order, from a few threads that are a few items ahead: masks are waited for, not computed."""
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="masks") as pool:
        running: deque[Future[R]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > _AHEAD:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _of_block(masks: pa.Table, members: dict[int, ManifestMember], truths: MaskTruths) -> Iterator[MaskedImage | None]:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in masks.to_pylist():
        by_image.setdefault(row["image_id"], []).append(row)
    labelled = truths.of(list(by_image))
    for image_id, rows in by_image.items():
        truth = labelled.get(image_id)
        if truth is None:
            yield None
            continue
        label = {"label": "real" if truth.kind == "real" else "fake", "mask_uri": truth.mask_uri}
        yield MaskedImage(replace(members[image_id], input=label), truth, rows)


def _columns(table: pa.Table) -> pa.Table:
    """`COLUMNS`, places of masks with room for more than 2 GiB of them."""
    labels = table.select(COLUMNS)
    return labels.set_column(COLUMNS.index("mask_uri"), "mask_uri", labels["mask_uri"].cast(pa.large_string()))


def _truth(row: dict[str, Any]) -> MaskTruth:
    if row["label"] == "real":
        return MaskTruth("real", row["generator"] or "real", None)
    is_local = row["mask_uri"] is not None or row["kind"] == "local"
    return MaskTruth("local" if is_local else "whole", row["generator"] or "unknown", row["mask_uri"])
