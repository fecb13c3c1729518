"""Files that child processes decode ahead of the network, and while torch is imported
(`IsolatedFiles`).
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

AHEAD_BYTES = 192 * 2**20  # of prepared pixels, and of files that are kept, while nobody takes them
_KEPT_FILE_BYTES = 8 * 2**20  # what a file is reckoned with
_MOST_PROCESSES = 4


class ReadFile(NamedTuple):
    """One file: what to score, or why there is nothing; and, where these are made, its small
    picture, a square (side, side, 3) of the whole picture.
    """

    given: PreparedImage | InputError
    picture: Pixels | None = None

    @property
    def facts(self) -> ImageFileFacts | None:
        """What is known of the file."""
        return getattr(self.given, "facts", None)

    @property
    def provenance(self) -> Provenance | None:
        """What the file says of its origin."""
        return self.given.provenance if isinstance(self.given, PreparedImage) else None


class IsolatedFiles:
    """Decodes files in child processes, in order. Each is read (`read`, which raises InputError) in
    a thread and decoded in a process.

    For a spec without views. `children` may also decode what has to be decoded once more.
    `picture_px`: the side of a small picture that is made besides; 0 = none. `close()` it.
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
        shown = [square(picture_px)] if picture_px else []
        self._extra = len(shown)
        self._wanted = DecodeRequest(
            preprocessings=(*stage.preprocessings, *shown),
            resize=spec.resize,
            provenance=provenance,
            measured=bool(spec.for_stage(stage).measured),
        )
        processes = min(max(usable_cores() - 1, 1), _MOST_PROCESSES)
        self.children = IsolatedDecoders(
            spec.limits, processes=processes, wall_limit_s=WALL_LIMIT_S, memory_limit_bytes=None
        )
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="isolated-files")

    def ahead(self, names: Iterable[str]) -> Iterator[ReadFile]:
        """One for each name, in order. The first are at work when this returns: some are read
        before anybody asks for them.
        """
        names, waiting = iter(names), deque[Future[ReadFile]]()

        def fill() -> None:
            while len(waiting) < self._most and (name := next(names, None)) is not None:
                waiting.append(self._threads.submit(self._one, name))

        def taken() -> Iterator[ReadFile]:
            while waiting:
                found = waiting.popleft().result()
                fill()
                yield found

        fill()
        return taken()

    def close(self) -> None:
        """Finish what is at work, let the rest go, and end the processes."""
        self._threads.shutdown(cancel_futures=True)
        self.children.close()

    @property
    def _keeps_files(self) -> bool:
        return self._spec.is_cascade or self._spec.keeps_sizes

    @property
    def _most(self) -> int:
        each = sum(3 * height * width for height, width, _ in filter(None, self._wanted.shapes))
        return max(
            AHEAD_BYTES // (each + _KEPT_FILE_BYTES * self._keeps_files + 1), self._spec.slots
        )

    def _one(self, name: str) -> ReadFile:
        try:
            data = self._read(name)
            image = self.children.prepare(data, self._wanted)
        except InputError as refused:
            return ReadFile(refused)
        count = len(image.pixels) - self._extra
        prepared = replace(
            image, pixels=image.pixels[:count], data=data if self._keeps_files else None
        )
        return ReadFile(prepared, *image.pixels[count:])
