"""Explains one detector's score without its weights (`explain`): which regions it rests on, and whether that finding holds.

Map: occlusion (Zeiler and Fergus 2014, arXiv:1311.2901). Check: deletion (Petsiuk et al. 2018, arXiv:1806.07421), against random orders.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from ray_app.detectors.card import DetectorCard
from ray_app.detectors.preprocessing import Pixels, Preprocessing
from ray_app.errors import InputError, Status

GRID = 14
# 19 orders make the test exact: were the map no better than chance, it would beat all of them once in 20 times.
RANDOM_ORDERS = 19
STEPS = 10
MARGIN = 0.01  # log-odds; a gap below what two decimals show is none, whatever the orders say
NEGLIGIBLE = 0.01  # of the score: a map on which no region moves it by so much says nothing of where it comes from
_FADE = 0.25  # in cells, to both sides of a cell's edge: a patch is 1.5 cells wide and overlaps its neighbours'
_SMALLEST_CELL_PX = 4
_TIMING_S = 0.5
_CHUNK_BYTES = 64 * 2**20  # copies of a native-size image are made and scored a few at a time

_FOR_FAKE, _FOR_REAL = (200, 20, 20), (20, 60, 200)
_OPACITY, _HATCH_PX = 0.8, 8
_FULL = 0.1  # of the score: what a region in full colour moves it by, so that colours tell how much hangs on a region
_FAINTEST = 0.1  # log-odds; a map that is weaker throughout stays pale instead of being stretched to full colour

Floats = npt.NDArray[np.float32]


class DetectorLike(Protocol):
    """What is asked of a detector; see `ray_app.detectors.detector.Detector`."""

    card: DetectorCard
    slots: int

    def prepare(self, image: Image.Image) -> Pixels:
        """One RGB image in the detector's geometry."""

    def score(self, pixels: Pixels) -> Floats:
        """(N, height, width, 3) uint8 → (N,) log-odds of fake."""


class ExplanationCost(NamedTuple):
    """What an explanation takes: copies of the image to score, and the seconds that should need, by a batch that was timed."""

    passes: int
    seconds: float


class PixelBox(NamedTuple):
    """A rectangle from edge to edge."""

    left: float
    top: float
    right: float
    bottom: float


class RegionView(NamedTuple):
    """The same region twice: in prepared pixels, and in fractions of the image's width and height. What lies outside is unseen."""

    prepared: PixelBox
    image: PixelBox


@dataclass(frozen=True)
class Explanation:
    """What occluding each cell does to the score, and whether deleting cells in that order confirms it.

    `map` (rows, columns): score minus score without the cell, in log-odds; positive speaks for fake. `score`: of the whole image.
    `deletion` (STEPS + 1,): the score while cells are deleted, most important for the score's own side first, from none to all.
    `random_deletions` (RANDOM_ORDERS, STEPS + 1): the same in random orders. `view`: where on the image the grid lies.
    """

    detector: str
    map: Floats
    score: float
    deletion: Floats
    random_deletions: Floats
    view: RegionView
    cost: ExplanationCost

    @property
    def side(self) -> int:
        """+1 where the score says fake, −1 where it says real."""
        return 1 if self.score >= 0 else -1

    @cached_property
    def area(self) -> float:
        """The mean score while deleting by the map: the area under its curve."""
        return float(_areas(self.deletion[None])[0])

    @cached_property
    def random_areas(self) -> Floats:
        """The same for every random order."""
        return _areas(self.random_deletions)

    @cached_property
    def is_deletion_passed(self) -> bool:
        """Whether deletion by the map takes the score from its side faster than every random order does (p = 1/20 by chance)."""
        gain = self.side * (self.random_areas - self.area)
        return bool(gain.min() > 0 and gain.mean() >= MARGIN)

    @property
    def least_effect(self) -> float:
        """What the strongest region has to move the score by, in log-odds, for the map to say anything."""
        return max(NEGLIGIBLE * abs(self.score), MARGIN)

    @property
    def negligible(self) -> bool:
        """Whether no region moves the score by that much."""
        return float(np.abs(self.map).max()) < self.least_effect

    @property
    def faithful(self) -> bool:
        """Whether the map shows something, and deletion confirms it."""
        return self.is_deletion_passed and not self.negligible

    @property
    def strongest(self) -> tuple[float, PixelBox]:
        """The cell that counts most for the score's own side: its value, and where it is, in fractions of the image."""
        (rows, columns), box = self.map.shape, self.view.image
        row, column = divmod(int(np.argmax(self.side * self.map)), columns)
        high, wide = (box.bottom - box.top) / rows, (box.right - box.left) / columns
        left, top = box.left + column * wide, box.top + row * high
        return float(self.map[row, column]), PixelBox(left, top, left + wide, top + high)

    def words(self) -> str:
        """What the map is worth, with the figures of the deletion test."""
        areas = self.random_areas
        chance = f"{areas.mean():+.2f} in {len(areas)} random orders ({areas.min():+.2f} to {areas.max():+.2f})"
        found = f"mean score while regions are deleted: {self.area:+.2f} in the map's order, {chance}"
        if self.negligible:
            return f"Nothing to show: {self.negligible_words}, so the map does not say where the score comes from ({found})."
        return f"Deletion test passed: {found}." if self.faithful else f"Not reliable, deletion test failed: {found}."

    @property
    def negligible_words(self) -> str:
        """How little the strongest region does."""
        return f"the strongest region moves the score of {self.score:+.2f} by {np.abs(self.map).max():.2f} only"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {
            "detector": self.detector,
            "score": self.score,
            "faithful": self.faithful,
            "negligible": self.negligible,
            "strongest": {"effect": float(np.abs(self.map).max()), "least": self.least_effect},
            "words": self.words(),
            "map": self.map.tolist(),
            "seen": self.view.image._asdict(),
            "deletion": {"mean_score": self.area, "curve": self.deletion.tolist()},
            "random_deletion": {
                "orders": len(self.random_areas),
                "mean_score": float(self.random_areas.mean()),
                "lowest": float(self.random_areas.min()),
                "highest": float(self.random_areas.max()),
                "mean_curve": self.random_deletions.mean(axis=0).tolist(),
            },
            "forward_passes": self.cost.passes,
        }

    def heat(self, width: int, height: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The map on an image of this size in pixels, smooth, with zeros where the detector does not look; and where it looks."""
        box = self.view.image
        down = _profiles(self.map.shape[0], box.top * height, box.bottom * height, height)
        across = _profiles(self.map.shape[1], box.left * width, box.right * width, width)
        return np.asarray(down.T @ self.map @ across, np.float32), np.outer(down.any(axis=0), across.any(axis=0))

    @property
    def full_colour(self) -> float:
        """The change of the score, in log-odds, that the overlay paints at full strength."""
        return max(float(np.abs(self.map).max()), _FULL * abs(self.score), _FAINTEST)

    def cropped(self, box: PixelBox) -> "Explanation":
        """The same explanation for a crop of the image, given in fractions of its width and height."""
        wide, high, seen = box.right - box.left, box.bottom - box.top, self.view.image
        left, right = ((edge - box.left) / wide for edge in (seen.left, seen.right))
        top, bottom = ((edge - box.top) / high for edge in (seen.top, seen.bottom))
        return replace(self, view=RegionView(self.view.prepared, PixelBox(left, top, right, bottom)))

    def overlay(self, image: Image.Image) -> Image.Image:
        """The map over the image, or over a smaller copy of it: red speaks for fake, blue for real, hatched is unseen.

        Where effects are negligible the image stays as it is.
        """
        heat, seen = self.heat(*image.size)
        if self.negligible:
            return Image.fromarray(hatched(np.asarray(image.convert("RGB")), ~seen))
        return Image.fromarray(hatched(shade(np.asarray(image.convert("L")), heat / self.full_colour), ~seen))


def explain(
    detector: DetectorLike,
    image: Image.Image,
    *,
    grid: int = GRID,
    seed: int = 0,
    announce: Callable[[ExplanationCost], None] | None = None,
) -> Explanation:
    """Explain one detector's score of an RGB image by occluding cells of a grid of about grid × grid, never more, and check the result.

    `announce` is told the cost once it is known, before the bulk of the work. Raises InputError: the image cannot be prepared, is
    outside the valid range of a detector that keeps sizes, or the detector gives no score for it or for a copy of it.
    """
    _refuse_unscored(detector.card, image)
    pixels = detector.prepare(image)
    view = view_of(detector.card.preprocessing, image, pixels)
    eraser = _Eraser(pixels, view, detector.card.preprocessing.pad, grid)
    cells, copies = eraser.cells, _copies_at_once(detector, pixels)
    score, seconds = _timed_score(detector, pixels)
    passes = 1 + cells + (1 + RANDOM_ORDERS) * (STEPS - 1) + 1
    cost = ExplanationCost(passes, seconds * math.ceil(passes / (detector.slots if detector.card.preprocessing.shape else 1)))
    if announce is not None:
        announce(cost)

    def scores(masks: Sequence[Floats]) -> Floats:
        return _checked(detector, eraser.erased(masks), copies)

    effects = score - scores(list(np.eye(cells, dtype=np.float32)))
    by_map = np.argsort(-effects if score >= 0 else effects, kind="stable")
    chance = np.random.default_rng(seed)
    orders = [by_map, *(chance.permutation(cells) for _ in range(RANDOM_ORDERS))]
    partly = scores([_deleted(order, step) for order in orders for step in range(1, STEPS)]).reshape(len(orders), STEPS - 1)
    curves = np.pad(partly, ((0, 0), (1, 1)))
    curves[:, 0], curves[:, -1] = score, scores([np.ones(cells, np.float32)])[0]
    return Explanation(detector.card.name, effects.reshape(eraser.shape), score, curves[0], curves[1:], view, cost)


def shade(grey: npt.NDArray[np.uint8], strength: Floats) -> Pixels:
    """A grey picture in the colours of the map: strength −1 is blue, 0 leaves it grey, 1 is red; (height, width, 3)."""
    alpha = _OPACITY * np.abs(strength)[..., None]
    colour = np.where(strength[..., None] > 0, _FOR_FAKE, _FOR_REAL)
    pale = 0.6 * grey[..., None] + 90.0
    return np.clip(pale * (1 - alpha) + colour * alpha, 0, 255).astype(np.uint8)


def hatched(pixels: Pixels, where: npt.NDArray[np.bool_]) -> Pixels:
    """A copy of (height, width, 3) in which the pixels of `where` are pale and crossed by diagonal lines."""
    rows, columns = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    lines = (rows + columns) % _HATCH_PX < _HATCH_PX // 4
    unseen = np.where(lines[..., None], np.uint8(130), pixels // 2 + np.uint8(100))
    return np.where(where[..., None], unseen, pixels)


def view_of(preprocessing: Preprocessing, image: Image.Image, pixels: Pixels) -> RegionView:
    """Where the prepared pixels came from: resizing scales, a centre crop leaves the rest unseen, padding shows nothing."""
    height, width = pixels.shape[:2]
    side = preprocessing.center_crop
    if side is None:
        return RegionView(PixelBox(0, 0, width, height), PixelBox(0, 0, 1, 1))
    # The size before the crop is the preprocessing's own to say: it rounds in the authors' way.
    uncropped = preprocessing.model_copy(update={"center_crop": None}).prepare(image)
    (top, bottom), (first_row, last_row) = _crop_along(uncropped.shape[0], side, preprocessing.pad)
    (left, right), (first_column, last_column) = _crop_along(uncropped.shape[1], side, preprocessing.pad)
    return RegionView(PixelBox(left, top, right, bottom), PixelBox(first_column, first_row, last_column, last_row))


def _crop_along(length: int, side: int, pad: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Where the image lies in the crop, in pixels, and which part of it, in fractions."""
    before, seen = round(max(length - side, 0) / 2), min(side, length)
    padding = 0 if pad == "corner" else (side - seen) // 2
    return (padding, padding + seen), (before / length, (before + seen) / length)


class _Eraser:
    """Makes copies of an image in which some cells of a grid give way to a neutral fill.

    The fill is the image itself, blurred by the width of a patch: about 85 % of what a patch shows then comes from its surroundings, in
    their colours. Patches fade into the image over half a cell. Neither leaves an edge, which detectors that look at high frequencies
    would take for a finding; a grey or black square is one. What is removed is a region's detail, not its mean colour.
    """

    def __init__(self, pixels: Pixels, view: RegionView, pad: str, grid: int) -> None:
        left, top, right, bottom = (int(edge) for edge in view.prepared)
        height, width = bottom - top, right - left
        cell = (height * width) ** 0.5 / grid
        shape = [int(np.clip(round(side / cell), 1, max(side // _SMALLEST_CELL_PX, 1))) for side in (height, width)]
        # What the short side of a strip is rounded up to, the long one gives: its cells are long, and no more than a square's.
        self.shape = tuple(min(count, grid**2 // min(shape)) for count in shape)
        # Where small images are mirrored out, a region's reflections are occluded with it.
        around = ((top, pixels.shape[0] - bottom), (left, pixels.shape[1] - right))
        mode: Any = "symmetric" if pad == "mirror" else "constant"
        self._down = np.pad(_profiles(self.shape[0], 0, height, height), ((0, 0), around[0]), mode=mode)
        self._across = np.pad(_profiles(self.shape[1], 0, width, width), ((0, 0), around[1]), mode=mode)
        patch = (1 + 2 * _FADE) * (height * width / self.cells) ** 0.5
        seen = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
        blurred = np.asarray(seen.filter(ImageFilter.GaussianBlur(patch)))
        self._image = Image.fromarray(pixels)
        self._fill = Image.fromarray(np.pad(blurred, (*around, (0, 0)), mode=mode))

    @property
    def cells(self) -> int:
        """How many cells the grid has."""
        return self.shape[0] * self.shape[1]

    def erased(self, masks: Sequence[Floats]) -> Iterator[Pixels]:
        """One copy per mask; a mask holds 1 for every cell that goes, row by row, and 0 for the others."""
        for mask in masks:
            stencil = (255 * self._down.T) @ mask.reshape(self.shape) @ self._across
            stencil += 0.5
            yield np.array(Image.composite(self._fill, self._image, Image.fromarray(stencil.astype(np.uint8))))


def _profiles(cells: int, start: float, stop: float, length: int) -> Floats:
    """How much of each pixel along one side belongs to each cell between two edges: (cells, length), sums of 1 between them, 0 outside."""
    at = (np.arange(length) + 0.5 - start) / (stop - start) * cells
    inward = np.clip(at, 0.5, cells - 0.5)  # the outermost cells do not fade outward
    distance = np.abs(inward - (np.arange(cells)[:, None] + 0.5))
    share = np.clip((0.5 + _FADE - distance) / (2 * _FADE), 0, 1) * ((at >= 0) & (at <= cells))
    return np.asarray(share, np.float32)


def _deleted(order: npt.NDArray[np.intp], step: int) -> Floats:
    mask = np.zeros(len(order), np.float32)
    mask[order[: round(len(order) * step / STEPS)]] = 1
    return mask


def _areas(curves: Floats) -> Floats:
    return np.asarray(np.trapezoid(curves, dx=1 / STEPS, axis=1), np.float32)


def _copies_at_once(detector: DetectorLike, pixels: Pixels) -> int:
    # A fixed shape is always run at full slots; images of their own size run alone, however few come.
    return detector.slots if detector.card.preprocessing.shape else max(min(detector.slots, _CHUNK_BYTES // pixels.nbytes), 1)


def _timed_score(detector: DetectorLike, pixels: Pixels) -> tuple[float, float]:
    """The image's score, and the seconds of one batch: of a quick one the best of three, since the machine does other things too."""
    score = float(_checked(detector, iter([pixels]), 1)[0])  # also sets up what only the first batch pays for
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < _TIMING_S:
        start = time.perf_counter()
        detector.score(pixels[None])
        seconds.append(time.perf_counter() - start)
    return score, min(seconds)


def _checked(detector: DetectorLike, copies: Iterator[Pixels], at_once: int) -> Floats:
    parts = []
    while chunk := list(islice(copies, at_once)):
        parts.append(detector.score(np.stack(chunk)))
    scores = np.concatenate(parts)
    missing = int(np.count_nonzero(~np.isfinite(scores)))
    if missing:
        raise InputError(Status.DETECTOR_FAILED, f"{detector.card.name}: no finite score for {missing} of {len(scores)} copies of it")
    return scores


def _refuse_unscored(card: DetectorCard, image: Image.Image) -> None:
    # As in a run: a detector that keeps sizes gives no score outside its valid range; one that resizes gives it with a doubt.
    doubt = card.valid_range.doubt(image.width, image.height)
    if card.preprocessing.shape is None and doubt is not None:
        too_small = min(image.size) < card.valid_range.min_side_px
        raise InputError(Status.DETECTOR_FAILED if too_small else Status.IMAGE_TOO_LARGE, f"{card.name}: {doubt}")
