"""Encoded bytes → one batch of uint8 tensors, each image decoded once for all its views, each failure an outcome in its own slot.

Images are decoded in this process, where it is fastest. A decoder that crashes or hangs ends the process; the crumb it leaves
tells the next worker which member to hand to a child process, and after a few crashes all of them go there.

A large image waits, once its header is read, until its node has the memory that it will take, and has it until it is prepared.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL import _imaging as core

from ray_app.detectors import Preprocessing
from ray_app.errors import InputError, Status, is_of_one_image
from ray_app.images import (
    Admit,
    Breadcrumb,
    ChildDecoder,
    DecodedImage,
    Demand,
    ImageFileFacts,
    ImageRefused,
    Watchdog,
    decode_image,
    inspect_bytes,
)
from ray_app.images.decode import to_rgb
from ray_app.images.facts import has_content
from ray_app.images.memory import admit_all
from ray_app.images.phash import perceptual_hash
from ray_app.images.provenance import ProvenanceReader
from ray_app.inference.batch import (
    Batch,
    DecodeResult,
    ImageOf,
    Late,
    Lazily,
    Opening,
    PerturbedBatch,
    Pixels,
    PreparedViews,
    Ragged,
    Size,
    column,
    is_large,
    perturbed,
)
from ray_app.inference.spec import ScoringSpec
from ray_app.inference.timing import StageClock
from ray_app.storage.node_budget import NodeBudget
from ray_app.transforms.perturbations import Perturbation

if TYPE_CHECKING:
    from ray_app.inference.reuse import ScoreCache

TRUSTED_CRASHES = 3  # on one node; beyond that the library, not the member, is suspect, and every image goes to the child
# Of 7,639 hostile files none took over a second (specs/intake.md §4.2), but an honest 49-megapixel AVIF takes 11 s on a busy core.
# Images of more than 50 megapixels have as much longer as they are larger.
WALL_LIMIT_S = 20.0

BUDGET = "pixels"  # the name of what large images share on a node
# Bytes per pixel beside the RGB image, which has four: an array of it, through the bytes that it is made from; a recompressed view, its
# JPEG and what is decoded from that again.
_RGB_BYTES, _ARRAY_BYTES, _VIEW_BYTES = 4, 6, 9
_BLOCK_BYTES = 64 * 2**20  # of a large picture's memory, so that it is given back to the system and not kept for the next batch


class BatchDecoder:
    """Decodes and prepares; `crumbs` is a folder on the node's own disk, or None where a crash may take the process along.

    With `hand_over`, images that keep their size are not prepared: their encoded bytes go along instead, to be decoded where they
    are scored. With `keeps_files`, all files go along, since some members may be looked at again. `budget`: what large images share with
    others on this node; None = nobody else is there.
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
        recall: "ScoreCache | None" = None,
        budget: NodeBudget | None = None,
    ) -> None:
        self._spec, self._clock, self._crumbs, self._recall = spec, clock, crumbs, recall
        self._budget = budget
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

    def decode(self, fetched: Iterable[tuple[int, bytes | Image.Image | InputError]]) -> Batch:
        """Decode (image_id, bytes | PIL image | why there are none) for up to `slots` members, each as it comes: unless files go along,
        its bytes are let go before the next is asked for.
        """
        ids, outcomes, prepared, encoded, kept = [], [], [], [], []
        for image_id, data in fetched:
            outcome, tensors, image = self._one(image_id, data)
            ids.append(image_id)
            outcomes.append(outcome)
            if self._recall is not None:
                self._recall.met(outcome)
            prepared.append(tensors)
            encoded.append(data if tensors is not None and not isinstance(data, InputError) and self._goes_along(outcome) else None)
            kept.append(image)
            del data
        with self._clock("prepare"):
            pixels, views = self._stack(prepared), self._views(prepared, kept)
            files = tuple(encoded) if self._hand_over or self._keeps_files else ()
            return Batch(tuple(outcomes), pixels, files, views if pixels else (), tuple(ids))

    def _goes_along(self, outcome: DecodeResult) -> bool:
        """Whether somebody will decode the file again: whoever looks again, or detectors elsewhere that look at images of this size."""
        if self._keeps_files or not self._hand_over or self._spec.views:
            return self._keeps_files or self._hand_over
        width, height = (outcome.facts.width or 0, outcome.facts.height or 0) if outcome.facts else (0, 0)
        native = (name for name, card in self._spec.cards.items() if card.preprocessing.shape is None)
        return any(self._spec.is_scored(name, width, height) for name in native)

    def complete(self, batch: Batch) -> Batch:
        """Images that were handed over encoded are decoded when they are looked at, one by one, since they may be large."""
        if not batch.encoded or not batch.pixels:
            return batch
        images, count = Late(batch.encoded, partial(self._decoded, 0), keeps=bool(batch.views)), len(batch.encoded)
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

    def _one(self, image_id: int, data: bytes | Image.Image | InputError) -> tuple[DecodeResult, PreparedViews | None, Opening | None]:
        """What became of one member, its tensors, and how its pixels are had again, where they are wanted again.

        An image that is known already has no tensors: its slot stays empty, so that nobody else's batch changes. What it says of its
        origin is read anew: it costs little, and another trust list may now hold. A bug of ours costs the image that met it, and no other.
        """
        known = self._known(data)
        try:
            if known is None or known.facts is None:
                return self._new(image_id, data)
            return replace(known, provenance=self._provenance(image_id, data, known.facts)), None, None
        except Exception as error:
            if not is_of_one_image(error):
                raise
            return DecodeResult.of_failure(error, inspect_bytes(data) if isinstance(data, bytes) else None), None, None

    def _new(self, image_id: int, data: bytes | Image.Image | InputError) -> tuple[DecodeResult, PreparedViews | None, Opening | None]:
        facts = phash = provenance = None
        keeps = self._spec.views and self._spec.keeps_sizes and not self._hand_over
        try:
            with self._decoded(image_id, data) as image:
                facts = image.facts
                provenance = self._provenance(image_id, data, facts)
                with self._clock("prepare"):
                    phash = perceptual_hash(image.pixels) if self._spec.perceptual_hash else None
                    tensors = [
                        None if self._hand_over and preprocessing.shape is None else self._prepared(preprocessing, image.pixels)
                        for preprocessing in self._spec.preprocessings
                    ]
                    views = [self._view(view, image) for view in self._spec.views]
                again = (partial(self._decoded, image_id, data) if is_large(image) else partial(_there, image)) if keeps else None
        except InputError as refused:
            if isinstance(refused, ImageRefused):
                facts = refused.facts
            return DecodeResult(refused.status, refused.detail, facts, phash, provenance=provenance), None, None
        return DecodeResult(Status.OK, None, facts, phash, provenance=provenance), PreparedViews(tensors, views), again

    def _view(self, view: Perturbation, image: DecodedImage) -> tuple[Size, list[Pixels | None]] | None:
        """An image's tensors in one view; those that keep sizes are made when they are read. None: that view has no scores of it."""
        seen = perturbed(view, image)
        if seen is None:
            return None
        try:
            return seen.size, [None if one.shape is None else self._prepared(one, seen) for one in self._spec.scored_preprocessings]
        except InputError:
            return None

    def _known(self, data: bytes | Image.Image | InputError) -> DecodeResult | None:
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

    @contextmanager
    def _decoded(self, image_id: int, data: bytes | Image.Image | InputError) -> Iterator[DecodedImage]:
        """An image, with its turn on this node where it is large: both last as long as the block. Raises InputError."""
        if isinstance(data, InputError):
            raise data
        self.decoded += 1
        with ExitStack() as stack:
            admit = admit_all if self._budget is None else partial(self._admit, self._budget, stack)
            with self._clock("decode"):
                image = self._image(image_id, data, admit)
            yield image

    def _image(self, image_id: int, data: bytes | Image.Image, admit: Admit) -> DecodedImage:
        if isinstance(data, Image.Image):
            return _of_pil(data)
        if self._child is not None and self._is_suspect(image_id):
            return self._child.decode(data, admit)

        with self._noted(image_id):
            return decode_image(data, self._spec.limits, partial(self._admit_noted, image_id, admit))

    def _admit_noted(self, image_id: int, admit: Admit, demand: Demand) -> None:
        """To wait is not to hang; and a large image may take longer."""
        if self._crumb is None or not demand.is_large:
            return admit(demand)
        self._crumb.clear()
        try:
            admit(demand)
        finally:
            self._crumb.note(image_id, demand.patience)

    def _admit(self, budget: NodeBudget, stack: ExitStack, demand: Demand) -> None:
        """Wait until this node has what a large image will take; it is given back with `stack`. Raises InputError where it never will."""
        if not demand.is_large:
            return
        needed, most = max(demand.peak_bytes, demand.pixels * self._bytes_per_pixel), budget.total_bytes
        if needed > most:
            reason = f"decoding it takes about {needed / 1e9:.1f} GB, over decode_bytes ({most / 1e9:.1f} GB) of this node"
            raise InputError(Status.IMAGE_TOO_LARGE, reason, limit=most, observed=needed)
        with self._clock("wait"):
            stack.enter_context(budget.turn()).take(needed)
        stack.callback(core.set_block_size, core.get_block_size())
        core.set_block_size(_BLOCK_BYTES)

    @property
    def _bytes_per_pixel(self) -> int:
        """What preparing takes: the RGB image, and the most of what is made of it."""
        wanted = self._spec.preprocessings
        makes_arrays = self._spec.resize == "fast" or any(one.resampler != "pillow" or one.shape is None for one in wanted)
        return _RGB_BYTES + _VIEW_BYTES * bool(self._spec.views) + _ARRAY_BYTES * makes_arrays

    def _provenance(self, image_id: int, data: bytes | Image.Image | InputError, facts: ImageFileFacts) -> str | None:
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

    def _stack(self, prepared: Sequence[PreparedViews | None], view: int | None = None) -> tuple[Pixels | Ragged, ...]:
        if all(one is None for one in prepared):
            return ()
        shown = self._spec.preprocessings if view is None else self._spec.scored_preprocessings
        columns = [column(prepared, view, place) for place in range(len(shown))]
        return tuple(
            images if preprocessing.shape is None else self._filled(preprocessing.shape, images)
            for preprocessing, images in zip(shown, columns, strict=True)
        )

    def _views(self, prepared: Sequence[PreparedViews | None], kept: Sequence[Opening | None]) -> tuple[PerturbedBatch, ...]:
        views = []
        for place, view in enumerate(self._spec.views):
            seen = [None if one is None else one.views[place] for one in prepared]
            pixels = self._stack(prepared, place)
            if not self._hand_over and pixels:
                pixels = self._completed(lambda slot: (kept[slot] or nullcontext)(), len(kept), pixels, view)
            views.append(PerturbedBatch(pixels, tuple(None if one is None else one[0] for one in seen)))
        return tuple(views)

    def _filled(self, shape: tuple[int, int], images: Ragged) -> Pixels:
        batch = np.zeros((self._spec.slots, *shape, 3), np.uint8)
        for slot, image in enumerate(images):
            if image is not None:
                batch[slot] = image
        return batch


def _there(image: DecodedImage) -> AbstractContextManager[DecodedImage]:
    return nullcontext(image)


def _of_pil(image: Image.Image) -> DecodedImage:
    """An image that somebody else decoded: the same colour rules; `sha256` is that of its RGB pixels, since there is no file."""
    flags: set[str] = set()
    pixels = to_rgb(image, flags, 8)
    if not has_content(pixels):
        flags.add("no_content")
    facts = ImageFileFacts(hashlib.sha256(pixels.tobytes()).hexdigest(), width=image.width, height=image.height, mode=image.mode,
                       flags=tuple(sorted(flags)))  # fmt: skip
    return DecodedImage(pixels, facts)
