"""Encoded bytes → one batch of uint8 tensors, each image decoded once, each failure an outcome in its own slot.

Images are decoded in this process, where it is fastest. A decoder that crashes or hangs ends the process; the crumb it leaves
tells the next worker which member to hand to a child process, and after a few crashes all of them go there.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ray_app.errors import InputError, Status
from ray_app.images import Breadcrumb, ChildDecoder, DecodedImage, ImageFacts, ImageRefused, Watchdog, decode_image
from ray_app.images.colour import to_rgb
from ray_app.inference.clock import StageClock
from ray_app.inference.spec import ScoringSpec

TRUSTED_CRASHES = 3  # on one node; beyond that the library, not the member, is suspect, and every image goes to the child
# Of 7,639 hostile files none took over a second (specs/intake.md §4.2), but an honest 49-megapixel AVIF takes 11 s on a busy core.
WALL_LIMIT_S = 20.0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """What became of one member before any detector saw it."""

    status: Status
    detail: str | None
    facts: ImageFacts | None


@dataclass(frozen=True)
class Batch:
    """Fixed slots: `pixels` has one (slots, H, W, 3) array per distinct preprocessing, zeros in unusable slots.

    `outcomes` has one entry per member, in slot order; there are fewer than slots only at the end of a block.
    `pixels` is empty where no member could be decoded.
    """

    outcomes: tuple[Outcome, ...]
    pixels: tuple[Pixels, ...]

    @property
    def usable(self) -> list[bool]:
        """Per member, whether it has pixels."""
        return [outcome.status is Status.OK for outcome in self.outcomes]


class BatchDecoder:
    """Decodes and prepares; `crumbs` is a folder on the node's own disk, or None where a crash may take the process along."""

    def __init__(self, spec: ScoringSpec, clock: StageClock, crumbs: Path | None = None) -> None:
        self._spec, self._clock, self._crumbs = spec, clock, crumbs
        self._closing = ExitStack()
        self._crumb: Breadcrumb | None = None
        self._child: ChildDecoder | None = None
        self._suspects: set[int] = set()
        if crumbs is not None:
            self._crumb = self._closing.enter_context(closing(Breadcrumb(crumbs)))
            self._closing.enter_context(Watchdog(self._crumb, WALL_LIMIT_S))
            self._child = self._closing.enter_context(ChildDecoder(spec.limits, WALL_LIMIT_S))

    def close(self) -> None:
        """End the child process and remove the crumb."""
        self._closing.close()

    def look_for_crumbs(self) -> None:
        """Learn which members killed a worker of this node; called once per block."""
        if self._crumbs is not None:
            self._suspects = Breadcrumb.left_in(self._crumbs)

    def decode(self, fetched: Sequence[tuple[int, bytes | Image.Image | InputError]]) -> Batch:
        """Decode (image_id, bytes | PIL image | why there are none) for up to `slots` members."""
        outcomes, prepared = [], []
        for image_id, data in fetched:
            outcome, tensors = self._one(image_id, data)
            outcomes.append(outcome)
            prepared.append(tensors)
        with self._clock("prepare"):
            return Batch(tuple(outcomes), self._stack(prepared))

    def _one(self, image_id: int, data: bytes | Image.Image | InputError) -> tuple[Outcome, list[Pixels] | None]:
        facts = None
        try:
            image = self._image(image_id, data)
            facts = image.facts
            with self._clock("prepare"):
                tensors = [preprocessing.prepare(image.pixels, self._spec.resize) for preprocessing in self._spec.preprocessings]
        except InputError as refused:
            if isinstance(refused, ImageRefused):
                facts = refused.facts
            return Outcome(refused.status, refused.detail, facts), None
        return Outcome(Status.OK, None, facts), tensors

    def _image(self, image_id: int, data: bytes | Image.Image | InputError) -> DecodedImage:
        if isinstance(data, InputError):
            raise data
        with self._clock("decode"):
            if isinstance(data, Image.Image):
                return _of_pil(data)
            if self._child is not None and (image_id in self._suspects or len(self._suspects) > TRUSTED_CRASHES):
                return self._child.decode(data)
            if self._crumb is None:
                return decode_image(data, self._spec.limits)
            self._crumb.note(image_id)
            try:
                return decode_image(data, self._spec.limits)
            finally:
                self._crumb.clear()

    def _stack(self, prepared: Sequence[Sequence[Pixels] | None]) -> tuple[Pixels, ...]:
        first = next((images for images in prepared if images is not None), None)
        if first is None:
            return ()
        batches = tuple(np.zeros((self._spec.slots, *image.shape), np.uint8) for image in first)
        for slot, images in enumerate(prepared):
            for batch, image in zip(batches, images or (), strict=False):
                batch[slot] = image
        return batches


def _of_pil(image: Image.Image) -> DecodedImage:
    """An image that somebody else decoded: the same colour rules; `sha256` is that of its RGB pixels, since there is no file."""
    flags: set[str] = set()
    pixels = to_rgb(image, flags, 8)
    facts = ImageFacts(hashlib.sha256(pixels.tobytes()).hexdigest(), width=image.width, height=image.height, mode=image.mode,
                       flags=tuple(sorted(flags)))  # fmt: skip
    return DecodedImage(pixels, facts)
