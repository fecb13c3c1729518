"""Decode files in child processes before the detectors need them (`IsolatedFiles`).

The children can decode the first files while the parent process still imports torch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from ray_app.errors import InputError
from ray_app.images import ImageFileFacts
from ray_app.images.provenance import Provenance, ProvenancePolicy
from ray_app.inference.batch import Pixels
from ray_app.inference.decoder import WALL_LIMIT_S
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import IsolatedDecoders, PreparedImage
from ray_app.inference.small_pictures import square
from ray_app.inference.spec import ScoringSpec
from ray_app.storage.node_budget import usable_cores

# Memory for prepared pixels, and for files that are kept, before they are consumed.
AHEAD_BYTES = 192 * 2**20
_KEPT_FILE_BYTES = 8 * 2**20  # The expected size of a file.
_MAX_PROCESSES = 4


class ReadFile(NamedTuple):
    """The image of one file, prepared for scoring.

    Attributes:
        image: The prepared image, or the error if the file cannot be read or decoded.
        picture: The whole image squashed into a small square, (side, side, 3) uint8. None if small
            images are not requested, or if there is no image.
    """

    image: PreparedImage | InputError
    picture: Pixels | None = None

    @property
    def facts(self) -> ImageFileFacts | None:
        """The properties of the file. None if they are unknown."""
        return getattr(self.image, "facts", None)

    @property
    def provenance(self) -> Provenance | None:
        """What the file states about its origin. None if the file states nothing."""
        return self.image.provenance if isinstance(self.image, PreparedImage) else None


class IsolatedFiles:
    """Read files in threads, and decode them in child processes, before detectors need them.

    The attribute `children` has the child processes. They can also decode images again, such as for
    the second stage of a cascade. Call `close` at the end.

    Args:
        spec: Has the preprocessings and limits. It must not request perturbed images.
        read: Returns the content of a file, given its name. Raises InputError if this fails.
        provenance: How to read what files state about their origin. None does not read it.
        picture_px: Side in pixels of the small image of each file. 0 makes no small images.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        read: Callable[[str], bytes],
        *,
        provenance: ProvenancePolicy | None = None,
        picture_px: int = 0,
    ) -> None:
        stage = spec.stages[0]
        self._read, self._spec = read, spec
        small_images = [square(picture_px)] if picture_px else []
        self._extra = len(small_images)
        self._request = DecodeRequest(
            preprocessings=(*stage.preprocessings, *small_images),
            provenance=provenance,
            measured=bool(spec.for_stage(stage).measured),
        )
        processes = min(max(usable_cores() - 1, 1), _MAX_PROCESSES)
        self.children = IsolatedDecoders(
            spec.limits, processes=processes, wall_limit_s=WALL_LIMIT_S, memory_limit_bytes=None
        )
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="isolated-files")

    def decode_ahead(self, names: Iterable[str]) -> Iterator[ReadFile]:
        """Yield one `ReadFile` for each name, in order.

        Reading begins as soon as this method is called, not when the iterator is first used.
        """
        names, pending = iter(names), deque[Future[ReadFile]]()

        def fill() -> None:
            while len(pending) < self._max_pending and (name := next(names, None)) is not None:
                pending.append(self._threads.submit(self._read_one, name))

        def consume() -> Iterator[ReadFile]:
            while pending:
                file = pending.popleft().result()
                fill()
                yield file

        fill()
        return consume()

    def close(self) -> None:
        """Finish running tasks, cancel the others, and end the processes."""
        self._threads.shutdown(cancel_futures=True)
        self.children.close()

    @property
    def _keeps_files(self) -> bool:
        return self._spec.is_cascade or self._spec.keeps_sizes

    @property
    def _max_pending(self) -> int:
        pixel_bytes = sum(
            3 * height * width for height, width, _ in filter(None, self._request.shapes)
        )
        return max(
            AHEAD_BYTES // (pixel_bytes + _KEPT_FILE_BYTES * self._keeps_files + 1),
            self._spec.slots,
        )

    def _read_one(self, name: str) -> ReadFile:
        try:
            data = self._read(name)
            image = self.children.prepare(data, self._request)
        except InputError as error:
            return ReadFile(error)
        count = len(image.pixels) - self._extra
        prepared = replace(
            image, pixels=image.pixels[:count], data=data if self._keeps_files else None
        )
        return ReadFile(prepared, *image.pixels[count:])
