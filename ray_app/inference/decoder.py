"""Decode encoded images into batches of uint8 tensors, with each image in its own slot.

`BatchDecoder` prepares an image and its perturbed copies from one decode. Images that are not
resized may be decoded again when detectors read them. `CrashSafeDecoder` decodes one image, in this process or in a child process.
`StageClock` counts the seconds of each stage of scoring.
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

from ray_app.errors import InputError, Status, is_image_error
from ray_app.images import (
    CrashMarker,
    DecodedImage,
    ImageLimits,
    PeekedImage,
    Watchdog,
    colour,
    peek_image,
)
from ray_app.images.decode import has_content
from ray_app.images.facts import ImageFileFacts, ImageRefused, add_texture, inspect_bytes
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
    apply_view,
    is_large,
)
from ray_app.inference.decoder_pool import IsolatedDecoders, PeekedFile, PreparedImage
from ray_app.inference.spec import ScoringSpec
from ray_app.storage.node_budget import NodeBudget
from ray_app.transforms.perturbations import Perturbation

# Crashes on one node for which single members are blamed. After more crashes the library is
# suspect, and every image goes to the child process.
TRUSTED_CRASHES = 3
# None of 7,639 hostile files took over a second, but a valid 49-megapixel AVIF takes 11 s on a busy
# core. For images of more than 50 megapixels, the limit grows in proportion to their size.
WALL_LIMIT_S = 20.0

AHEAD_BYTES = 64 * 2**20  # Encoded bytes that are read ahead of the decoder, per worker.
BUDGET = "pixels"  # The name of the memory budget that large images share on a node.
# Bytes per pixel of the RGB image; of an array of the image and the bytes that it is made from; and
# of a recompressed view, which has a JPEG and the image that is decoded from it.
_RGB_BYTES, _ARRAY_BYTES, _VIEW_BYTES = 4, 6, 9
# Memory of a large image is allocated in blocks of this size, so that it returns to the system and
# is not kept for the next batch.
_BLOCK_BYTES = 64 * 2**20


STAGES = ("fetch", "wait", "decode", "prepare", "load", "score", "identify", "describe", "write")


class StageClock:
    """Measure the wall seconds that one worker thread spends in each stage of scoring.

    The stages are those in `STAGES`, such as `fetch`, `decode`, and `score`. Use
    `with clock("decode"):` to measure a stage. If a stage is timed inside another stage, its time
    counts only for the inner stage.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._nested = 0.0  # Seconds of the stages nested in the current stage.

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the `with` block to a stage."""
        start, outer, self._nested = time.perf_counter(), self._nested, 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[stage] += elapsed - self._nested
            self._nested = outer + elapsed

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by stage, such as those that another worker measured for the same files."""
        for stage, elapsed in seconds.items():
            self.seconds[stage] += elapsed

    def take(self) -> dict[str, float]:
        """Return the seconds by stage since the last call, and reset them to zero."""
        seconds, self.seconds = self.seconds, dict.fromkeys(STAGES, 0.0)
        return seconds


# Images are decoded in this process, because that is fastest. A decoder that crashes or hangs ends
# the process. The crash marker that it leaves names the member, and the next worker decodes that
# member in a child process. After `TRUSTED_CRASHES` crashes, all images are decoded there. After its
# header is read, a large image waits until the node has the memory for it. It holds that memory
# until it is prepared.
class CrashSafeDecoder:
    """Decode one image at a time, and recover from images that crash or hang the decoder.

    Images are decoded in this process. A crash marker is a file that names the image that is being
    decoded. If the process dies, its marker stays. Later processes of the node then decode this
    image in a child process.

    Args:
        limits: Limits on the size of an image.
        marker_dir: Folder for crash markers on a local disk of the node. None writes no markers and
            applies no wall limit, so an image may crash or hang the process.
        wall_limit_s: Seconds that decoding one image may take.
        budget: Memory for large images, which all processes of this node share. None decodes large
            images without waiting, for a process that is alone on its node.
        children: Child processes that decode all images. The caller closes them. None decodes in
            this process.
    """

    def __init__(
        self,
        limits: ImageLimits,
        marker_dir: Path | None,
        wall_limit_s: float,
        budget: NodeBudget | None,
        *,
        children: IsolatedDecoders | None = None,
    ) -> None:
        self._limits, self._marker_dir, self._budget = limits, marker_dir, budget
        self._closing = ExitStack()
        self._marker: CrashMarker | None = None
        self._pool, self._always_isolates = children, children is not None
        self._suspects: set[int] = set()
        if marker_dir is not None:
            self._marker = self._closing.enter_context(closing(CrashMarker(marker_dir)))
            self._closing.enter_context(Watchdog(self._marker, wall_limit_s))
            pool = IsolatedDecoders(
                limits, processes=1, wall_limit_s=wall_limit_s, memory_limit_bytes=None
            )
            self._pool = self._closing.enter_context(closing(pool))

    def close(self) -> None:
        """End the child process, and remove the crash marker."""
        self._closing.close()

    def read_crash_markers(self) -> None:
        """Read from the crash markers which files have killed a process of this node.

        These files are then decoded in a child process. Call this method before each block of
        files.
        """
        if self._marker_dir is not None and self._marker is not None:
            self._suspects = CrashMarker.read_crashed_ids(self._marker_dir, own=self._marker.path)

    def is_suspect(self, image_id: int) -> bool:
        """Return whether a file must be decoded in a child process.

        This is true if decoding the file has killed a process. It is true for all files if
        `children` were given, or if so many processes died that the decoding library is to blame.
        """
        return (
            self._always_isolates
            or image_id in self._suspects
            or len(self._suspects) > TRUSTED_CRASHES
        )

    @contextmanager
    def mark_crash(self, image_id: int, timeout_factor: float = 1.0) -> Iterator[None]:
        """Write in the crash marker of this process which file the `with` block decodes.

        If the process dies or hangs inside the block, later processes decode the file in a child
        process. The block may take `timeout_factor` times the wall limit.
        """
        if self._marker is None:
            yield
            return
        self._marker.note(image_id, timeout_factor)
        try:
            yield
        finally:
            self._marker.clear()

    @contextmanager
    def open_image(
        self, image_id: int, data: File | InputError, clock: StageClock, bytes_per_pixel: int
    ) -> Iterator[DecodedImage]:
        """Decode an image, and yield it.

        A large image waits until this node has memory for it. The `with` block holds this memory,
        and the image must not be used after the block.

        Args:
            image_id: The id of the file, which the crash marker names.
            data: The file, or the error of a file that is missing. The error is raised.
            clock: Measures the time for decoding and waiting.
            bytes_per_pixel: The minimum of bytes per pixel to reserve for a large image and all
                that is prepared from it.

        Yields:
            The decoded image.

        Raises:
            InputError: The image is rejected.
        """
        if isinstance(data, InputError):
            raise data
        if isinstance(data, Image.Image):
            with clock("decode"):
                image = _convert_pil(data)
            yield image
            return
        with clock("decode"):
            peeked = self._peek(image_id, data)
        turn: AbstractContextManager[None] = nullcontext()
        if self._budget is not None and peeked.demand.is_large:
            turn = _reserve_turn(peeked, self._budget, clock, bytes_per_pixel)
        with closing(peeked), turn:
            with clock("decode"):
                image = self._decode(image_id, peeked)
            yield image

    def _peek(self, image_id: int, data: bytes) -> PeekedImage | PeekedFile:
        """Read the header of a file, in a child process if the member is suspect.

        Raises:
            ImageRefused: The image is rejected.
        """
        if self._pool is not None and self.is_suspect(image_id):
            return self._pool.peek(data)
        with self.mark_crash(image_id):
            return peek_image(data, self._limits)

    def _decode(self, image_id: int, peeked: PeekedImage | PeekedFile) -> DecodedImage:
        if isinstance(peeked, PeekedFile):
            return peeked.decode()
        with self.mark_crash(image_id, peeked.demand.timeout_factor):
            return peeked.decode()


@contextmanager
def _reserve_turn(
    peeked: PeekedImage | PeekedFile, budget: NodeBudget, clock: StageClock, bytes_per_pixel: int
) -> Iterator[None]:
    """Wait until this node has the memory for a large image, and reserve it for the block.

    Raises:
        ImageRefused: The node never has that memory.
    """
    demand, limit_bytes = peeked.demand, budget.total_bytes
    needed_bytes = max(demand.peak_bytes, demand.pixels * bytes_per_pixel)
    if needed_bytes > limit_bytes:
        reason = f"decoding it takes about {needed_bytes / 1e9:.1f} GB, over decode_bytes ({limit_bytes / 1e9:.1f} GB) of this node"
        raise ImageRefused(
            Status.IMAGE_TOO_LARGE, reason, peeked.facts, limit=limit_bytes, observed=needed_bytes
        )
    with ExitStack() as turn:
        with clock("wait"):
            turn.enter_context(budget.reserve(needed_bytes))
        turn.enter_context(private_api.pillow_blocks(_BLOCK_BYTES))
        yield


class BatchDecoder:
    """Decode images, and prepare them in batches for the detectors of a spec.

    Args:
        spec: Has the preprocessings, perturbations, limits, and batch size.
        clock: Measures the time of each step, such as `decode` and `prepare`.
        marker_dir: Folder for crash markers (see `CrashSafeDecoder`).
        hand_over: Whether images that are not resized stay encoded in a batch. The process that
            scores the batch must then call `complete`, and decodes these images.
        keeps_files: Whether batches contain all files. A cascade, which is an ensemble in two
            stages, needs this, because its second stage decodes some files again.
        wall_limit_s: Seconds that decoding one image may take.
        budget: Memory for large images, which all processes of this node share.
        careful: The `CrashSafeDecoder` that decodes single images. Several `BatchDecoder`s may
            share it. None creates one from `marker_dir`, `wall_limit_s`, and `budget`.

    Attributes:
        counts: `decoded`, the number of images that were decoded.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        clock: StageClock,
        marker_dir: Path | None = None,
        *,
        hand_over: bool = False,
        keeps_files: bool = False,
        wall_limit_s: float = WALL_LIMIT_S,
        budget: NodeBudget | None = None,
        careful: CrashSafeDecoder | None = None,
    ) -> None:
        self._spec, self._clock = spec, clock
        self.careful = careful or CrashSafeDecoder(spec.limits, marker_dir, wall_limit_s, budget)
        self._keeps_files = keeps_files
        self._hand_over = hand_over and spec.keeps_sizes
        self.counts = {"decoded": 0}  # Images since the start.
        self._provenance_reader = (
            None
            if spec.provenance is None
            else ProvenanceReader(spec.provenance, spec.limits.max_text_bytes)
        )
        self._bytes_per_pixel = _count_bytes_per_pixel(spec)
        self._inputs = _detector_inputs(spec)
        self._scored = self._inputs[: len(spec.scored_preprocessings)]

    def for_spec(self, spec: ScoringSpec, clock: StageClock) -> "BatchDecoder":
        """Return a decoder for another spec, such as the second stage of a cascade.

        Both decoders share the crash marker and the child process. The new decoder has its own
        counts, and does not read what files state about their origin.
        """
        return BatchDecoder(replace(spec, provenance=None), clock, careful=self.careful)

    def close(self) -> None:
        """End the child process, and remove the crash marker."""
        self.careful.close()

    def decode(self, fetched: Iterable[tuple[int, File | PreparedImage | InputError]]) -> Batch:
        """Decode and prepare the images of one batch, one after another.

        The bytes of a file are released before the next file is requested, unless the batch
        contains the file.

        Args:
            fetched: For each of up to `spec.slots` images, its id and one of: the bytes of the
                file, a PIL image, the error for a missing file, or a `PreparedImage`. A
                `PreparedImage` is not prepared again, and requires a spec without perturbations.

        Returns:
            The batch. An image that does not decode has the reason in `outcomes`, and no pixels.
        """
        ids, members, encoded = list[int](), list[_Member](), list[File | None]()
        for image_id, data in fetched:
            file: File | None
            if isinstance(data, PreparedImage):
                member, file = _make_member(data), data.data
            else:
                member = self._decode_member(image_id, data)
                file = None if isinstance(data, InputError) else data
            ids.append(image_id)
            members.append(member)
            encoded.append(file if self._is_decoded_again(member) else None)
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
                images = self._keep_images(members, ids)
                for index, view in enumerate(self._spec.views):
                    views.append(self._batch_view(prepared, images, index, view))
            files = tuple(encoded) if self._hand_over or self._keeps_files else ()
            return Batch(outcomes, pixels, tuple(sizes), files, tuple(views), tuple(ids))

    def _is_decoded_again(self, member: "_Member") -> bool:
        """Return whether the file of a member is decoded again.

        The second stage does so, and detectors in another process that score images of this size.
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
        """Return a batch in which detectors can also read the images that stayed encoded.

        If the decoder has `hand_over`, images that are not resized stay encoded in a batch. Call
        this method in the process that scores such a batch. It replaces these images by
        `EncodedImages`, which decode an image only when a detector reads it. A batch without
        encoded images is returned unchanged.
        """
        if not batch.encoded or not batch.pixels:
            return batch
        kept_pixels = KEPT_PIXELS if batch.views else 0
        images = BatchImages(self, batch.files, max_kept_pixels=kept_pixels)
        views = tuple(
            replace(view, pixels=self._make_readable(images, view.pixels, perturbation))
            for view, perturbation in zip(batch.views, self._spec.views, strict=True)
        )
        files = batch.encoded if self._keeps_files else ()
        pixels = self._make_readable(images, batch.pixels, None)
        return replace(batch, pixels=pixels, encoded=files, views=views)

    def _make_readable(
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

    def _keep_images(self, members: Sequence["_Member"], ids: Sequence[int]) -> BatchImages | None:
        """Return the images whose views are prepared when a detector reads them.

        Images that are already decoded stay decoded. None if all views are prepared here, or
        elsewhere.
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
        """Decode and prepare one member. A bug in Touchstone makes only this member fail."""
        facts = provenance = None
        try:
            with self.open_file(image_id, data) as image:
                if self._spec.measured:
                    with self._clock("prepare"):
                        image = add_texture(image)
                facts = image.facts
                if self._provenance_reader is not None:
                    provenance = self._read_provenance(image_id, data, facts, image.pixels)
                with self._clock("prepare"):
                    prepared = PreparedViews([], [])
                    for target in self._inputs:
                        is_late = self._hand_over and target.shape is None
                        prepared.tensors.append(
                            None if is_late else self.prepare(target, image.pixels)
                        )
                    for view in self._spec.views:
                        prepared.views.append(self._prepare_view(view, image))
        except InputError as error:
            facts = error.facts if isinstance(error, ImageRefused) else facts
            return _Member(DecodeResult(error.status, error.detail, facts, provenance))
        except Exception as error:
            if not is_image_error(error):
                raise
            file_facts = inspect_bytes(data) if isinstance(data, bytes) else None
            return _Member(DecodeResult.from_failure(error, file_facts))
        outcome = DecodeResult(Status.OK, None, facts, provenance)
        if not (self._spec.views and self._spec.keeps_sizes) or self._hand_over:
            return _Member(outcome, prepared)
        if is_large(image) and not isinstance(data, InputError):
            return _Member(outcome, prepared, file=data)
        return _Member(outcome, prepared, image=image)

    def _prepare_view(
        self, view: Perturbation, image: DecodedImage
    ) -> tuple[Size, list[Pixels | None]] | None:
        """Prepare an image in one view, or return None if the view cannot be made.

        Tensors that keep sizes are prepared when a detector reads them.
        """
        image_in_view = apply_view(view, image)
        if image_in_view is None:
            return None
        try:
            return image_in_view.size, [
                None if target.shape is None else self.prepare(target, image_in_view)
                for target in self._scored
            ]
        except InputError:
            return None

    def prepare(self, target: DetectorInput, image: Image.Image) -> Pixels | None:
        """Prepare an image as the input of detectors.

        Args:
            target: The preprocessing, and the models that read its images. They are detectors, and
                possibly the describer, which guesses prompts.
            image: The decoded image.

        Returns:
            The pixels. None if no model in `target` reads images of this size.
        """
        is_sure = target.is_described or target.shape is not None
        if not is_sure and not any(
            self._spec.is_scored(name, *image.size) for name in target.detectors
        ):
            return None
        return target.preprocessing.prepare(image)

    def open_file(
        self, image_id: int, data: File | InputError
    ) -> AbstractContextManager[DecodedImage]:
        """Decode one image, and add it to the count of decoded images.

        The context manager yields the image (see `CrashSafeDecoder.open_image`). If `data` is an
        error, the context manager raises it.
        """
        self.counts["decoded"] += not isinstance(data, InputError)
        return self.careful.open_image(image_id, data, self._clock, self._bytes_per_pixel)

    def _read_provenance(
        self, image_id: int, data: File | InputError, facts: ImageFileFacts, pixels: Image.Image
    ) -> str | None:
        """Read what a decoded file states about its origin.

        Native code reads a C2PA manifest, under the same crash marker and watchdog as decoding. A
        member that killed a process keeps its score, and loses only what that code would have read.
        """
        if self._provenance_reader is None or not isinstance(data, bytes):
            return None
        with self._clock("decode"), self.careful.mark_crash(image_id):
            native = not self.careful.is_suspect(image_id)
            provenance = self._provenance_reader.read(
                data, facts.format, native=native, pixels=pixels
            )
        return None if provenance is None else provenance.row()

    def _stack(
        self, prepared: Sequence[PreparedViews | None], view: int | None
    ) -> tuple[BatchTensor, ...]:
        """Stack the tensors of the members in one view (None is clean), for each preprocessing.

        Slots of members without a tensor are zero.
        """
        stacked: list[BatchTensor] = []
        for index, target in enumerate(self._inputs if view is None else self._scored):
            images: list[Pixels | None] = []
            for member in prepared:
                tensors = (
                    None
                    if member is None
                    else member.tensors
                    if view is None
                    else (member.views[view] or (None, None))[1]
                )
                images.append(None if tensors is None else tensors[index])
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
        index: int,
        view: Perturbation,
    ) -> PerturbedBatch:
        pixels = self._stack(prepared, index)
        if images is not None:
            pixels = self._make_readable(images, pixels, view)
        views = [None if item is None else item.views[index] for item in prepared]
        return PerturbedBatch(pixels, tuple(None if item is None else item[0] for item in views))


def file_bytes(decode_bytes: int, limits: ImageLimits) -> int:
    """Return the memory budget of a node for encoded files over 64 MiB, in bytes.

    Workers reserve memory from this budget before they read such a file. Smaller files need
    no reservation. At least one file of the maximum size fits into the budget.

    Args:
        decode_bytes: Memory that large images may take on the node.
        limits: Limits on an image, with the maximum size of a file.

    Returns:
        The number of bytes.
    """
    return max(decode_bytes // 4, limits.max_bytes)


def _detector_inputs(spec: ScoringSpec) -> list[DetectorInput]:
    return [
        DetectorInput(
            preprocessing,
            preprocessing.shape,
            tuple(name for name, used in spec.inputs.items() if used == preprocessing),
            preprocessing == spec.describer_preprocessing,
        )
        for preprocessing in spec.preprocessings
    ]


@dataclass(frozen=True)
class _Member:
    """The result of decoding one member.

    Attributes:
        outcome: Its status and facts.
        prepared: Its tensors, if it was decoded.
        image: The image, if views of it are prepared later.
        file: The file, if views of it are prepared later and the image is too large to keep.
    """

    outcome: DecodeResult
    prepared: PreparedViews | None = None
    image: DecodedImage | None = None
    file: File | None = None


def _make_member(image: PreparedImage) -> _Member:
    """Return a member that a child process decoded, as `BatchDecoder` would have returned it."""
    provenance = None if image.provenance is None else image.provenance.row()
    outcome = DecodeResult(Status.OK, None, image.facts, provenance)
    return _Member(outcome, PreparedViews(list(image.pixels), []))


def _count_bytes_per_pixel(spec: ScoringSpec) -> int:
    """Return the memory for preparing an image, in bytes per pixel.

    It counts the RGB image, and the views and arrays that are made from it.
    """
    makes_arrays = any(
        preprocessing.resampler != "pillow" or preprocessing.shape is None
        for preprocessing in spec.preprocessings
    )
    return _RGB_BYTES + _VIEW_BYTES * bool(spec.views) + _ARRAY_BYTES * makes_arrays


def _convert_pil(image: Image.Image) -> DecodedImage:
    """Convert an image that the caller decoded by the same colour rules as a file.

    `sha256` is that of its RGB pixels, since there is no file.
    """
    flags: set[str] = set()
    pixels = colour.to_rgb(image, flags, 8)
    if not has_content(pixels):
        flags.add("no_content")
    facts = ImageFileFacts(hashlib.sha256(pixels.tobytes()).hexdigest(), width=image.width, height=image.height, mode=image.mode,
                       flags=tuple(sorted(flags)))  # fmt: skip
    return DecodedImage(pixels, facts)
