"""Decode files in child processes, ahead of the network (`IsolatedFiles`).

They are also decoded while the parent imports torch.
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
    """One file that was read.

    Attributes:
        image: The image to score, or the error for a missing image.
        picture: A small image: the whole image squashed into a square, (side, side, 3). None if
            small images are not requested.
    """

    image: PreparedImage | InputError
    picture: Pixels | None = None

    @property
    def facts(self) -> ImageFileFacts | None:
        """The known properties of the file."""
        return getattr(self.image, "facts", None)

    @property
    def provenance(self) -> Provenance | None:
        """What the file states about its origin."""
        return self.image.provenance if isinstance(self.image, PreparedImage) else None


class IsolatedFiles:
    """Decode files in child processes, in order, for a spec without views.

    A thread reads each file, and a process decodes it. `children` may also decode images again.
    Call `close` when you are done.

    Args:
        spec: The preprocessings and limits.
        read: Returns the bytes of a file by its name. Raises InputError.
        provenance: How to read what files state about their origin. None does not read it.
        picture_px: The side of a small image that is made in addition. 0 makes none.
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
            resize=spec.resize,
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

        The first files are being read when this method returns, before the iterator is used.
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
