"""Whether what came is a whole image: decoded in a process of its own, so that a hostile file harms nobody. Keeps nothing."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from ray_app.collecting.statuses import Failed
from ray_app.errors import InputError, Status
from ray_app.images import ChildDecoder, ImageLimits
from ray_app.images.sniff import describe_unsupported, sniff_format

_WALL_LIMIT_S = 20.0
_TORN = frozenset((Status.CORRUPT_IMAGE, Status.TRUNCATED_IMAGE, Status.EMPTY_FILE))


@dataclass(frozen=True)
class Whole:
    """Facts of bytes that decode."""

    sha256: str
    format: str
    width: int
    height: int


class Checker:
    """A few decoder processes, one per thread. `check` may be called from many threads; `close()` ends the processes."""

    def __init__(self, limits: ImageLimits, processes: int) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(processes, thread_name_prefix="decode")
        self._own = threading.local()
        self._decoders: list[ChildDecoder] = []

    def check(self, data: bytes) -> Future[Whole]:
        """To be waited for. Raises Failed; `passing` where a torn transfer may be the reason."""
        return self._pool.submit(self._decoded, data)

    def close(self) -> None:
        """End the processes, when what they do is done."""
        self._pool.shutdown(wait=True)
        for decoder in self._decoders:
            decoder.close()

    def _decoded(self, data: bytes) -> Whole:
        digest = sha256(data).hexdigest()
        if data and sniff_format(data) is None:
            raise Failed(Status.UNSUPPORTED_FORMAT, describe_unsupported(data), sha256=digest, http_status=200)
        try:
            facts = self._decoder().decode(data).facts
        except InputError as error:
            raise Failed(error.status, error.detail, passing=error.status in _TORN, sha256=digest, http_status=200) from None
        return Whole(digest, str(facts.format), facts.width or 0, facts.height or 0)

    def _decoder(self) -> ChildDecoder:
        if not hasattr(self._own, "decoder"):
            self._own.decoder = ChildDecoder(self._limits, wall_limit_s=_WALL_LIMIT_S)
            self._decoders.append(self._own.decoder)
        decoder: ChildDecoder = self._own.decoder
        return decoder
