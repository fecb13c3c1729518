"""The masks of a run against the masks of its labels (`localization_of_run`).

Overlays are small pictures of the images whose masks agree worst and best with the truth.

Images with masks beside their labels (`masked_images`), and each mask measured against its truth
(`MaskMeasurer`).

Masks are measured at the network's size and at the image's own.
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
    guard_of,
    manifests,
    member_rows,
    read_block,
    read_blocks,
)
from ray_app.datasets.mask_pixels import Coverage, CoverageTally, coverage_of
from ray_app.datasets.masks import MaskReader
from ray_app.errors import ConfigError, InputError, Status, TouchstoneError
from ray_app.evaluation import join, protocols
from ray_app.images import ImageLimits, decode_image
from ray_app.metrics import arrays, localization
from ray_app.metrics.table import MetricRow, rows_of
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
    "network": "truth to the network's size by its nearest pixel (rounded down, as OpenCV's INTER_NEAREST): it stays black and white, and "
    "is what OpenSDI and IMDLBenCo compare with",
    "original": "mask to the image's size, bilinearly, as `touchstone runs masks` writes it: its steps become slopes, no truth is lost",
}
_WORKERS, _AHEAD = 4, 16
T = TypeVar("T")
R = TypeVar("R")


class MaskTruth(NamedTuple):
    """Where an image was altered, by its labels. `kind`: real, whole (generated as a whole) or
    local (altered where its mask says).
    """

    kind: Kind
    generator: str
    mask_uri: str | None


class MaskTruths:
    """Labels by image id, from tables with `COLUMNS`: some 20 bytes each, and the places of masks."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        pieces = [_columns(table) for table in tables]
        whole = (
            pa.concat_tables(pieces, promote_options="permissive")
            .unify_dictionaries()
            .combine_chunks()
            if pieces
            else None
        )
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
    """One labelled image with all its masks, as rows of `masks/`; `member` carries what
    `datasets.masks` needs.
    """

    member: ManifestMember
    truth: MaskTruth
    masks: list[dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image that was scored."""
        return self.masks[0]["width"], self.masks[0]["height"]


class MaskMeasurement(NamedTuple):
    """One mask of an image. `network`, `original` (None where not requested): at the requested
    threshold; `half`: network size, at ½, where that is another threshold.
    """

    system: str
    view: str | None
    network: localization.MaskFigures
    original: localization.MaskFigures | None
    half: localization.MaskFigures | None


class MeasuredImage(NamedTuple):
    """All masks of one image, and how much of its truth is altered."""

    masks: list[MaskMeasurement]
    coverage: Coverage


@dataclass(frozen=True)
class UnreadableMask:
    """Why an image's truth is not known: nothing of it is measured."""

    image: MaskedImage
    status: str
    detail: str


class MaskMeasurer:
    """Reads truths and measures masks. Safe to share between threads: each keeps the tables open
    that it reads masks from.

    `at_original`: the kinds of images that are measured at their own size, too.
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
        self._own = threading.local()

    def measure(self, image: MaskedImage) -> MeasuredImage | UnreadableMask:
        """Measure all masks of one image."""
        try:
            truth = self.truth(image)
        except InputError as refused:
            return UnreadableMask(image, refused.status, refused.detail)
        except ConfigError as error:
            return UnreadableMask(image, "no_reference", error.message)
        return MeasuredImage(
            [self._measured(row, truth, image) for row in image.masks],
            coverage_of(Image.fromarray(truth)),
        )

    def truth(self, image: MaskedImage) -> NDArray[np.uint8]:
        """(H, W) at the image's own size, 255 where it was altered. Raises InputError or
        ConfigError where that is not known.
        """
        if image.truth.kind == "local" and image.truth.mask_uri is None:
            raise InputError(
                Status.SOURCE_MISSING,
                "a local edit without a mask: where it was altered is not known",
            )
        if not hasattr(self._own, "reader"):
            self._own.reader = MaskReader(self._fetcher, self._limits)
        truth: NDArray[np.uint8] = np.asarray(self._own.reader.read(image.member, image.size))
        return truth

    def _measured(
        self, row: dict[str, Any], truth: NDArray[np.uint8], image: MaskedImage
    ) -> MaskMeasurement:
        small = np.asarray(mask_image(row, stretched=False)[0])
        levels = localization.PixelLevels.of(small, nearest(truth, small.shape))
        original = None
        if image.truth.kind in self._at_original:
            original = localization.PixelLevels.of(
                np.asarray(mask_image(row, stretched=True)[0]), truth
            ).figures(self._threshold)
        half = (
            None
            if self._threshold == localization.THRESHOLD
            else levels.figures(localization.THRESHOLD)
        )
        return MaskMeasurement(
            row["detector"], row.get("view"), levels.figures(self._threshold), original, half
        )


def masked_images(run: RunDirectory, truths: MaskTruths) -> Iterator[MaskedImage | None]:
    """Every image of a run that has masks, a block in memory at a time; None in place of one
    without a label.

    Only current rows are labelled, so masks of members that vanished are among those without.
    """
    rows = CurrentRows.read(run)
    for manifest in (number for number in manifests(run.store) if number <= rows.last):
        with_masks = {
            int(name.removesuffix(".parquet")) for name in run.store.names(f"masks/{manifest:05d}")
        }
        for ref in read_blocks(run.store, manifest):
            masks = run.block_masks(manifest, ref.block) if ref.block in with_masks else None
            if masks is not None and len(masks):
                is_last = rows.select(masks, manifest, vanished=True)
                masks = masks.filter(pa.array(is_last))
                members = {
                    member.image_id: member for member in member_rows(read_block(run.store, ref))
                }
                yield from _of_block(masks, members, truths)


def nearest(truth: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A mask (H, W) at another size (h, w): of each new pixel the old one at its upper left corner,
    as OpenCV's INTER_NEAREST.
    """
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(truth.shape, shape, strict=True)
    )
    smaller: NDArray[np.uint8] = truth[rows][:, columns]
    return smaller


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work` gives of each, in their order, from a few threads that are a few items ahead:
    masks are waited for, not computed.
    """
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


def _of_block(
    masks: pa.Table, members: dict[int, ManifestMember], truths: MaskTruths
) -> Iterator[MaskedImage | None]:
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
    """`COLUMNS`, the words of few kinds coded, places of masks with room for more than 2 GiB of
    them.
    """
    columns: dict[str, Any] = {name: table[name] for name in COLUMNS}
    columns |= {name: table[name].dictionary_encode() for name in ("label", "generator", "kind")}
    return pa.table(columns | {"mask_uri": table["mask_uri"].cast(pa.large_string())})


def _truth(row: dict[str, Any]) -> MaskTruth:
    if row["label"] == "real":
        return MaskTruth("real", row["generator"] or "real", None)
    is_local = row["mask_uri"] is not None or row["kind"] == "local"
    return MaskTruth(
        "local" if is_local else "whole", row["generator"] or "unknown", row["mask_uri"]
    )


MOST = 12
SIDE_PX = 320
# marked pixels are tinted red; a yellow line goes round those that were altered
FOUND, TRUE = (220, 38, 38), (250, 204, 21)
_TINT = 115  # of 255
_KINDS: tuple[Kind, ...] = ("real", "whole", "local")
_EDITS: tuple[Kind, ...] = ("local",)
_SIZES: tuple[Size, ...] = ("network", "original", "half")
_MODES: tuple[Literal["origin", "reverse", "double"], ...] = ("origin", "reverse", "double")
_IMAGES = {
    "opensdi": "local edits alone; IMDLBenCo's formulas, as its evaluation uses them",
    "imdlbenco": "every image with a mask; reals count F1 = IoU = AUC = 0; 1e-8 in the denominators",
}


class Overlays:
    """The six worst and the six best of each system while images pass by; of equal ones those of
    lower id.
    """

    def __init__(self) -> None:
        self._kept: dict[
            str, list[tuple[float, int, localization.MaskFigures, MaskedImage, dict[str, Any]]]
        ] = {}

    def see(
        self, figures: localization.MaskFigures, image: MaskedImage, row: dict[str, Any]
    ) -> None:
        """One mask of a local edit, at the image's own size."""
        if figures.altered and figures.f1 is not None:
            kept = self._kept.setdefault(row["detector"], [])
            insort(
                kept,
                (figures.f1, image.member.image_id, figures, image, row),
                key=lambda one: one[:2],
            )
            if len(kept) > MOST:
                del kept[MOST // 2]

    def pictures(
        self, measurer: MaskMeasurer, fetcher: Fetcher, limits: ImageLimits
    ) -> list[Overlay]:
        """At most twelve, shared out among systems, the worst of each first: {image_id, uri,
        member, system, generator, f1, iou, picture}.

        `picture`: base64 of a JPEG, None where the image cannot be read any more; then `why` has
        the reason.
        """
        reader, overlays = MemberReader(fetcher, max_bytes=limits.max_bytes), []
        each = max(MOST // max(len(self._kept), 1), 1)
        for system, kept in sorted(self._kept.items())[:MOST]:
            worst = (each + 1) // 2
            for _, _, figures, image, row in (
                kept if len(kept) <= each else kept[:worst] + kept[len(kept) - (each - worst) :]
            ):
                member = image.member
                entry: dict[str, Any] = {
                    "image_id": member.image_id,
                    "uri": member.uri,
                    "member": member.member,
                    "system": system,
                }
                entry |= {"generator": image.truth.generator, "f1": figures.f1, "iou": figures.iou}
                overlays.append(Overlay(**entry, **_picture(image, row, measurer, reader, limits)))
        return overlays


class Localized(NamedTuple):
    """What a run's masks are of, their metrics, and pictures of some."""

    info: LocalizationInfo
    rows: list[MetricRow]
    overlays: list[Overlay]


def localization_of_run(
    run: RunDirectory,
    tables: join.Tables,
    *,
    rules: protocols.LocalizationRules | None = None,
    empty: localization.Empty = "skip",
    pictures: bool = True,
    guard: Guard = Guard(),  # noqa: B008 - frozen
) -> Localized | None:
    """Measure the masks of a run whose joined rows `tables` gives (called with `COLUMNS`); None if
    no detector localizes.

    Masks are read within the run's own limits, from its own web servers and those of `guard`, which
    are those of the labels. `empty`: how images without altered pixels count under the plain
    policy. A truth that cannot be read is counted with its reason.
    """
    if not run.store.folders("masks"):
        return None
    rules = rules or protocols.LocalizationRules()
    headline = _Headline(rules, empty)
    fetcher, limits = Fetcher(guard=guard_of(run.store).joined(guard)), run.limits()
    measurer = MaskMeasurer(
        fetcher, limits, threshold=rules.threshold, at_original={"local", *headline.kinds}
    )
    gathered = _Gathered()
    truths = MaskTruths(tables(COLUMNS))
    for image, found in side_by_side(
        lambda image: (image, None if image is None else measurer.measure(image)),
        masked_images(run, truths),
    ):
        gathered.add(image, found)
    measured = gathered.systems(headline)
    info = LocalizationInfo(
        policy=headline.row(),
        **gathered.counts(),
        systems=tuple(system for system, _ in measured),
        warning=gathered.coverage.warning(),
    )
    overlays = gathered.overlays.pictures(measurer, fetcher, limits) if pictures else []
    return Localized(info, [row for _, rows in measured for row in rows], overlays)


def overlay(picture: Image.Image, truth: Image.Image, found: Image.Image) -> Image.Image:
    """A picture (RGB) with the pixels that were found (L, not 0) tinted, and a line round those
    that were altered (L, not 0).
    """
    size = picture.size
    tinted = Image.composite(
        Image.new("RGB", size, FOUND),
        picture,
        _shrunk(found, size).point(lambda level: level * _TINT // 255),
    )
    inside = _shrunk(truth, size)
    line = ImageChops.difference(
        inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3))
    )
    return Image.composite(Image.new("RGB", size, TRUE), tinted, line)


class _Headline:
    """Whose rules make the figures that a system is known by."""

    def __init__(self, rules: protocols.LocalizationRules, empty: localization.Empty) -> None:
        self._rules, self._empty = rules, empty
        with_reals: tuple[Kind, ...] = ("local",) if empty == "skip" else ("local", "real")
        self.kinds: tuple[Kind, ...] = {
            "plain": with_reals,
            "opensdi": ("local",),
            "imdlbenco": ("local", "real", "whole"),
        }[rules.policy]

    def figures(self, rows: arrays.Floats) -> dict[str, MetricValue]:
        """Those of rows of `kinds`."""
        if self._rules.policy == "plain":
            return localization.localization_of(rows, empty=self._empty)
        return localization.imdlbenco_of(rows)

    def row(self) -> dict[str, Any]:
        """The policy in words."""
        plain = "local edits" if self._empty == "skip" else "local edits and reals"
        policy = self._rules.policy
        return {
            "name": policy,
            "resolution": self._rules.resolution,
            "threshold": self._rules.threshold,
            "images": _IMAGES.get(
                policy,
                f"{plain}, each counting once; the AUC of those with altered and intact pixels",
            ),
            "empty": self._empty if policy == "plain" else "zero",
            "empty_images": localization.EMPTY[self._empty if policy == "plain" else "zero"],
            "resizing": RESIZING,
        }


class _Group(NamedTuple):
    """What rows are gathered by. `size`: network or original at the requested threshold, half:
    network at ½.
    """

    system: str
    view: str | None
    size: Size
    kind: Kind
    generator: str


class _Gathered:
    """Rows of figures by group, and what became of images that have none."""

    def __init__(self) -> None:
        self.overlays = Overlays()
        self.coverage = CoverageTally()
        self._rows: dict[_Group, localization.MaskRows] = {}
        self._images = self._unlabelled = 0
        self._unreadable: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, image: MaskedImage | None, found: MeasuredImage | UnreadableMask | None) -> None:
        if image is None or found is None:
            self._unlabelled += 1
        elif isinstance(found, UnreadableMask):
            self._unreadable[found.status] += 1
            self._examples.setdefault(
                found.status, f"{image.truth.mask_uri or image.member.uri}: {found.detail}"
            )
        else:
            self._images += 1
            if image.truth.mask_uri is not None:
                self.coverage.add(image.truth.mask_uri, found.coverage)
            for one, row in zip(found.masks, image.masks, strict=True):
                self._add_mask(one, image, row)

    def _add_mask(self, one: MaskMeasurement, image: MaskedImage, row: dict[str, Any]) -> None:
        for size in _SIZES:
            figures = getattr(one, size)
            if figures is not None:
                group = _Group(one.system, one.view, size, image.truth.kind, image.truth.generator)
                self._rows.setdefault(group, localization.MaskRows()).add(figures)
        if one.original is not None and one.view is None and image.truth.kind == "local":
            self.overlays.see(one.original, image, row)

    def counts(self) -> dict[str, Any]:
        """How many images were measured, have masks but no label, and have a truth that cannot be
        read, and why.
        """
        reasons = [
            MaskFailure(reason=reason, n=n, example=self._examples[reason])
            for reason, n in self._unreadable.most_common()
        ]
        return {
            "images": self._images,
            "without_label": self._unlabelled,
            "unreadable": tuple(reasons),
        }

    def systems(self, headline: _Headline) -> list[tuple[MaskInfo, list[MetricRow]]]:
        """The facts and the metrics of each detector and size."""
        return [
            self._system(system, size, headline)
            for system in sorted({group.system for group in self._rows})
            for size in _SIZES[:2]
        ]

    def _system(
        self, system: str, size: Size, headline: _Headline
    ) -> tuple[MaskInfo, list[MetricRow]]:
        whole = self._table(system, size, headline.kinds)
        here = [group for group in self._rows if (group.system, group.size) == (system, size)]
        generators = {
            name: self._table(system, size, _EDITS, generator=name)
            for name in sorted(
                {one.generator for one in here if one.view is None and one.kind == "local"}
            )
        }
        views = {
            view: self._table(system, size, headline.kinds, view=view)
            for view in sorted(
                {one.view for one in here if one.view and one.kind in headline.kinds}
            )
        }
        rules = self._by_others_rules(system) if size == "network" else {}
        info = MaskInfo(
            system,
            size,
            **localization.counts_of(whole),
            generators=tuple(MaskPartInfo(name, len(rows)) for name, rows in generators.items()),
            views=tuple(MaskPartInfo(view, len(rows)) for view, rows in views.items()),
            rules=tuple(rules),
        )
        metrics = list(rows_of(headline.figures(whole), system, scope=info.scope))
        for name, rows in generators.items():
            metrics += rows_of(headline.figures(rows), system, scope=info.scope_of(name))
        for view, rows in views.items():
            metrics += rows_of(headline.figures(rows), system, view=view, scope=info.scope)
        for scope, figures in rules.items():
            metrics += rows_of(figures, system, scope=scope)
        return info, metrics

    def _by_others_rules(self, system: str) -> dict[str, dict[str, MetricValue]]:
        """By scope the metrics as OpenSDI and IMDLBenCo measure: clean masks at the network's size
        and at ½.
        """
        half: Size = (
            "half"
            if any(group.system == system and group.size == "half" for group in self._rows)
            else "network"
        )
        every, edits = self._table(system, half), self._table(system, half, _EDITS)
        return {
            "masks by OpenSDI": localization.imdlbenco_of(edits),
            **{
                f"masks by IMDLBenCo, {mode}": localization.imdlbenco_of(every, mode=mode)
                for mode in _MODES
            },
        }

    def _table(
        self,
        system: str,
        size: Size,
        kinds: Collection[Kind] = _KINDS,
        view: str | None = None,
        generator: str | None = None,
    ) -> arrays.Floats:
        """The rows of some groups together."""
        mine = [
            rows.table()
            for group, rows in self._rows.items()
            if (group.system, group.size, group.view) == (system, size, view)
            if group.kind in kinds and generator in (None, group.generator)
        ]
        return np.concatenate([localization.MaskRows().table(), *mine])


def _picture(
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
            return {"picture": None, "why": "the image is another one now"}
        truth = Image.fromarray(measurer.truth(image))
    except TouchstoneError as refused:
        return {"picture": None, "why": str(refused)}
    marked = np.asarray(mask_image(row, stretched=True)[0]) > 127
    pixels.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    overlay(pixels, truth, Image.fromarray(marked.astype(np.uint8) * np.uint8(255))).save(
        buffer, "JPEG", quality=80
    )
    return {"picture": base64.b64encode(buffer.getvalue()).decode()}


def _shrunk(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask at another size, 0 or 255; what covers any part of a new pixel covers it, so that
    nothing thin is lost.
    """
    return mask.resize(size, Image.Resampling.BOX).point(lambda level: 255 if level else 0)
