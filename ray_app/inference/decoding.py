"""Encoded bytes → one batch of uint8 tensors, each image decoded once for all its views, each failure an outcome in its own slot.

Images are decoded in this process, where it is fastest. A decoder that crashes or hangs ends the process; the crumb it leaves
tells the next worker which member to hand to a child process, and after a few crashes all of them go there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ray_app.detectors import Preprocessing
from ray_app.errors import InputError, Status, is_of_one_image
from ray_app.images import Breadcrumb, ChildDecoder, DecodedImage, ImageFacts, ImageRefused, Watchdog, decode_image, inspect_bytes
from ray_app.images.colour import to_rgb
from ray_app.images.content import has_content
from ray_app.images.perceptual import perceptual_hash
from ray_app.images.provenance import ProvenanceReader
from ray_app.inference.batches import Batch, Outcome, Pixels, Ragged, Size, View
from ray_app.inference.clock import StageClock
from ray_app.inference.spec import ScoringSpec
from ray_app.inference.viewing import ImageOf, Late, Lazily, Prepared, column, perturbed
from ray_app.perturbations import Perturbation

if TYPE_CHECKING:
    from ray_app.inference.reusing import Recall

TRUSTED_CRASHES = 3  # on one node; beyond that the library, not the member, is suspect, and every image goes to the child
# Of 7,639 hostile files none took over a second (specs/intake.md §4.2), but an honest 49-megapixel AVIF takes 11 s on a busy core.
WALL_LIMIT_S = 20.0


class BatchDecoder:
    """Decodes and prepares; `crumbs` is a folder on the node's own disk, or None where a crash may take the process along.

    With `hand_over`, images that keep their size are not prepared: their encoded bytes go along instead, to be decoded where they
    are scored. With `keeps_files`, all files go along, since some members may be looked at again.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        clock: StageClock,
        crumbs: Path | None = None,
        *,
        hand_over: bool = False,
        keeps_files: bool = False,
        wall_limit_s: float = WALL_LIMIT_S,
        recall: "Recall | None" = None,
    ) -> None:
        self._spec, self._clock, self._crumbs, self._recall = spec, clock, crumbs, recall
        self._keeps_files = keeps_files
        self._hand_over = hand_over and spec.keeps_sizes
        self.decoded = 0
        self._closing = ExitStack()
        self._crumb: Breadcrumb | None = None
        self._child: ChildDecoder | None = None
        self._suspects: set[int] = set()
        self._origins = None if spec.provenance is None else ProvenanceReader(spec.provenance)
        if crumbs is not None:
            self._crumb = self._closing.enter_context(closing(Breadcrumb(crumbs)))
            self._closing.enter_context(Watchdog(self._crumb, wall_limit_s))
            self._child = self._closing.enter_context(ChildDecoder(spec.limits, wall_limit_s))

    def asking(self, spec: ScoringSpec, clock: StageClock) -> "BatchDecoder":
        """One that prepares images as another spec says and counts for itself, with the same crumb and child; nothing is remembered."""
        other = copy(self)
        other._spec, other._clock, other.decoded = spec, clock, 0
        other._recall = other._origins = None
        other._hand_over = other._keeps_files = False
        return other

    @property
    def counts(self) -> dict[str, int]:
        """How many images were decoded, and how many were known already, since the start."""
        return {"decoded": self.decoded, "reused": 0 if self._recall is None else self._recall.reused}

    def close(self) -> None:
        """End the child process and remove the crumb."""
        self._closing.close()

    def look_for_crumbs(self) -> None:
        """Learn which members killed a worker of this node; called once per block."""
        if self._crumbs is not None:
            left = Breadcrumb.left_in(self._crumbs)
            self._suspects.clear()  # shared with those of `asking`
            self._suspects.update(left)

    def decode(self, fetched: Sequence[tuple[int, bytes | Image.Image | InputError]]) -> Batch:
        """Decode (image_id, bytes | PIL image | why there are none) for up to `slots` members."""
        outcomes, prepared, encoded, kept = [], [], [], []
        for image_id, data in fetched:
            outcome, tensors, image = self._one(image_id, data)
            outcomes.append(outcome)
            if self._recall is not None:
                self._recall.met(outcome)
            prepared.append(tensors)
            encoded.append(None if isinstance(data, InputError) or tensors is None else data)
            kept.append(image)
        with self._clock("prepare"):
            pixels, views = self._stack(prepared), self._views(prepared, kept)
            files = tuple(encoded) if self._hand_over or self._keeps_files else ()
            return Batch(tuple(outcomes), pixels, files, views if pixels else (), tuple(image_id for image_id, _ in fetched))

    def complete(self, batch: Batch) -> Batch:
        """Images that were handed over encoded are decoded when they are looked at, one by one, since they may be large."""
        if not batch.encoded or not batch.pixels:
            return batch
        images, count = Late(batch.encoded, lambda data: self._image(0, data), keeps=bool(batch.views)), len(batch.encoded)
        views = (
            replace(view, pixels=self._completed(images, count, view.pixels, perturbation))
            for view, perturbation in zip(batch.views, self._spec.views, strict=True)
        )
        files = batch.encoded if self._keeps_files else ()
        return replace(batch, pixels=self._completed(images, count, batch.pixels, None), encoded=files, views=tuple(views))

    def _completed(
        self, images: ImageOf, count: int, pixels: tuple[Pixels | Ragged, ...], view: Perturbation | None
    ) -> tuple[Pixels | Ragged, ...]:
        return tuple(
            Lazily(count, images, partial(self._prepared, preprocessing), view) if preprocessing.shape is None else tensor
            for preprocessing, tensor in zip(self._spec.preprocessings, pixels, strict=False)  # views have none of the describer's
        )

    def _one(self, image_id: int, data: bytes | Image.Image | InputError) -> tuple[Outcome, Prepared | None, DecodedImage | None]:
        """An image that is known already has no tensors: its slot stays empty, so that nobody else's batch changes. What it says of its
        origin is read anew: it costs little, and another trust list may now hold. A bug of ours costs the image that met it, and no other.
        """
        known = self._known(data)
        try:
            if known is None or known.facts is None:
                return self._decoded(image_id, data)
            return replace(known, provenance=self._provenance(image_id, data, known.facts)), None, None
        except Exception as error:
            if not is_of_one_image(error):
                raise
            return Outcome.of_failure(error, inspect_bytes(data) if isinstance(data, bytes) else None), None, None

    def _decoded(self, image_id: int, data: bytes | Image.Image | InputError) -> tuple[Outcome, Prepared | None, DecodedImage | None]:
        facts = phash = provenance = None
        try:
            image = self._image(image_id, data)
            facts = image.facts
            provenance = self._provenance(image_id, data, facts)
            with self._clock("prepare"):
                phash = perceptual_hash(image.pixels) if self._spec.perceptual_hash else None
                tensors = [
                    None if self._hand_over and preprocessing.shape is None else self._prepared(preprocessing, image.pixels)
                    for preprocessing in self._spec.preprocessings
                ]
                views = [self._view(view, image) for view in self._spec.views]
        except InputError as refused:
            if isinstance(refused, ImageRefused):
                facts = refused.facts
            return Outcome(refused.status, refused.detail, facts, phash, provenance=provenance), None, None
        kept = image if views and self._spec.keeps_sizes and not self._hand_over else None
        return Outcome(Status.OK, None, facts, phash, provenance=provenance), Prepared(tensors, views), kept

    def _view(self, view: Perturbation, image: DecodedImage) -> tuple[Size, list[Pixels | None]] | None:
        """An image's tensors in one view; those that keep sizes are made when they are read. None: that view has no scores of it."""
        seen = perturbed(view, image)
        if seen is None:
            return None
        try:
            return seen.size, [None if one.shape is None else self._prepared(one, seen) for one in self._spec.scored_preprocessings]
        except InputError:
            return None

    def _known(self, data: bytes | Image.Image | InputError) -> Outcome | None:
        """The outcome of the same bytes before."""
        if self._recall is None or not isinstance(data, bytes):
            return None
        with self._clock("decode"):
            return self._recall.known(hashlib.sha256(data).hexdigest())

    def _prepared(self, preprocessing: Preprocessing, image: Image.Image) -> Pixels | None:
        """None where no detector would score an image of this size, and it is not what the describer sees."""
        width, height = image.size
        users = (name for name, card in self._spec.cards.items() if card.preprocessing == preprocessing)
        if preprocessing != self._spec.words_seen and not any(self._spec.is_scored(name, width, height) for name in users):
            return None
        return preprocessing.prepare(image, self._spec.resize)

    def _image(self, image_id: int, data: bytes | Image.Image | InputError) -> DecodedImage:
        if isinstance(data, InputError):
            raise data
        self.decoded += 1
        with self._clock("decode"):
            if isinstance(data, Image.Image):
                return _of_pil(data)
            if self._child is not None and self._is_suspect(image_id):
                return self._child.decode(data)
            with self._noted(image_id):
                return decode_image(data, self._spec.limits)

    def _provenance(self, image_id: int, data: bytes | Image.Image | InputError, facts: ImageFacts) -> str | None:
        """What a file that decoded says of its origin. A C2PA manifest is read by native code: it gets the same crumb and watchdog, and a
        member that killed a process keeps its score and loses only what that code would have said.
        """
        if self._origins is None or not isinstance(data, bytes):
            return None
        with self._clock("decode"), self._noted(image_id):
            said = self._origins.read(data, facts.format, native=not self._is_suspect(image_id))
        return None if said is None else said.row()

    def _is_suspect(self, image_id: int) -> bool:
        return image_id in self._suspects or len(self._suspects) > TRUSTED_CRASHES

    @contextmanager
    def _noted(self, image_id: int) -> Iterator[None]:
        """Leave a note for whoever comes after, should this process not survive the block."""
        if self._crumb is None:
            yield
            return
        self._crumb.note(image_id)
        try:
            yield
        finally:
            self._crumb.clear()

    def _stack(self, prepared: Sequence[Prepared | None], view: int | None = None) -> tuple[Pixels | Ragged, ...]:
        if all(one is None for one in prepared):
            return ()
        shown = self._spec.preprocessings if view is None else self._spec.scored_preprocessings
        columns = [column(prepared, view, place) for place in range(len(shown))]
        return tuple(
            images if preprocessing.shape is None else self._filled(preprocessing.shape, images)
            for preprocessing, images in zip(shown, columns, strict=True)
        )

    def _views(self, prepared: Sequence[Prepared | None], kept: Sequence[DecodedImage | None]) -> tuple[View, ...]:
        views = []
        for place, view in enumerate(self._spec.views):
            seen = [None if one is None else one.views[place] for one in prepared]
            pixels = self._stack(prepared, place)
            if not self._hand_over and pixels:
                pixels = self._completed(kept.__getitem__, len(kept), pixels, view)
            views.append(View(pixels, tuple(None if one is None else one[0] for one in seen)))
        return tuple(views)

    def _filled(self, shape: tuple[int, int], images: Ragged) -> Pixels:
        batch = np.zeros((self._spec.slots, *shape, 3), np.uint8)
        for slot, image in enumerate(images):
            if image is not None:
                batch[slot] = image
        return batch


def _of_pil(image: Image.Image) -> DecodedImage:
    """An image that somebody else decoded: the same colour rules; `sha256` is that of its RGB pixels, since there is no file."""
    flags: set[str] = set()
    pixels = to_rgb(image, flags, 8)
    if not has_content(pixels):
        flags.add("no_content")
    facts = ImageFacts(hashlib.sha256(pixels.tobytes()).hexdigest(), width=image.width, height=image.height, mode=image.mode,
                       flags=tuple(sorted(flags)))  # fmt: skip
    return DecodedImage(pixels, facts)
