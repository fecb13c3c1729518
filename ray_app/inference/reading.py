"""Members → batches: bytes fetched ahead of the decoder, every member in its own slot."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from ray_app.archives import Member
from ray_app.inference.clock import StageClock
from ray_app.inference.decoding import Batch, BatchDecoder
from ray_app.inference.spec import ScoringSpec
from ray_app.storage import Fetcher, RetryPolicy

AHEAD_BYTES = 64 * 2**20  # encoded bytes read ahead of the decoder, per worker


class BlockReader:
    """Fetches and decodes blocks of members on one core."""

    def __init__(
        self,
        spec: ScoringSpec,
        clock: StageClock,
        *,
        policy: RetryPolicy,
        signed: Sequence[str] = (),
        crumbs: Path | None = None,
        hand_over: bool = False,
    ) -> None:
        self._spec, self._clock = spec, clock
        self.fetcher = Fetcher(policy, signed=signed)
        self._decoder = BatchDecoder(spec, clock, crumbs, hand_over=hand_over)

    def read(self, members: Sequence[Member]) -> Iterator[Batch]:
        """The batches of a block, in slot order; a member that cannot be read or decoded keeps its slot, empty."""
        self._decoder.look_for_crumbs()
        arriving = self.fetcher.prefetch(members, depth_bytes=AHEAD_BYTES, max_bytes=self._spec.limits.max_bytes)
        while True:
            with self._clock("fetch"):
                fetched = [(member.image_id, data) for member, data in islice(arriving, self._spec.slots)]
            if not fetched:
                return
            yield self._decoder.decode(fetched)

    @property
    def counts(self) -> dict[str, int]:
        """What was done since the start: bytes read, requests retried and throttled, images decoded."""
        traffic = {name: getattr(self.fetcher, name) for name in ("bytes_read", "retried", "throttled")}
        return traffic | self._decoder.counts

    def close(self) -> None:
        """Give back what the decoder holds."""
        self._decoder.close()
