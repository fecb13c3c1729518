"""Encoded images → batches of uint8 tensors, every image in its own slot.

`BatchDecoder` decodes each image once for all its views; `CarefulDecoder` decodes one image, in
this process or in a child. `StageClock` counts the seconds of each stage, from here to the last.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ray_app.errors import InputError, Status, is_of_one_image
from ray_app.images import (
    Breadcrumb,
    DecodedImage,
    ImageLimits,
    PeekedImage,
    Watchdog,
    colour,
    peek_image,
)
from ray_app.images.decode import has_content
from ray_app.images.facts import ImageFileFacts, ImageRefused, inspect_bytes, with_texture
from ray_app.images.provenance import ProvenanceReader
from ray_app.inference import private_api
from ray_app.inference.batch import (
    KEPT_PIXELS,
    Batch,
    BatchImages,
    BatchTensor,
    DecodeResult,
    DetectorInput,
    EncodedImages,
    File,
    PerturbedBatch,
    Pixels,
    PreparedViews,
    Size,
    is_large,
    perturbed,
)
from ray_app.inference.decoder_pool import IsolatedDecoders, PeekedFile, PreparedImage
from ray_app.inference.spec import ScoringSpec
from ray_app.storage.node_budget import NodeBudget
from ray_app.transforms.perturbations import Perturbation

# on one node; beyond that the library, not the member, is suspect, and every image goes to the
# child
TRUSTED_CRASHES = 3
# Of 7,639 hostile files none took over a second (specs/intake.md §4.2), but an honest 49-megapixel
# AVIF takes 11 s on a busy core. Images of more than 50 megapixels have as much longer as they are
# larger.
WALL_LIMIT_S = 20.0

AHEAD_BYTES = 64 * 2**20  # encoded bytes read ahead of the decoder, per worker
BUDGET = "pixels"  # the name of what large images share on a node
# Bytes per pixel beside the RGB image, which has four: an array of it, through the bytes that it is
# made from; a recompressed view, its JPEG and what is decoded from that again.
_RGB_BYTES, _ARRAY_BYTES, _VIEW_BYTES = 4, 6, 9
# of a large picture's memory, so that it is given back to the system and not kept for the next
# batch
_BLOCK_BYTES = 64 * 2**20


STAGES = ("fetch", "wait", "decode", "prepare", "load", "score", "identify", "describe", "write")


class StageClock:
    """Wall seconds spent in each stage by one worker thread; a stage within another does not count
    for that one too.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._within = 0.0  # seconds of the stages inside the one that is at work

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside the block for one stage."""
        start, outside, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] += spent - self._within
            self._within = outside + spent

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what another worker measured for the same block."""
        for stage, spent in seconds.items():
            self.seconds[stage] += spent

    def take(self) -> dict[str, float]:
        """The seconds since the last call, and start again from zero."""
        taken, self.seconds = self.seconds, dict.fromkeys(STAGES, 0.0)
        return taken


# Images are decoded in this process, where it is fastest. A decoder that crashes or hangs ends the
# process; the crash marker it leaves names the member that the next worker hands to a child
# process, and after a few crashes all of them go there. A large image waits, once its header is
# read, until its node has the memory that it will take, and has it until it is prepared.
class CarefulDecoder:
    """One image at a time: in this process, where it is fastest, or in a child where it killed a
    process of this node before.

    `crumbs` is a folder on the node's own disk, or None where a crash may take the process along.
    `budget`: what large images share with others on this node; None = nobody else is there.
    `children`: where all images are decoded, never in this process; others close them.
    """

    def __init__(
        self,
        limits: ImageLimits,
        crumbs: Path | None,
        wall_limit_s: float,
        budget: NodeBudget | None,
        *,
        children: IsolatedDecoders | None = None,
    ) -> None:
        self._limits, self._crumbs, self._budget = limits, crumbs, budget
        self._closing = ExitStack()
        self._crumb: Breadcrumb | None = None
        self._pool, self._trusts_none = children, children is not None
        self._suspects: set[int] = set()
        if crumbs is not None:
            self._crumb = self._closing.enter_context(closing(Breadcrumb(crumbs)))
            self._closing.enter_context(Watchdog(self._crumb, wall_limit_s))
            pool = IsolatedDecoders(
                limits, processes=1, wall_limit_s=wall_limit_s, memory_limit_bytes=None
            )
            self._pool = self._closing.enter_context(closing(pool))

    def close(self) -> None:
        """End the child process and remove the crumb."""
        self._closing.close()

    def look_for_crumbs(self) -> None:
        """Learn which members killed a worker of this node; called once per block."""
        if self._crumbs is not None and self._crumb is not None:
            self._suspects = Breadcrumb.left_in(self._crumbs, own=self._crumb.path)

    def is_suspect(self, image_id: int) -> bool:
        """Whether a process died of this member, or of so many that the library is to blame."""
        return (
            self._trusts_none or image_id in self._suspects or len(self._suspects) > TRUSTED_CRASHES
        )

    @contextmanager
    def noted(self, image_id: int, patience: float = 1.0) -> Iterator[None]:
        """Leave a note for the next worker, should this process not survive the block, which may
        take `patience` × the wall limit.
        """
        if self._crumb is None:
            yield
            return
        self._crumb.note(image_id, patience)
        try:
            yield
        finally:
            self._crumb.clear()

    @contextmanager
    def opened(
        self, image_id: int, data: File | InputError, clock: StageClock, bytes_per_pixel: int
    ) -> Iterator[DecodedImage]:
        """An image, with its turn on this node where it is large: both last as long as the block.
        Raises InputError.

        `bytes_per_pixel`: what is made of it takes so much memory.
        """
        if isinstance(data, InputError):
            raise data
        if isinstance(data, Image.Image):
            with clock("decode"):
                image = _of_pil(data)
            yield image
            return
        with clock("decode"):
            peeked = self._peek(image_id, data)
        turn: AbstractContextManager[None] = nullcontext()
        if self._budget is not None and peeked.demand.is_large:
            turn = _turn(peeked, self._budget, clock, bytes_per_pixel)
        with closing(peeked), turn:
            with clock("decode"):
                image = self._decode(image_id, peeked)
            yield image

    def _peek(self, image_id: int, data: bytes) -> PeekedImage | PeekedFile:
        """Read the header of a file, in a child if it is a suspect. Raises ImageRefused."""
        if self._pool is not None and self.is_suspect(image_id):
            return self._pool.peek(data)
        with self.noted(image_id):
            return peek_image(data, self._limits)

    def _decode(self, image_id: int, peeked: PeekedImage | PeekedFile) -> DecodedImage:
        if isinstance(peeked, PeekedFile):
            return peeked.decode()
        with self.noted(image_id, peeked.demand.patience):
            return peeked.decode()


@contextmanager
def _turn(
    peeked: PeekedImage | PeekedFile, budget: NodeBudget, clock: StageClock, bytes_per_pixel: int
) -> Iterator[None]:
    """Wait until this node has the memory for a large image, and reserve it for the block.

    Raises:
        ImageRefused: The node never has that memory.
    """
    demand, limit = peeked.demand, budget.total_bytes
    needed = max(demand.peak_bytes, demand.pixels * bytes_per_pixel)
    if needed > limit:
        reason = f"decoding it takes about {needed / 1e9:.1f} GB, over decode_bytes ({limit / 1e9:.1f} GB) of this node"
        raise ImageRefused(
            Status.IMAGE_TOO_LARGE, reason, peeked.facts, limit=limit, observed=needed
        )
    with ExitStack() as turn:
        with clock("wait"):
            turn.enter_context(budget.turn(needed))
        turn.enter_context(private_api.pillow_blocks(_BLOCK_BYTES))
        yield


class BatchDecoder:
    """Decodes and prepares what a spec asks for; `careful` says how to decode, and may be shared.

    With `hand_over`, images that keep their size are not prepared: their encoded bytes go along
    instead, to be decoded where they are scored. With `keeps_files`, all files go along, since some
    members may be looked at again.
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
        budget: NodeBudget | None = None,
        careful: CarefulDecoder | None = None,
    ) -> None:
        self._spec, self._clock = spec, clock
        self.careful = careful or CarefulDecoder(spec.limits, crumbs, wall_limit_s, budget)
        self._keeps_files = keeps_files
        self._hand_over = hand_over and spec.keeps_sizes
        self.counts = {"decoded": 0}  # images, since the start
        self._origins = (
            None
            if spec.provenance is None
            else ProvenanceReader(spec.provenance, spec.limits.max_text_bytes)
        )
        self._bytes_per_pixel = _bytes_per_pixel(spec)
        self._inputs = _detector_inputs(spec)
        self._scored = self._inputs[: len(spec.scored_preprocessings)]

    def for_spec(self, spec: ScoringSpec, clock: StageClock) -> "BatchDecoder":
        """One that prepares images as another spec says and counts for itself, with the same crumb
        and child.
        """
        return BatchDecoder(replace(spec, provenance=None), clock, careful=self.careful)

    def close(self) -> None:
        """End the child process and remove the crumb."""
        self.careful.close()

    def decode(self, fetched: Iterable[tuple[int, File | PreparedImage | InputError]]) -> Batch:
        """Decode up to `slots` members, each as it comes.

        The bytes of a member are released before the next member is requested, unless its file
        goes along.

        Args:
            fetched: Image ids with bytes, a PIL image, or the reason why there are none. A
                `PreparedImage` is taken as it is; the spec must have no views.
        """
        ids, members, encoded = list[int](), list[_Member](), list[File | None]()
        for image_id, data in fetched:
            file: File | None
            if isinstance(data, PreparedImage):
                member, file = _member_of(data), data.data
            else:
                member = self._decode_member(image_id, data)
                file = None if isinstance(data, InputError) else data
            ids.append(image_id)
            members.append(member)
            encoded.append(file if self._goes_along(member) else None)
            del data, file
        outcomes = tuple(member.outcome for member in members)
        prepared = [member.prepared for member in members]
        sizes = [
            None
            if member.prepared is None or member.outcome.facts is None
            else (member.outcome.facts.width or 0, member.outcome.facts.height or 0)
            for member in members
        ]
        with self._clock("prepare"):
            pixels: tuple[BatchTensor, ...] = ()
            views = []
            if prepared.count(None) < len(prepared):
                pixels = self._stack(prepared, None)
                images = self._images_of(members, ids)
                for place, view in enumerate(self._spec.views):
                    views.append(self._batch_view(prepared, images, place, view))
            files = tuple(encoded) if self._hand_over or self._keeps_files else ()
            return Batch(outcomes, pixels, tuple(sizes), files, tuple(views), tuple(ids))

    def _goes_along(self, member: "_Member") -> bool:
        """Return whether the file is decoded again: for the second stage, or by detectors in
        another process that score images of this size.
        """
        if member.prepared is None or not (self._keeps_files or self._hand_over):
            return False
        if self._keeps_files or self._spec.views:
            return True
        facts = member.outcome.facts
        width, height = (facts.width or 0, facts.height or 0) if facts else (0, 0)
        native = (
            name for name, card in self._spec.cards.items() if card.preprocessing.shape is None
        )
        return any(self._spec.is_scored(name, width, height) for name in native)

    def complete(self, batch: Batch) -> Batch:
        """Return a batch whose images that were handed over encoded can be read.

        They may be large: `EncodedImages.complete` decodes some of them when a detector reads these.
        """
        if not batch.encoded or not batch.pixels:
            return batch
        kept_pixels = KEPT_PIXELS if batch.views else 0
        images = BatchImages(self, batch.files, max_kept_pixels=kept_pixels)
        views = tuple(
            replace(view, pixels=self._completed(images, view.pixels, perturbation))
            for view, perturbation in zip(batch.views, self._spec.views, strict=True)
        )
        files = batch.encoded if self._keeps_files else ()
        pixels = self._completed(images, batch.pixels, None)
        return replace(batch, pixels=pixels, encoded=files, views=views)

    def _completed(
        self,
        images: BatchImages,
        pixels: tuple[BatchTensor, ...],
        view: Perturbation | None,
    ) -> tuple[BatchTensor, ...]:
        return tuple(
            EncodedImages(self, images, target, view) if target.shape is None else tensor
            # Views have no tensor for the describer.
            for target, tensor in zip(self._inputs, pixels, strict=False)
        )

    def _images_of(self, members: Sequence["_Member"], ids: Sequence[int]) -> BatchImages | None:
        """Return the images whose views are made here, when a detector reads them; images that are
        decoded stay so.
        """
        if self._hand_over or not self._spec.views:
            return None
        files = [
            None if member.file is None else (image_id, member.file)
            for image_id, member in zip(ids, members, strict=True)
        ]
        images = BatchImages(self, files, max_kept_pixels=math.inf)
        for slot, member in enumerate(members):
            if member.image is not None:
                images.keep(slot, member.image)
        return images

    def _decode_member(self, image_id: int, data: File | InputError) -> "_Member":
        """Decode and prepare one member. A bug of Touchstone costs only the image that met it."""
        facts = provenance = None
        try:
            with self.open_file(image_id, data) as image:
                if self._spec.measured:
                    with self._clock("prepare"):
                        image = with_texture(image)
                facts = image.facts
                if self._origins is not None:
                    provenance = self._provenance(image_id, data, facts, image.pixels)
                with self._clock("prepare"):
                    prepared = PreparedViews([], [])
                    for target in self._inputs:
                        is_late = self._hand_over and target.shape is None
                        prepared.tensors.append(
                            None if is_late else self.prepare(target, image.pixels)
                        )
                    for view in self._spec.views:
                        prepared.views.append(self._view(view, image))
        except InputError as refused:
            facts = refused.facts if isinstance(refused, ImageRefused) else facts
            return _Member(DecodeResult(refused.status, refused.detail, facts, provenance))
        except Exception as error:
            if not is_of_one_image(error):
                raise
            known = inspect_bytes(data) if isinstance(data, bytes) else None
            return _Member(DecodeResult.of_failure(error, known))
        outcome = DecodeResult(Status.OK, None, facts, provenance)
        if not (self._spec.views and self._spec.keeps_sizes) or self._hand_over:
            return _Member(outcome, prepared)
        if is_large(image) and not isinstance(data, InputError):
            return _Member(outcome, prepared, file=data)
        return _Member(outcome, prepared, image=image)

    def _view(
        self, view: Perturbation, image: DecodedImage
    ) -> tuple[Size, list[Pixels | None]] | None:
        """An image's tensors in one view; those that keep sizes are made when they are read. None:
        that view has no scores of it.
        """
        seen = perturbed(view, image)
        if seen is None:
            return None
        try:
            return seen.size, [
                None if target.shape is None else self.prepare(target, seen)
                for target in self._scored
            ]
        except InputError:
            return None

    def prepare(self, target: DetectorInput, image: Image.Image) -> Pixels | None:
        """Prepare an image for detectors. Returns None if none of them scores images of its size,
        unless the describer sees it.
        """
        is_sure = target.is_described or target.shape is not None
        if not is_sure and not any(
            self._spec.is_scored(name, *image.size) for name in target.detectors
        ):
            return None
        return target.preprocessing.prepare(image, self._spec.resize)

    def open_file(
        self, image_id: int, data: File | InputError
    ) -> AbstractContextManager[DecodedImage]:
        """Decode one image, which is counted (see `CarefulDecoder.opened`)."""
        self.counts["decoded"] += not isinstance(data, InputError)
        return self.careful.opened(image_id, data, self._clock, self._bytes_per_pixel)

    def _provenance(
        self, image_id: int, data: File | InputError, facts: ImageFileFacts, pixels: Image.Image
    ) -> str | None:
        """What a file that decoded says of its origin. A C2PA manifest is read by native code: it
        gets the same crumb and watchdog, and a member that killed a process keeps its score and
        loses only what that code would have found.
        """
        if self._origins is None or not isinstance(data, bytes):
            return None
        with self._clock("decode"), self.careful.noted(image_id):
            native = not self.careful.is_suspect(image_id)
            provenance = self._origins.read(data, facts.format, native=native, pixels=pixels)
        return None if provenance is None else provenance.row()

    def _stack(
        self, prepared: Sequence[PreparedViews | None], view: int | None
    ) -> tuple[BatchTensor, ...]:
        """Of each preprocessing, what the members have in one view (None = clean); nothing where no
        member has anything.
        """
        stacked: list[BatchTensor] = []
        for place, target in enumerate(self._inputs if view is None else self._scored):
            images: list[Pixels | None] = []
            for one in prepared:
                tensors = (
                    None
                    if one is None
                    else one.tensors
                    if view is None
                    else (one.views[view] or (None, None))[1]
                )
                images.append(None if tensors is None else tensors[place])
            shape = target.shape
            if shape is None:
                stacked.append(images)
                continue
            batch = np.zeros((self._spec.slots, *shape, 3), np.uint8)
            for slot, image in enumerate(images):
                if image is not None:
                    batch[slot] = image
            stacked.append(batch)
        return tuple(stacked)

    def _batch_view(
        self,
        prepared: Sequence[PreparedViews | None],
        images: BatchImages | None,
        place: int,
        view: Perturbation,
    ) -> PerturbedBatch:
        pixels = self._stack(prepared, place)
        if images is not None:
            pixels = self._completed(images, pixels, view)
        shown = [None if item is None else item.views[place] for item in prepared]
        return PerturbedBatch(pixels, tuple(None if item is None else item[0] for item in shown))


def file_bytes(decode_bytes: int, limits: ImageLimits) -> int:
    """What encoded files over AHEAD_BYTES may take together on a node where large images may take
    `decode_bytes`: at least one of them.
    """
    return max(decode_bytes // 4, limits.max_bytes)


def _detector_inputs(spec: ScoringSpec) -> list[DetectorInput]:
    return [
        DetectorInput(
            preprocessing,
            preprocessing.shape,
            tuple(name for name, card in spec.cards.items() if card.preprocessing == preprocessing),
            preprocessing == spec.words_seen,
        )
        for preprocessing in spec.preprocessings
    ]


@dataclass(frozen=True)
class _Member:
    """What decoding found of one member.

    Attributes:
        outcome: Its status and facts.
        prepared: Its tensors, if it was decoded.
        image: The image, if views of it are made later.
        file: The file, if views of it are made later and the image is too large to keep.
    """

    outcome: DecodeResult
    prepared: PreparedViews | None = None
    image: DecodedImage | None = None
    file: File | None = None


def _member_of(image: PreparedImage) -> _Member:
    """Return what a child process decoded as `BatchDecoder` would have done."""
    provenance = None if image.provenance is None else image.provenance.row()
    outcome = DecodeResult(Status.OK, None, image.facts, provenance)
    return _Member(outcome, PreparedViews(list(image.pixels), []))


def _bytes_per_pixel(spec: ScoringSpec) -> int:
    """What preparing takes: the RGB image, and the most of what is made of it."""
    makes_arrays = spec.resize == "fast" or any(
        one.resampler != "pillow" or one.shape is None for one in spec.preprocessings
    )
    return _RGB_BYTES + _VIEW_BYTES * bool(spec.views) + _ARRAY_BYTES * makes_arrays


def _of_pil(image: Image.Image) -> DecodedImage:
    """An image that somebody else decoded: the same colour rules; `sha256` is that of its RGB
    pixels, since there is no file.
    """
    flags: set[str] = set()
    pixels = colour.to_rgb(image, flags, 8)
    if not has_content(pixels):
        flags.add("no_content")
    facts = ImageFileFacts(hashlib.sha256(pixels.tobytes()).hexdigest(), width=image.width, height=image.height, mode=image.mode,
                       flags=tuple(sorted(flags)))  # fmt: skip
    return DecodedImage(pixels, facts)
