"""Measure predicted masks of altered pixels against true masks (`measure_localization`).

`iter_masked_images` yields the images for which the run has masks, with their labels.
`MaskMeasurer` measures each predicted mask against the true mask. It compares the masks at the size
of the network's output and at the size of the image. Overlays are small versions of the images
whose masks agree worst and best with the truth, for the report.
"""

import base64
import io
import threading
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from ray_app.archives import (
    ManifestMember,
    MemberReader,
    list_complete_manifests,
    load_guard,
    read_block,
    read_blocks,
    rows_to_members,
)
from ray_app.datasets.mask_pixels import Coverage, CoverageTally, measure_coverage
from ray_app.datasets.masks import MaskReader
from ray_app.errors import ConfigError, InputError, Status, TouchstoneError
from ray_app.evaluation import join, protocols
from ray_app.images import ImageLimits, decode_image
from ray_app.metrics import arrays, localization
from ray_app.metrics.table import MetricRow, build_rows
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import (
    LocalizationInfo,
    MaskFailure,
    MaskInfo,
    MaskPartInfo,
    Overlay,
)
from ray_app.runs import CurrentRows, RunDirectory, mask_image
from ray_app.storage import Fetcher, Guard

COLUMNS = ("image_id", "label", "generator", "kind", "mask_uri")
Kind = Literal["real", "whole", "local"]
Size = Literal["network", "original", "half"]
RESIZING = {
    "network": "the truth is resized to the network's size by nearest pixel (rounded down, as OpenCV's INTER_NEAREST), so it stays black "
    "and white; OpenSDI and IMDLBenCo compare with this",
    "original": "the mask is resized to the image's size, bilinearly, as `touchstone runs masks` writes it, so no truth is lost",
}
_WORKERS, _MAX_AHEAD = 4, 16
T = TypeVar("T")
R = TypeVar("R")


class MaskTruth(NamedTuple):
    """The label of one image: its kind, its generator, and the path of its true mask.

    Attributes:
        kind: real, whole (generated as a whole), or local (altered as its mask shows).
        generator: The generator in the labels.
        mask_uri: The path or URL of the true mask; None if the labels name no mask.
    """

    kind: Kind
    generator: str
    mask_uri: str | None


class MaskTruths:
    """Labels on the altered pixels of images (`MaskTruth`), by image id.

    True masks are not read. An image takes some 20 bytes of memory, plus the path of its mask.

    Args:
        tables: Tables with the columns of `COLUMNS`.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        parts = [_select_columns(table) for table in tables]
        all_rows = (
            pa.concat_tables(parts, promote_options="permissive")
            .unify_dictionaries()
            .combine_chunks()
            if parts
            else None
        )
        ids = np.empty(0, np.int64) if all_rows is None else all_rows["image_id"].to_numpy()
        order = np.argsort(ids)
        self._ids: npt.NDArray[np.int64] = ids[order]
        self._rows = None if all_rows is None else all_rows.take(pa.array(order))

    def select(self, image_ids: Sequence[int]) -> dict[int, MaskTruth]:
        """Return the labels of images by id, without images that have no label."""
        if self._rows is None:
            return {}
        requested = np.unique(np.array(image_ids, np.int64))
        indices = np.minimum(np.searchsorted(self._ids, requested), len(self._ids) - 1)
        rows = self._rows.take(pa.array(indices[self._ids[indices] == requested])).to_pylist()
        return {row["image_id"]: _parse_truth(row) for row in rows}


@dataclass(frozen=True)
class MaskedImage:
    """A labelled image with all masks that detectors of the run predicted for it.

    Attributes:
        member: The file of the image in the archive. In its field `input`, the label and the path
            of the true mask replace the user's columns, because `datasets.masks` reads them there.
        truth: The label of the image, with the path of the true mask.
        masks: A row for each predicted mask, from the folder `masks/` of the run.
    """

    member: ManifestMember
    truth: MaskTruth
    masks: list[dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of the image that was scored."""
        return self.masks[0]["width"], self.masks[0]["height"]


class MaskMeasurement(NamedTuple):
    """The metrics of one mask that a detector predicted for an image.

    Attributes:
        system: The detector.
        view: The perturbation of the image, such as `jpeg:75`; None for the unchanged image.
        network: Metrics at the size of the network's output.
        original: Metrics at the image's own size; None if not requested.
        half: Metrics at the size of the network's output with threshold ½; None if the requested
            threshold is ½ already.
    """

    system: str
    view: str | None
    network: localization.MaskMetrics
    original: localization.MaskMetrics | None
    half: localization.MaskMetrics | None


class MeasuredImage(NamedTuple):
    """The metrics of all masks of one image.

    Attributes:
        masks: The metrics of each mask.
        coverage: Whether the true mask covers a part of the image, nothing, or everything.
    """

    masks: list[MaskMeasurement]
    coverage: Coverage


@dataclass(frozen=True)
class UnreadableMask:
    """An image whose true mask cannot be read, so that its predicted masks are not measured.

    Attributes:
        image: The image.
        status: The status of the failed read, or `no_reference` if the label names no valid mask.
        detail: Description of the failure.
    """

    image: MaskedImage
    status: str
    detail: str


class MaskMeasurer:
    """Read the true masks of images, and measure predicted masks against them.

    Several threads can use one object.

    Args:
        fetcher: Reads the files of true masks.
        limits: Limits on reading true masks.
        threshold: The probability above which a pixel counts as marked by a predicted mask.
        at_original: The kinds of images (`real`, `whole`, `local`) whose masks are also measured at
            the image's own size.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        limits: ImageLimits,
        *,
        threshold: float,
        at_original: Collection[Kind],
    ) -> None:
        self._fetcher, self._limits, self._threshold, self._at_original = (
            fetcher,
            limits,
            threshold,
            at_original,
        )
        self._thread_local = threading.local()

    def measure(self, image: MaskedImage) -> MeasuredImage | UnreadableMask:
        """Measure all predicted masks of one image against its true mask.

        Args:
            image: The image with its predicted masks.

        Returns:
            The metrics, or the failure if the true mask cannot be read.
        """
        try:
            truth = self.read_truth(image)
        except InputError as error:
            return UnreadableMask(image, error.status, error.detail)
        except ConfigError as error:
            return UnreadableMask(image, "no_reference", error.message)
        return MeasuredImage(
            [self._measure_mask(row, truth, image) for row in image.masks],
            measure_coverage(Image.fromarray(truth)),
        )

    def read_truth(self, image: MaskedImage) -> NDArray[np.uint8]:
        """Return the true mask (H, W) of an image at its own size, 255 for altered pixels.

        Raises:
            InputError: The mask is missing or cannot be read.
            ConfigError: The label names no valid mask.
        """
        if image.truth.kind == "local" and image.truth.mask_uri is None:
            raise InputError(
                Status.SOURCE_MISSING,
                "a local edit has no mask, so the altered pixels are unknown",
            )
        if not hasattr(self._thread_local, "reader"):
            self._thread_local.reader = MaskReader(self._fetcher, self._limits)
        truth: NDArray[np.uint8] = np.asarray(
            self._thread_local.reader.read(image.member, image.size)
        )
        return truth

    def _measure_mask(
        self, row: dict[str, Any], truth: NDArray[np.uint8], image: MaskedImage
    ) -> MaskMeasurement:
        small = np.asarray(mask_image(row, stretched=False)[0])
        levels = localization.PixelLevels.from_mask(small, resize_nearest(truth, small.shape))
        original = None
        if image.truth.kind in self._at_original:
            original = localization.PixelLevels.from_mask(
                np.asarray(mask_image(row, stretched=True)[0]), truth
            ).measure(self._threshold)
        half = (
            None
            if self._threshold == localization.THRESHOLD
            else levels.measure(localization.THRESHOLD)
        )
        return MaskMeasurement(
            row["detector"], row.get("view"), levels.measure(self._threshold), original, half
        )


def iter_masked_images(run: RunDirectory, truths: MaskTruths) -> Iterator[MaskedImage | None]:
    """Yield each image for which a run predicted masks.

    Masks are read one block at a time. A block is a group of files that one task scored.

    Args:
        run: The run.
        truths: The labels of the run's images.

    Yields:
        The image with its label and masks, or None for an image without a label. Images that the
        last listing of the archive no longer found are without a label.
    """
    rows = CurrentRows.read(run)
    for manifest in (index for index in list_complete_manifests(run.store) if index <= rows.last):
        with_masks = {
            int(name.removesuffix(".parquet")) for name in run.store.names(f"masks/{manifest:05d}")
        }
        for ref in read_blocks(run.store, manifest):
            masks = run.block_masks(manifest, ref.block) if ref.block in with_masks else None
            if masks is not None and len(masks):
                is_last = rows.select(masks, manifest, vanished=True)
                masks = masks.filter(pa.array(is_last))
                members = {
                    member.image_id: member
                    for member in rows_to_members(read_block(run.store, ref))
                }
                yield from _iter_block(masks, members, truths)


def resize_nearest(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Resize a mask (H, W) to another size (h, w) by nearest-neighbour sampling.

    The value of a new pixel is that of the old pixel at its upper left corner, as with OpenCV's
    INTER_NEAREST.
    """
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(truth.shape, shape, strict=True)
    )
    smaller: NDArray[np.uint8] = truth[rows][:, columns]
    return smaller


def map_in_threads(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the result of `work` for each item in order, computed by a few threads.

    Use it for work that waits for downloads. To limit memory, an item is taken from `items` only a
    few items before its result is needed.
    """
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="masks") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > _MAX_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _iter_block(
    masks: pa.Table, members: dict[int, ManifestMember], truths: MaskTruths
) -> Iterator[MaskedImage | None]:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in masks.to_pylist():
        by_image.setdefault(row["image_id"], []).append(row)
    labelled = truths.select(list(by_image))
    for image_id, rows in by_image.items():
        truth = labelled.get(image_id)
        if truth is None:
            yield None
            continue
        label = {"label": "real" if truth.kind == "real" else "fake", "mask_uri": truth.mask_uri}
        yield MaskedImage(replace(members[image_id], input=label), truth, rows)


def _select_columns(table: pa.Table) -> pa.Table:
    """Return the columns of `COLUMNS`.

    Columns with few distinct values are encoded, and paths may take more than 2 GiB.
    """
    columns: dict[str, Any] = {name: table[name] for name in COLUMNS}
    columns |= {name: table[name].dictionary_encode() for name in ("label", "generator", "kind")}
    return pa.table(columns | {"mask_uri": table["mask_uri"].cast(pa.large_string())})


def _parse_truth(row: dict[str, Any]) -> MaskTruth:
    if row["label"] == "real":
        return MaskTruth("real", row["generator"] or "real", None)
    is_local = row["mask_uri"] is not None or row["kind"] == "local"
    return MaskTruth(
        "local" if is_local else "whole", row["generator"] or "unknown", row["mask_uri"]
    )


MAX_OVERLAYS = 12
SIDE_PX = 320
# Marked pixels are tinted red, and a yellow line surrounds the altered ones.
MARKED_COLOUR, ALTERED_COLOUR = (220, 38, 38), (250, 204, 21)
_TINT = 115  # Opacity, of 255.
_KINDS: tuple[Kind, ...] = ("real", "whole", "local")
_EDITS: tuple[Kind, ...] = ("local",)
_SIZES: tuple[Size, ...] = ("network", "original", "half")
_MODES: tuple[Literal["origin", "reverse", "double"], ...] = ("origin", "reverse", "double")
_IMAGES = {
    "opensdi": "only local edits; IMDLBenCo's formulas, as in OpenSDI's evaluation",
    "imdlbenco": "every image with a mask; reals count as F1 = IoU = AUC = 0; 1e-8 is added to the denominators",
}


class Overlays:
    """Select predicted masks for a report: the six worst and the six best of each detector.

    Masks are ordered by pixel F1. Masks of equal F1 are ordered by the id of the image. An overlay
    is a small image with the marked and the altered pixels.
    """

    def __init__(self) -> None:
        self._by_system: dict[
            str, list[tuple[float, int, localization.MaskMetrics, MaskedImage, dict[str, Any]]]
        ] = {}

    def add(
        self, metrics: localization.MaskMetrics, image: MaskedImage, row: dict[str, Any]
    ) -> None:
        """Keep a predicted mask if it is among the worst or best of its detector so far.

        A mask of an image without altered pixels is ignored.

        Args:
            metrics: The metrics of the mask at the image's own size.
            image: The image.
            row: The row of the mask in `masks/` of the run.
        """
        if metrics.altered and metrics.f1 is not None:
            masks = self._by_system.setdefault(row["detector"], [])
            insort(
                masks,
                (metrics.f1, image.member.image_id, metrics, image, row),
                key=lambda entry: entry[:2],
            )
            if len(masks) > MAX_OVERLAYS:
                del masks[MAX_OVERLAYS // 2]

    def render(
        self, measurer: MaskMeasurer, fetcher: Fetcher, limits: ImageLimits
    ) -> list[Overlay]:
        """Return up to twelve overlays, divided among the detectors, the worst of each first.

        Args:
            measurer: Reads true masks.
            fetcher: Reads images.
            limits: Limits on images.

        Returns:
            The overlays. If an image cannot be read any more, its `picture` is None and `why` has
            the reason.
        """
        reader, overlays = MemberReader(fetcher, max_bytes=limits.max_bytes), []
        per_system = max(MAX_OVERLAYS // max(len(self._by_system), 1), 1)
        for system, masks in sorted(self._by_system.items())[:MAX_OVERLAYS]:
            n_worst = (per_system + 1) // 2
            for _, _, metrics, image, row in (
                masks
                if len(masks) <= per_system
                else masks[:n_worst] + masks[len(masks) - (per_system - n_worst) :]
            ):
                member = image.member
                entry: dict[str, Any] = {
                    "image_id": member.image_id,
                    "uri": member.uri,
                    "member": member.member,
                    "system": system,
                }
                entry |= {"generator": image.truth.generator, "f1": metrics.f1, "iou": metrics.iou}
                overlays.append(
                    Overlay(**entry, **_render_overlay(image, row, measurer, reader, limits))
                )
        return overlays


class Localized(NamedTuple):
    """The metrics of the masks that a run predicted.

    Attributes:
        info: Facts for the report, such as the numbers of images and of unreadable true masks.
        rows: The metrics, as rows of the metrics table.
        overlays: Images with marked and altered pixels, for the report.
    """

    info: LocalizationInfo
    rows: list[MetricRow]
    overlays: list[Overlay]


def measure_localization(
    run: RunDirectory,
    tables: join.Tables,
    *,
    rules: protocols.LocalizationRules | None = None,
    empty: localization.Empty = "skip",
    has_overlays: bool = True,
    guard: Guard = Guard(),  # noqa: B008 - frozen
) -> Localized | None:
    """Measure the predicted masks of a run against the true masks of its labels.

    True masks are read within the run's limits on images. Those that cannot be read are counted by
    reason.

    Args:
        run: The run.
        tables: Function that returns the labelled rows with the columns `COLUMNS`.
        rules: The rules of a protocol that reproduces a published table; None for the plain rules.
        empty: How images without altered pixels count by the plain rules, such as `skip`.
        has_overlays: Whether to render overlays, small images with marked and altered pixels.
        guard: The web servers from which the labels allow masks to be read, in addition to those of
            the run.

    Returns:
        The metrics and overlays; None if no detector of the run predicts masks.
    """
    if not run.store.folders("masks"):
        return None
    rules = rules or protocols.LocalizationRules()
    headline = _Headline(rules, empty)
    fetcher, limits = Fetcher(guard=load_guard(run.store).merge(guard)), run.limits()
    measurer = MaskMeasurer(
        fetcher, limits, threshold=rules.threshold, at_original={"local", *headline.kinds}
    )
    collector = _Collector()
    truths = MaskTruths(tables(COLUMNS))
    for image, measurement in map_in_threads(
        lambda image: (image, None if image is None else measurer.measure(image)),
        iter_masked_images(run, truths),
    ):
        collector.add(image, measurement)
    systems = collector.measure_systems(headline)
    info = LocalizationInfo(
        policy=headline.describe(),
        **collector.count_images(),
        systems=tuple(system for system, _ in systems),
        warning=collector.coverage.warning(),
    )
    overlays = collector.overlays.render(measurer, fetcher, limits) if has_overlays else []
    return Localized(info, [row for _, rows in systems for row in rows], overlays)


def draw_overlay(image: Image.Image, truth: Image.Image, marked: Image.Image) -> Image.Image:
    """Tint the marked pixels of an image red, and outline the truly altered area in yellow.

    Args:
        image: The image (RGB).
        truth: The true mask (L), nonzero for altered pixels.
        marked: The predicted mask (L), nonzero for marked pixels.

    Returns:
        The overlay, of the size of the image.
    """
    size = image.size
    tinted = Image.composite(
        Image.new("RGB", size, MARKED_COLOUR),
        image,
        _shrink_mask(marked, size).point(lambda level: level * _TINT // 255),
    )
    inside = _shrink_mask(truth, size)
    line = ImageChops.difference(
        inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3))
    )
    return Image.composite(Image.new("RGB", size, ALTERED_COLOUR), tinted, line)


class _Headline:
    """Measure masks by the rules that give a system's main metrics."""

    def __init__(self, rules: protocols.LocalizationRules, empty: localization.Empty) -> None:
        self._rules, self._empty = rules, empty
        with_reals: tuple[Kind, ...] = ("local",) if empty == "skip" else ("local", "real")
        self.kinds: tuple[Kind, ...] = {
            "plain": with_reals,
            "opensdi": ("local",),
            "imdlbenco": ("local", "real", "whole"),
        }[rules.policy]

    def measure(self, rows: arrays.Floats) -> dict[str, MetricValue]:
        """Return the metrics of rows of `kinds`."""
        if self._rules.policy == "plain":
            return localization.average_masks(rows, empty=self._empty)
        return localization.average_masks_imdlbenco(rows)

    def describe(self) -> dict[str, Any]:
        """Return the policy in words."""
        plain = "local edits" if self._empty == "skip" else "local edits and reals"
        policy = self._rules.policy
        return {
            "name": policy,
            "resolution": self._rules.resolution,
            "threshold": self._rules.threshold,
            "images": _IMAGES.get(
                policy,
                f"{plain}, each counting once; the AUC is over those with altered and intact pixels",
            ),
            "empty": self._empty if policy == "plain" else "zero",
            "empty_images": localization.EMPTY[self._empty if policy == "plain" else "zero"],
            "resizing": RESIZING,
        }


class _Group(NamedTuple):
    """The key that rows of metrics are grouped by.

    Attributes:
        system: The detector.
        view: The view, or None.
        size: `network` or `original` at the requested threshold, `half` at ½ and network size.
        kind: The kind of the image.
        generator: The generator.
    """

    system: str
    view: str | None
    size: Size
    kind: Kind
    generator: str


class _Collector:
    """Collect the metrics of masks by group, and the images that have none."""

    def __init__(self) -> None:
        self.overlays = Overlays()
        self.coverage = CoverageTally()
        self._rows: dict[_Group, localization.MaskRows] = {}
        self._images = self._unlabelled = 0
        self._unreadable: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(
        self, image: MaskedImage | None, measurement: MeasuredImage | UnreadableMask | None
    ) -> None:
        if image is None or measurement is None:
            self._unlabelled += 1
        elif isinstance(measurement, UnreadableMask):
            self._unreadable[measurement.status] += 1
            self._examples.setdefault(
                measurement.status,
                f"{image.truth.mask_uri or image.member.uri}: {measurement.detail}",
            )
        else:
            self._images += 1
            if image.truth.mask_uri is not None:
                self.coverage.add(image.truth.mask_uri, measurement.coverage)
            for mask, row in zip(measurement.masks, image.masks, strict=True):
                self._add_mask(mask, image, row)

    def _add_mask(self, mask: MaskMeasurement, image: MaskedImage, row: dict[str, Any]) -> None:
        for size in _SIZES:
            metrics = getattr(mask, size)
            if metrics is not None:
                group = _Group(
                    mask.system, mask.view, size, image.truth.kind, image.truth.generator
                )
                self._rows.setdefault(group, localization.MaskRows()).add(metrics)
        if mask.original is not None and mask.view is None and image.truth.kind == "local":
            self.overlays.add(mask.original, image, row)

    def count_images(self) -> dict[str, Any]:
        """Count images that were measured, that have no label, and that are unreadable and why."""
        reasons = [
            MaskFailure(reason=reason, n=n, example=self._examples[reason])
            for reason, n in self._unreadable.most_common()
        ]
        return {
            "images": self._images,
            "without_label": self._unlabelled,
            "unreadable": tuple(reasons),
        }

    def measure_systems(self, headline: _Headline) -> list[tuple[MaskInfo, list[MetricRow]]]:
        """Return the facts and the metrics of each detector and size."""
        return [
            self._measure_system(system, size, headline)
            for system in sorted({group.system for group in self._rows})
            for size in _SIZES[:2]
        ]

    def _measure_system(
        self, system: str, size: Size, headline: _Headline
    ) -> tuple[MaskInfo, list[MetricRow]]:
        all_rows = self._select_rows(system, size, headline.kinds)
        groups = [group for group in self._rows if (group.system, group.size) == (system, size)]
        generators = {
            name: self._select_rows(system, size, _EDITS, generator=name)
            for name in sorted(
                {
                    group.generator
                    for group in groups
                    if group.view is None and group.kind == "local"
                }
            )
        }
        views = {
            view: self._select_rows(system, size, headline.kinds, view=view)
            for view in sorted(
                {group.view for group in groups if group.view and group.kind in headline.kinds}
            )
        }
        rules = self._measure_by_benchmark_rules(system) if size == "network" else {}
        info = MaskInfo(
            system,
            size,
            **localization.count_masks(all_rows),
            generators=tuple(MaskPartInfo(name, len(rows)) for name, rows in generators.items()),
            views=tuple(MaskPartInfo(view, len(rows)) for view, rows in views.items()),
            rules=tuple(rules),
        )
        metrics = list(build_rows(headline.measure(all_rows), system, scope=info.scope))
        for name, rows in generators.items():
            metrics += build_rows(headline.measure(rows), system, scope=info.get_scope(name))
        for view, rows in views.items():
            metrics += build_rows(headline.measure(rows), system, view=view, scope=info.scope)
        for scope, rule_metrics in rules.items():
            metrics += build_rows(rule_metrics, system, scope=scope)
        return info, metrics

    def _measure_by_benchmark_rules(self, system: str) -> dict[str, dict[str, MetricValue]]:
        """Return the metrics as OpenSDI and IMDLBenCo measure them, by scope.

        They use unperturbed images, at the network's size and threshold ½.
        """
        half: Size = (
            "half"
            if any(group.system == system and group.size == "half" for group in self._rows)
            else "network"
        )
        all_rows, edits = self._select_rows(system, half), self._select_rows(system, half, _EDITS)
        return {
            "masks by OpenSDI": localization.average_masks_imdlbenco(edits),
            **{
                f"masks by IMDLBenCo, {mode}": localization.average_masks_imdlbenco(
                    all_rows, mode=mode
                )
                for mode in _MODES
            },
        }

    def _select_rows(
        self,
        system: str,
        size: Size,
        kinds: Collection[Kind] = _KINDS,
        view: str | None = None,
        generator: str | None = None,
    ) -> arrays.Floats:
        """Return the rows of all groups that match."""
        tables = [
            rows.table()
            for group, rows in self._rows.items()
            if (group.system, group.size, group.view) == (system, size, view)
            if group.kind in kinds and generator in (None, group.generator)
        ]
        return np.concatenate([localization.MaskRows().table(), *tables])


def _render_overlay(
    image: MaskedImage,
    row: dict[str, Any],
    measurer: MaskMeasurer,
    reader: MemberReader,
    limits: ImageLimits,
) -> dict[str, Any]:
    [(_, data)] = reader.read([image.member])
    try:
        if isinstance(data, InputError):
            raise data
        pixels = decode_image(data, limits).pixels
        if pixels.size != image.size:
            return {"picture": None, "why": "the image has another size than when it was scored"}
        truth = Image.fromarray(measurer.read_truth(image))
    except TouchstoneError as error:
        return {"picture": None, "why": str(error)}
    marked = np.asarray(mask_image(row, stretched=True)[0]) > 127
    pixels.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    draw_overlay(pixels, truth, Image.fromarray(marked.astype(np.uint8) * np.uint8(255))).save(
        buffer, "JPEG", quality=80
    )
    return {"picture": base64.b64encode(buffer.getvalue()).decode()}


def _shrink_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a mask to 0 or 255.

    A new pixel is 255 if any part of it is covered, so that nothing thin is lost.
    """
    return mask.resize(size, Image.Resampling.BOX).point(lambda level: 255 if level else 0)
