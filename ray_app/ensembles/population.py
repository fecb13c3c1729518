"""The population of a calibration: how image properties are distributed over its reals and over its
fakes, as counts per bin.

`population_of` counts labelled parts, `seen_in` the formats and sizes of a calibration;
`PopulationTally` counts an archive alike.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, model_validator

from ray_app.config import Frozen

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Values = Numbers | Sequence[str | None]
Properties = Mapping[str, Values]

BINS = 10
WORDS = "format"  # the one property in words


class LabelledPart(Frozen):
    """One of the disjoint parts of the labelled images. `sha256`: of the sorted hashes of its
    files, one per line.
    """

    name: Literal["fit", "calibrate", "choose"]
    n_real: NonNegativeInt
    n_fake: NonNegativeInt
    groups: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Feature(Frozen):
    """How one property is spread: how many reals and fakes each bin has.

    Of numbers, `edges` e₁ < … < eₖ₋₁ part k bins; an edge belongs to the bin below it. Of words,
    each has its bin, and all others the last.
    """

    name: str
    edges: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    real: tuple[NonNegativeInt, ...]
    fake: tuple[NonNegativeInt, ...]

    @model_validator(mode="after")
    def _fits(self) -> "Feature":
        bins = len(self.words or self.edges) + 1
        if len(self.real) != bins or len(self.fake) != bins:
            raise ValueError(
                f"{self.name}: {len(self.real)} and {len(self.fake)} counts for {bins} bins"
            )
        if bool(self.words) and bool(self.edges):
            raise ValueError(f"{self.name}: either edges or words")
        return self

    def counted(self, column: Values) -> Counts:
        """How many of some images (n,) each bin has, int64 (k,); those that lack the property (NaN,
        None) are nowhere.
        """
        if self.words:
            found = Counter(column)
            named = [found[word] for word in self.words]
            return np.array([*named, len(column) - found[None] - sum(named)], np.int64)
        numbers = np.asarray(column, np.float64)
        places = np.searchsorted(self.edges, numbers[~np.isnan(numbers)], "left")
        return np.bincount(places, minlength=len(self.edges) + 1).astype(np.int64)


class Seen(Frozen):
    """Which images the calibration saw at all, of whatever class; null = not noted. Both ends were
    seen.
    """

    formats: tuple[str, ...] = ()
    short_side_px: tuple[int, int] | None = None
    megapixels: tuple[float, float] | None = None

    def doubt(self, format: str | None, width: int | None, height: int | None) -> str | None:
        """Why an image is none of those; None where it may be one, or where nothing is known of it.
        There are few such sentences.
        """
        reasons = (
            [f"format {format}"]
            if self.formats and format is not None and format not in self.formats
            else []
        )
        if width is not None and height is not None:
            reasons += _beyond("the short side", min(width, height), self.short_side_px, "px")
            reasons += _beyond("the image", width * height / 1e6, self.megapixels, "megapixels")
        return f"outside what the calibration saw: {', '.join(reasons)}" if reasons else None


class Population(Frozen):
    """What a calibration was measured on. `prevalence`: the share of fakes at which its
    probabilities are chances.

    `features`: `score` (the ensemble's), `score:DETECTOR` (raw), `format`, `megapixels`,
    `short_side_px`, `jpeg_quality`. `seen`: outside of it an image has no verdict.
    """

    what: str
    prevalence: float = Field(gt=0, lt=1)
    parts: tuple[LabelledPart, ...]
    generators: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()
    seen: Seen | None = None

    @property
    def sha256(self) -> str:
        """Of all that stands here."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()


class PopulationTally:
    """How an archive's images fall into the bins of a population, counted a piece at a time.
    `counts`: per feature, int64 (k,).
    """

    def __init__(self, features: Iterable[Feature]) -> None:
        self._features = {feature.name: feature for feature in features}
        self.counts = {
            name: np.zeros(len(feature.real), np.int64) for name, feature in self._features.items()
        }

    def bins(self) -> dict[str, tuple[Counts, Counts, Counts]]:
        """Return per feature the images in each bin (k,): counted here, and the population's reals
        and fakes.
        """
        return {
            name: (
                self.counts[name],
                np.array(feature.real, np.int64),
                np.array(feature.fake, np.int64),
            )
            for name, feature in self._features.items()
        }

    def add(self, properties: Properties) -> None:
        """Count some images; a property that is not given is not counted of them."""
        for name, feature in self._features.items():
            if name in properties:
                self.counts[name] += feature.counted(properties[name])


def properties_of(
    *,
    score: npt.ArrayLike,
    scores: Mapping[str, npt.ArrayLike],
    formats: Sequence[str | None],
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    quality: npt.ArrayLike | None = None,
) -> dict[str, Values]:
    """The properties of some images (n,), by the names of a population's features. What an image
    lacks is NaN, a format None.

    `score`: the ensemble's as its card makes it; `scores`: raw, per detector. Of a cascade's later
    members they are NaN where these do not look. `quality`: of JPEGs; None where it was not read.
    """
    wide, high = np.asarray(width, np.float64), np.asarray(height, np.float64)
    found: dict[str, Values] = {"score": np.asarray(score, np.float64)}
    found |= {f"score:{name}": np.asarray(column, np.float64) for name, column in scores.items()}
    found |= {
        WORDS: list(formats),
        "megapixels": wide * high / 1e6,
        "short_side_px": np.minimum(wide, high),
    }
    return found if quality is None else found | {"jpeg_quality": np.asarray(quality, np.float64)}


def population_of(
    what: str,
    fake: npt.ArrayLike,
    properties: Properties,
    *,
    parts: Sequence[LabelledPart],
    prevalence: float,
    generators: Sequence[str] = (),
) -> Population:
    """The population of labelled images: `fake` (n,) bool, `properties` of `properties_of`.

    Numbers fall into tenths of the reals; a value that many reals share has a bin of its own. A
    property that no real has is left out.
    """
    fakes = np.asarray(fake, bool)
    features = [_feature(name, column, ~fakes, fakes) for name, column in properties.items()]
    return Population(
        what=what,
        prevalence=prevalence,
        parts=tuple(parts),
        generators=tuple(generators),
        features=tuple(feature for feature in features if feature is not None),
        seen=seen_in(properties),
    )


def seen_in(properties: Properties) -> Seen:
    """What some images are, at most and at least."""
    ends = {}
    for name in ("short_side_px", "megapixels"):
        numbers = np.asarray(properties.get(name, ()), np.float64)
        known = numbers[~np.isnan(numbers)]
        ends[name] = (float(known.min()), float(known.max())) if len(known) else None
    return Seen.model_validate(
        {
            "formats": sorted(
                {word for word in properties.get(WORDS, ()) if isinstance(word, str)}
            ),
            **ends,
        }
    )


def values_at(column: Values, rows: npt.NDArray[np.bool_]) -> Values:
    """The values of some rows (n,) bool."""
    return (
        column[rows]
        if isinstance(column, np.ndarray)
        else [column[place] for place in np.flatnonzero(rows).tolist()]
    )


def _feature(
    name: str, column: Values, reals: npt.NDArray[np.bool_], fakes: npt.NDArray[np.bool_]
) -> Feature | None:
    classes = [values_at(column, rows) for rows in (reals, fakes)]
    if name == WORDS:
        words = tuple(sorted({word for some in classes for word in some if isinstance(word, str)}))
        blank = Feature(
            name=name, words=words, real=(0,) * (len(words) + 1), fake=(0,) * (len(words) + 1)
        )
    else:
        edges = _edges(np.asarray(classes[0], np.float64))
        blank = Feature(
            name=name, edges=edges, real=(0,) * (len(edges) + 1), fake=(0,) * (len(edges) + 1)
        )
    real, fake = (tuple(blank.counted(some).tolist()) for some in classes)
    return blank.model_copy(update={"real": real, "fake": fake}) if sum(real) else None


def _edges(reals: Numbers) -> tuple[float, ...]:
    """Where tenths of the reals end; a value that half a tenth of them share is parted from all
    lower ones too.
    """
    known = np.sort(reals[~np.isnan(reals)])
    if not len(known):
        return ()
    ends = np.unique(
        known[
            [
                round(share * len(known) / BINS) - 1
                for share in range(1, BINS)
                if round(share * len(known) / BINS)
            ]
        ]
    )
    shared = np.searchsorted(known, ends, "right") - np.searchsorted(known, ends, "left") >= len(
        known
    ) / (2 * BINS)
    whole = bool((known == np.round(known)).all())
    before = ends[shared] - 0.5 if whole else np.nextafter(ends[shared], -np.inf)
    return tuple(np.unique(np.concatenate([ends, before])).tolist())


def _beyond(what: str, value: float, ends: tuple[float, float] | None, unit: str) -> list[str]:
    """What to say of a value outside of two ends."""
    if ends is None or ends[0] <= value <= ends[1]:
        return []
    return [
        f"{what} has under {ends[0]:.4g} {unit}"
        if value < ends[0]
        else f"{what} has over {ends[1]:.4g} {unit}"
    ]
