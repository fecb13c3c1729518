"""What decoding hands to detectors: outcomes of members, and fixed slots of pixels. Plain values; no decoder, no detector."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.errors import Status, one_line, said
from ray_app.images import ImageFacts

Pixels = npt.NDArray[np.uint8]
Ragged = Sequence[Pixels | None]
Size = tuple[int, int]
File = bytes | Image.Image  # an image as somebody gave it
OWN_FAILURE = "Touchstone's own code failed: "  # how the detail of a member begins that met a bug of ours


@dataclass(frozen=True)
class Said:
    """What detectors said of the same bytes before: of member `twin` of this block, or, where that is None, these scores and replies."""

    twin: int | None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    replies: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one member before any detector saw it.

    `phash`: 16 hex digits, where the spec asks for them. `said`: why no detector need look at it. `provenance`: the JSON of what the file
    says of its origin, where the spec asks for it and it says something. `failure`: the traceback, where our own code failed on it.
    """

    status: Status
    detail: str | None
    facts: ImageFacts | None
    phash: str | None = None
    said: Said | None = None
    provenance: str | None = None
    failure: str | None = None

    @classmethod
    def of_failure(cls, error: Exception, facts: ImageFacts | None) -> "Outcome":
        """What a bug of ours costs the member that met it; of its facts no more is kept than which file it is."""
        known = None if facts is None else ImageFacts(facts.sha256, facts.format)
        told = "".join(traceback.format_exception(error))
        return cls(Status.DECODER_CRASHED, one_line(OWN_FAILURE + said(error)), known, failure=told)


@dataclass(frozen=True)
class View:
    """A batch as one perturbation shows it. `pixels` as in `Batch`; where sizes are kept, an image is made when it is asked for.

    `sizes`: per member the (width, height) of the perturbed image before it was prepared; None where there is none.
    """

    pixels: tuple[Pixels | Ragged, ...]
    sizes: tuple[Size | None, ...]


@dataclass(frozen=True)
class Batch:
    """Fixed slots. Per distinct preprocessing, `pixels` has one (slots, H, W, 3) array with zeros in unusable slots; or, where sizes
    are kept, one array or None per slot.

    `outcomes` has one entry per member, in slot order; there are fewer than slots only at the end of a block.
    `pixels` is empty where no member could be decoded. `encoded`: the files themselves, for detectors that keep sizes and sit in
    another process, and for a second look; None where they do not decode. `views`: one for each of the spec's, empty where `pixels` is.
    `ids`: image ids of the members, where files are kept in the process that decoded them.
    """

    outcomes: tuple[Outcome, ...]
    pixels: tuple[Pixels | Ragged, ...]
    encoded: tuple[File | None, ...] = ()
    views: tuple[View, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def usable(self) -> list[bool]:
        """Per member, whether it has pixels."""
        return [outcome.status is Status.OK and outcome.said is None for outcome in self.outcomes]
