"""Describe the images that an ensemble was calibrated on, to compare an archive with them.

The description is a `Population`: the distribution of properties such as score, format, and size
over the real and the fake images. `measure_population` counts labelled images into bins, and
`PopulationTally` counts the images of an archive into the same bins. `measure_coverage` returns the
formats and sizes of the labelled images.
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
FORMAT = "format"  # The only property with text values.


class LabelledPart(Frozen):
    """One of the disjoint parts of the labelled images that an ensemble was calibrated on.

    The rule that combines the detectors' scores is fitted on the part `fit`. Probabilities are
    calibrated on the part `calibrate`. Thresholds are chosen on the part `choose`.
    """

    name: Literal["fit", "calibrate", "choose"] = Field(description="what the part is used for")
    n_real: NonNegativeInt = Field(description="number of real images")
    n_fake: NonNegativeInt = Field(description="number of fake images")
    groups: NonNegativeInt = Field(description="number of groups of the images")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the sorted hashes of the part's files, one per line, in hex",
    )


class Feature(Frozen):
    """Histogram of one property of the images that an ensemble was calibrated on.

    It has the number of real and of fake images per bin. For a property with numbers, such as the
    score, `edges` separate the bins. For the property `format`, each of `words`, such as JPEG, has
    a bin.
    """

    name: str = Field(description="name of the property")
    edges: tuple[float, ...] = Field(
        default=(),
        description="edges e₁ < … < eₖ₋₁ between k bins of numbers. An edge belongs to the bin below it",
    )
    words: tuple[str, ...] = Field(
        default=(),
        description="text values with a bin each. All other values belong to a last bin",
    )
    real: tuple[NonNegativeInt, ...] = Field(description="number of real images per bin")
    fake: tuple[NonNegativeInt, ...] = Field(description="number of fake images per bin")

    @model_validator(mode="after")
    def _check_bins(self) -> "Feature":
        n_bins = len(self.words or self.edges) + 1
        if len(self.real) != n_bins or len(self.fake) != n_bins:
            raise ValueError(
                f"{self.name}: `real` and `fake` must have {n_bins} counts each, one per bin, got {len(self.real)} and {len(self.fake)}"
            )
        if bool(self.words) and bool(self.edges):
            raise ValueError(
                f"property {self.name}: set either `edges` (for numbers) or `words` (for text), not both"
            )
        return self

    def count(self, column: Values) -> Counts:
        """Return the number of images in each of the k bins of this property, int64 (k,).

        `column` has the value of the property for each of n images. An image without the property
        (NaN or None) is not counted.
        """
        if self.words:
            counts = Counter(column)
            word_counts = [counts[word] for word in self.words]
            return np.array([*word_counts, len(column) - counts[None] - sum(word_counts)], np.int64)
        numbers = np.asarray(column, np.float64)
        bins = np.searchsorted(self.edges, numbers[~np.isnan(numbers)], "left")
        return np.bincount(bins, minlength=len(self.edges) + 1).astype(np.int64)


class Seen(Frozen):
    """Formats and sizes of all images, real and fake, that the calibration was measured on."""

    formats: tuple[str, ...] = Field(
        default=(), description="formats of the images. Empty means not recorded"
    )
    short_side_px: tuple[int, int] | None = Field(
        default=None,
        description="minimum and maximum of the shorter side, in pixels. null means not recorded",
    )
    megapixels: tuple[float, float] | None = Field(
        default=None,
        description="minimum and maximum of the number of pixels, in millions. null means not recorded",
    )

    def describe_mismatch(
        self, format: str | None, width: int | None, height: int | None
    ) -> str | None:
        """Describe how the format or size of an image differs from those of the calibration.

        An unknown format or size counts as equal. The phrase states the limits and not the image's
        own size, so that it is the same for many images.

        Args:
            format: Format of the image. None if unknown.
            width: Width in pixels. None if unknown.
            height: Height in pixels. None if unknown.

        Returns:
            The phrase. None if the format and size are among those of the calibration.
        """
        reasons = (
            [f"format {format}"]
            if self.formats and format is not None and format not in self.formats
            else []
        )
        if width is not None and height is not None:
            reasons += _describe_excess(
                "the short side", min(width, height), self.short_side_px, "px"
            )
            reasons += _describe_excess(
                "the image", width * height / 1e6, self.megapixels, "megapixels"
            )
        return f"outside what the calibration saw: {', '.join(reasons)}" if reasons else None


class Population(Frozen):
    """Description of the labelled images that an ensemble was calibrated on.

    `features` has these properties: `score` (that of the ensemble), `score:DETECTOR` (the raw score
    of each detector), `format`, `megapixels`, `short_side_px`, `jpeg_quality`.
    """

    what: str = Field(description="description of the images")
    prevalence: float = Field(
        gt=0,
        lt=1,
        description="fraction of fakes among all images at which the calibrated probabilities are right",
    )
    parts: tuple[LabelledPart, ...] = Field(description="disjoint parts of the labelled images")
    generators: tuple[str, ...] = Field(default=(), description="generators of the fakes")
    features: tuple[Feature, ...] = Field(
        default=(), description="distribution of each image property"
    )
    seen: Seen | None = Field(
        default=None,
        description="formats and sizes of the images. An image outside them gets no verdict",
    )

    @property
    def sha256(self) -> str:
        """SHA-256 of the serialized population, in hex. A run records it as the identity of its calibration."""
        return hashlib.sha256(
            json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()
        ).hexdigest()


class PopulationTally:
    """Count the images of an archive, batch by batch, into the bins of a `Population`.

    The population describes the images that an ensemble was calibrated on. The counts show whether
    the archive resembles these images.

    Args:
        features: The image properties of the population, with their bins.

    Attributes:
        counts: Number of images per bin, int64 (k,), by name of the property.
    """

    def __init__(self, features: Iterable[Feature]) -> None:
        self._features = {feature.name: feature for feature in features}
        self.counts = {
            name: np.zeros(len(feature.real), np.int64) for name, feature in self._features.items()
        }

    def bins(self) -> dict[str, tuple[Counts, Counts, Counts]]:
        """Return, by name of the property, three arrays with the number of images in each bin.

        The first array has the images of this tally. The second has the real images of the
        population, and the third its fake images.
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
        """Count a batch of images into the bins.

        `properties` has a column for each property, with one value per image
        (`compute_properties`). A property that is missing there is not counted for these images.
        """
        for name, feature in self._features.items():
            if name in properties:
                self.counts[name] += feature.count(properties[name])


def compute_properties(
    *,
    score: npt.ArrayLike,
    scores: Mapping[str, npt.ArrayLike],
    formats: Sequence[str | None],
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    quality: npt.ArrayLike | None = None,
) -> dict[str, Values]:
    """Compute the properties of n images that a `Population` describes, by name.

    Args:
        score: Ensemble scores (n,), log-odds of fake.
        scores: Raw scores (n,) per detector. NaN if the detector did not score the image, such as a
            detector of a cascade's second stage.
        formats: Format of each image. None if unknown.
        width: Widths (n,) in pixels. NaN if unknown.
        height: Heights (n,) in pixels. NaN if unknown.
        quality: JPEG quality (n,). NaN for other formats. None if it was not read.

    Returns:
        One column (n,) per property. A missing value is NaN, a missing format None.
    """
    widths, heights = np.asarray(width, np.float64), np.asarray(height, np.float64)
    properties: dict[str, Values] = {"score": np.asarray(score, np.float64)}
    properties |= {
        f"score:{name}": np.asarray(column, np.float64) for name, column in scores.items()
    }
    properties |= {
        FORMAT: list(formats),
        "megapixels": widths * heights / 1e6,
        "short_side_px": np.minimum(widths, heights),
    }
    return (
        properties
        if quality is None
        else properties | {"jpeg_quality": np.asarray(quality, np.float64)}
    )


def measure_population(
    what: str,
    fake: npt.ArrayLike,
    properties: Properties,
    *,
    parts: Sequence[LabelledPart],
    prevalence: float,
    generators: Sequence[str] = (),
) -> Population:
    """Describe labelled images as a `Population`: count their properties per class and bin.

    For a property with numbers, such as the score, the bins end at the deciles of the real images.
    A value that many real images share has its own bin. A property that no real image has is left
    out.

    Args:
        what: Description of the images.
        fake: Labels (n,), True = fake.
        properties: The properties of the images, from `compute_properties`.
        parts: The disjoint parts of the labelled images, each for one step of the calibration.
        prevalence: The fraction of fakes among all images for which the calibrated probabilities
            are right.
        generators: Generators of the fakes.

    Returns:
        The population.
    """
    fakes = np.asarray(fake, bool)
    features = [_feature(name, column, ~fakes, fakes) for name, column in properties.items()]
    return Population(
        what=what,
        prevalence=prevalence,
        parts=tuple(parts),
        generators=tuple(generators),
        features=tuple(feature for feature in features if feature is not None),
        seen=measure_coverage(properties),
    )


def measure_coverage(properties: Properties) -> Seen:
    """Return the formats and the range of sizes of the calibration's images, for `Population.seen`.

    `properties` are those of the images, from `compute_properties`.
    """
    ranges = {}
    for name in ("short_side_px", "megapixels"):
        numbers = np.asarray(properties.get(name, ()), np.float64)
        values = numbers[~np.isnan(numbers)]
        ranges[name] = (float(values.min()), float(values.max())) if len(values) else None
    return Seen.model_validate(
        {
            "formats": sorted(
                {word for word in properties.get(FORMAT, ()) if isinstance(word, str)}
            ),
            **ranges,
        }
    )


def select_values(column: Values, rows: npt.NDArray[np.bool_]) -> Values:
    """Return the values of an image property for the images that a bool mask (n,) selects.

    `column` has the values of the property (n,), from `compute_properties`.
    """
    return (
        column[rows]
        if isinstance(column, np.ndarray)
        else [column[index] for index in np.flatnonzero(rows).tolist()]
    )


def _feature(
    name: str, column: Values, reals: npt.NDArray[np.bool_], fakes: npt.NDArray[np.bool_]
) -> Feature | None:
    classes = [select_values(column, rows) for rows in (reals, fakes)]
    if name == FORMAT:
        words = tuple(
            sorted({word for values in classes for word in values if isinstance(word, str)})
        )
        blank = Feature(
            name=name, words=words, real=(0,) * (len(words) + 1), fake=(0,) * (len(words) + 1)
        )
    else:
        edges = _edges(np.asarray(classes[0], np.float64))
        blank = Feature(
            name=name, edges=edges, real=(0,) * (len(edges) + 1), fake=(0,) * (len(edges) + 1)
        )
    real, fake = (tuple(blank.count(values).tolist()) for values in classes)
    return blank.model_copy(update={"real": real, "fake": fake}) if sum(real) else None


def _edges(reals: Numbers) -> tuple[float, ...]:
    """Return bin edges at the deciles of the reals.

    A value that at least a twentieth of the reals share also gets an edge below it.
    """
    values = np.sort(reals[~np.isnan(reals)])
    if not len(values):
        return ()
    edges = np.unique(
        values[
            [
                round(decile * len(values) / BINS) - 1
                for decile in range(1, BINS)
                if round(decile * len(values) / BINS)
            ]
        ]
    )
    is_shared = np.searchsorted(values, edges, "right") - np.searchsorted(
        values, edges, "left"
    ) >= len(values) / (2 * BINS)
    are_integers = bool((values == np.round(values)).all())
    lower_edges = (
        edges[is_shared] - 0.5 if are_integers else np.nextafter(edges[is_shared], -np.inf)
    )
    return tuple(np.unique(np.concatenate([edges, lower_edges])).tolist())


def _describe_excess(
    subject: str, value: float, bounds: tuple[float, float] | None, unit: str
) -> list[str]:
    """Return a phrase if a value is outside a range, else an empty list."""
    if bounds is None or bounds[0] <= value <= bounds[1]:
        return []
    return [
        f"{subject} has under {bounds[0]:.4g} {unit}"
        if value < bounds[0]
        else f"{subject} has over {bounds[1]:.4g} {unit}"
    ]
