"""The masks of a run against the masks of its labels: the sections `localization` (`localization_of_run`) and `overlays` (`Overlays`).

Overlays are small pictures of the images whose masks agree worst and best with the truth.
"""

import base64
import io
from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from ray_app.archives import MemberReader, guard_of
from ray_app.errors import InputError, TouchstoneError
from ray_app.evaluation.join import Tables
from ray_app.evaluation.masks import (
    COLUMNS,
    RESIZING,
    Kind,
    MaskedImage,
    MaskMeasurement,
    MaskMeasurer,
    MaskTruths,
    UnreadableMask,
    masked_images,
    side_by_side,
)
from ray_app.evaluation.protocols import LocalizationRules
from ray_app.images import ImageLimits, decode_image
from ray_app.metrics.arrays import Floats
from ray_app.metrics.localization import EMPTY, Empty, MaskFigures, MaskRows, counts_of, imdlbenco_of, localization_of, opensdi_of
from ray_app.reports.evaluation.model import (
    ImdlBencoFacts,
    LocalizationFacts,
    LocalizationSystem,
    MaskCounts,
    MaskRow,
    OpenSdiFacts,
    OverlayFacts,
)
from ray_app.reports.evaluation.model import MaskFailures as UnreadableMasks
from ray_app.reports.evaluation.system_model import FigureFacts, facts_of
from ray_app.runs import RunDirectory, mask_image
from ray_app.storage import Fetcher, Guard

MOST = 12
SIDE_PX = 320
FOUND, TRUE = (220, 38, 38), (250, 204, 21)  # marked pixels are tinted red; a yellow line goes round those that were altered
_TINT = 115  # of 255
_MODES: tuple[Literal["origin", "reverse", "double"], ...] = ("origin", "reverse", "double")
_IMAGES = {
    "opensdi": "local edits alone; IMDLBenCo's formulas, as its evaluation uses them",
    "imdlbenco": "every image with a mask; reals count F1 = IoU = AUC = 0; 1e-8 in the denominators",
}


class Overlays:
    """The six worst and the six best of each system while images pass by; of equal ones those of lower id."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[float, int, MaskFigures, MaskedImage, dict[str, Any]]]] = {}

    def see(self, figures: MaskFigures, image: MaskedImage, row: dict[str, Any]) -> None:
        """One mask of a local edit, at the image's own size."""
        if figures.altered and figures.f1 is not None:
            kept = self._kept.setdefault(row["detector"], [])
            insort(kept, (figures.f1, image.member.image_id, figures, image, row), key=lambda one: one[:2])
            if len(kept) > MOST:
                del kept[MOST // 2]

    def pictures(self, measurer: MaskMeasurer, fetcher: Fetcher, limits: ImageLimits) -> list[OverlayFacts]:
        """At most twelve, shared out among systems, the worst of each first: {image_id, uri, member, system, generator, f1, iou, picture}.

        `picture`: base64 of a JPEG, None where the image cannot be read any more; then `why` has the reason.
        """
        reader, overlays = MemberReader(fetcher, max_bytes=limits.max_bytes), []
        each = max(MOST // max(len(self._kept), 1), 1)
        for system, kept in sorted(self._kept.items())[:MOST]:
            worst = (each + 1) // 2
            for _, _, figures, image, row in kept if len(kept) <= each else kept[:worst] + kept[len(kept) - (each - worst) :]:
                member = image.member
                entry: dict[str, Any] = {"image_id": member.image_id, "uri": member.uri, "member": member.member, "system": system}
                entry |= {"generator": image.truth.generator, "f1": figures.f1, "iou": figures.iou}
                overlays.append(OverlayFacts(**entry, **_picture(image, row, measurer, reader, limits)))
        return overlays


class Localized(NamedTuple):
    """Two sections of the document: `section` is `localization`."""

    section: LocalizationFacts
    overlays: list[OverlayFacts]


def localization_of_run(
    run: RunDirectory,
    tables: Tables,
    *,
    rules: LocalizationRules | None = None,
    empty: Empty = "skip",
    pictures: bool = True,
    guard: Guard = Guard(),  # noqa: B008 - frozen
) -> Localized | None:
    """Both sections of a run whose joined rows `tables` gives (called with `masks.COLUMNS`); None where no detector localizes.

    Masks are read within the run's own limits, from its own web servers and those of `guard`, which are those of the labels.
    `empty`: how images without altered pixels count under the plain policy. A truth that cannot be read is counted with its reason.
    """
    if not run.store.folders("masks"):
        return None
    rules = rules or LocalizationRules()
    headline = _Headline(rules, empty)
    fetcher, limits = Fetcher(guard=guard_of(run.store).joined(guard)), run.limits()
    measurer = MaskMeasurer(fetcher, limits, threshold=rules.threshold, at_original={"local", *headline.kinds})
    gathered = _Gathered()
    truths = MaskTruths(tables(COLUMNS))
    for image, found in side_by_side(lambda image: (image, None if image is None else measurer.measure(image)), masked_images(run, truths)):
        gathered.add(image, found)
    section = LocalizationFacts(policy=headline.row(), **gathered.counts(), systems=tuple(gathered.systems(headline)))
    return Localized(section, gathered.overlays.pictures(measurer, fetcher, limits) if pictures else [])


def overlay(picture: Image.Image, truth: Image.Image, found: Image.Image) -> Image.Image:
    """A picture (RGB) with the pixels that were found (L, not 0) tinted, and a line round those that were altered (L, not 0)."""
    size = picture.size
    tinted = Image.composite(Image.new("RGB", size, FOUND), picture, _shrunk(found, size).point(lambda level: level * _TINT // 255))
    inside = _shrunk(truth, size)
    line = ImageChops.difference(inside.filter(ImageFilter.MaxFilter(3)), inside.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", size, TRUE), tinted, line)


class _Headline:
    """Whose rules make the figures that a system is known by."""

    def __init__(self, rules: LocalizationRules, empty: Empty) -> None:
        self._rules, self._empty = rules, empty
        with_reals: tuple[Kind, ...] = ("local",) if empty == "skip" else ("local", "real")
        self.kinds: tuple[Kind, ...] = {"plain": with_reals, "opensdi": ("local",), "imdlbenco": ("local", "real", "whole")}[rules.policy]

    def figures(self, rows: Floats) -> dict[str, FigureFacts]:
        """Those of rows of `kinds`."""
        if self._rules.policy == "plain":
            return facts_of(localization_of(rows, empty=self._empty))
        return facts_of(opensdi_of(rows) if self._rules.policy == "opensdi" else imdlbenco_of(rows))

    def row(self) -> dict[str, Any]:
        """The policy in words."""
        plain = "local edits" if self._empty == "skip" else "local edits and reals"
        policy = self._rules.policy
        return {
            "name": policy,
            "resolution": self._rules.resolution,
            "threshold": self._rules.threshold,
            "images": _IMAGES.get(policy, f"{plain}, each counting once; the AUC of those with altered and intact pixels"),
            "empty": self._empty if policy == "plain" else "zero",
            "empty_images": EMPTY[self._empty if policy == "plain" else "zero"],
            "resizing": RESIZING,
        }


class _Group(NamedTuple):
    """What rows are gathered by. `size`: network or original at the requested threshold, half: network at ½."""

    system: str
    view: str | None
    size: Literal["network", "original", "half"]
    kind: Kind
    generator: str


class _Gathered:
    """Rows of figures by group, and what became of images that have none."""

    def __init__(self) -> None:
        self.overlays = Overlays()
        self._rows: dict[_Group, MaskRows] = {}
        self._images = self._unlabelled = 0
        self._unreadable: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, image: MaskedImage | None, found: list[MaskMeasurement] | UnreadableMask | None) -> None:
        if image is None or found is None:
            self._unlabelled += 1
        elif isinstance(found, UnreadableMask):
            self._unreadable[found.status] += 1
            self._examples.setdefault(found.status, f"{image.truth.mask_uri or image.member.uri}: {found.detail}")
        else:
            self._images += 1
            for one, row in zip(found, image.masks, strict=True):
                self._add_mask(one, image, row)

    def _add_mask(self, one: MaskMeasurement, image: MaskedImage, row: dict[str, Any]) -> None:
        for size in ("network", "original", "half"):
            figures = getattr(one, size)
            if figures is not None:
                group = _Group(one.system, one.view, size, image.truth.kind, image.truth.generator)
                self._rows.setdefault(group, MaskRows()).add(figures)
        if one.original is not None and one.view is None and image.truth.kind == "local":
            self.overlays.see(one.original, image, row)

    def counts(self) -> dict[str, Any]:
        """How many images were measured, have masks but no label, and have a truth that cannot be read, and why."""
        reasons = [UnreadableMasks(reason=reason, n=n, example=self._examples[reason]) for reason, n in self._unreadable.most_common()]
        return {"images": self._images, "without_label": self._unlabelled, "unreadable": tuple(reasons)}

    def systems(self, headline: _Headline) -> Iterator[LocalizationSystem]:
        """One entry per detector and size."""
        for system in sorted({group.system for group in self._rows}):
            for size in ("network", "original"):
                yield self._system(system, size, headline)

    def _system(self, system: str, size: str, headline: _Headline) -> LocalizationSystem:
        of_size = {group: rows for group, rows in self._rows.items() if group.system == system and group.size == size}
        counted = {group: rows for group, rows in of_size.items() if group.kind in headline.kinds}
        clean = {group: rows for group, rows in counted.items() if group.view is None}
        views = sorted({group.view for group in counted if group.view is not None})
        rows = _together(clean.values())
        at_half = self._at_half(system)
        return LocalizationSystem(
            name=system,
            resolution=size,
            counts=MaskCounts(**counts_of(rows)),
            figures=headline.figures(rows),
            generators=tuple(
                MaskRow(name=group.generator, kind=group.kind, n=len(of), figures=headline.figures(of.table()))
                for group, of in sorted(clean.items())
                if group.kind == "local"
            ),
            views=tuple(_view(name, {group: of for group, of in counted.items() if group.view == name}, headline) for name in views),
            imdlbenco=_imdlbenco(at_half) if size == "network" else None,
            opensdi=_opensdi(at_half) if size == "network" else None,
        )

    def _at_half(self, system: str) -> dict[_Group, MaskRows]:
        """The clean rows at the network's size and the threshold of the benchmarks."""
        of_clean = {group: rows for group, rows in self._rows.items() if group.system == system and group.view is None}
        half = {group: rows for group, rows in of_clean.items() if group.size == "half"}
        return half or {group: rows for group, rows in of_clean.items() if group.size == "network"}


def _picture(image: MaskedImage, row: dict[str, Any], measurer: MaskMeasurer, reader: MemberReader, limits: ImageLimits) -> dict[str, Any]:
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
    overlay(pixels, truth, Image.fromarray(marked.astype(np.uint8) * np.uint8(255))).save(buffer, "JPEG", quality=80)
    return {"picture": base64.b64encode(buffer.getvalue()).decode()}


def _shrunk(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A mask at another size, 0 or 255; what covers any part of a new pixel covers it, so that nothing thin is lost."""
    return mask.resize(size, Image.Resampling.BOX).point(lambda level: 255 if level else 0)


def _view(name: str, groups: dict[_Group, MaskRows], headline: _Headline) -> MaskRow:
    rows = _together(groups.values())
    return MaskRow(name=name, n=len(rows), figures=headline.figures(rows))


def _imdlbenco(groups: dict[_Group, MaskRows]) -> ImdlBencoFacts:
    rows = _together(groups.values())
    return ImdlBencoFacts(counts=MaskCounts(**counts_of(rows)), modes={mode: facts_of(imdlbenco_of(rows, mode=mode)) for mode in _MODES})


def _opensdi(groups: dict[_Group, MaskRows]) -> OpenSdiFacts:
    rows = _together(of for group, of in groups.items() if group.kind == "local")
    return OpenSdiFacts(counts=MaskCounts(**counts_of(rows)), figures=facts_of(opensdi_of(rows)))


def _together(rows: Iterable[MaskRows]) -> Floats:
    return np.concatenate([MaskRows().table(), *(one.table() for one in rows)])
