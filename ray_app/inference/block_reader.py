"""Members of a block → batches of uint8 tensors (`BlockReader`): bytes are fetched ahead of the
decoder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_app.errors import InputError, Status
from ray_app.images.provenance import attach_sidecar
from ray_app.inference.batch import Batch, DecodeResult
from ray_app.inference.decoder import (
    AHEAD_BYTES,
    BUDGET,
    BatchDecoder,
    StageClock,
    file_bytes,
)
from ray_app.inference.spec import ScoringSpec
from ray_app.storage import Fetcher
from ray_app.storage.node_budget import NodeBudget
from ray_app.storage.urls import local_path, scheme_of

if TYPE_CHECKING:
    from ray_app.archives import ManifestMember

MEMBER_BYTES = "member_bytes"  # a count


class BlockReader:
    """Fetches and decodes blocks of members on one core.

    Args:
        spec: Says how many members are in a batch, and whether sidecars are read.
        clock: Counts the seconds of fetching.
        fetcher: Reads bytes.
        decoder: Decodes them. `close` closes it.
        decode_bytes: Memory that large images may take together on this node. None is the default.
    """

    def __init__(
        self,
        spec: ScoringSpec,
        clock: StageClock,
        *,
        fetcher: Fetcher,
        decoder: BatchDecoder,
        decode_bytes: int | None = None,
    ) -> None:
        from ray_app.archives import MemberReader  # pyarrow, which nobody needs for images at hand

        self._spec, self._clock = spec, clock
        self._looks_for_sidecars = spec.provenance is not None
        self.fetcher = fetcher
        pixels = NodeBudget(BUDGET, decode_bytes)
        files = NodeBudget("files", file_bytes(pixels.total_bytes, spec.limits))
        self._members = MemberReader(
            self.fetcher, max_bytes=spec.limits.max_bytes, depth_bytes=AHEAD_BYTES, budget=files
        )
        self.decoder = decoder
        self._member_bytes = 0

    @property
    def counts(self) -> dict[str, int]:
        """Encoded bytes of the members that were read, since the start. Less than `bytes_read` of
        the fetcher if a container's other members had to be read, too.
        """
        return {MEMBER_BYTES: self._member_bytes}

    def read(
        self, members: Sequence["ManifestMember"], noted: list[DecodeResult] | None = None
    ) -> Iterator[Batch]:
        """The batches of a block, in slot order; a member that cannot be read or decoded keeps its
        slot, empty. What became of each is added to `noted`.
        """
        from ray_app.archives.uri_lists import looks_like_list

        self.decoder.careful.look_for_crumbs()
        arriving = self._members.read(members)
        for start in range(0, len(members), self._spec.slots):
            some = members[start : start + self._spec.slots]
            batch = self.decoder.decode(self._fetched(arriving, len(some)))
            outcomes = list(batch.outcomes)
            for place, (member, outcome) in enumerate(zip(some, batch.outcomes, strict=True)):
                is_unknown = outcome.status is Status.UNSUPPORTED_FORMAT and member.member is None
                if is_unknown and looks_like_list(member.uri):  # a table beside images
                    hint = f"if it lists images, give it as a source of its own: list::{member.uri}"
                    outcomes[place] = replace(outcome, detail=f"{outcome.detail}; {hint}")
            if noted is not None:
                noted += outcomes
            yield replace(batch, outcomes=tuple(outcomes))

    def _fetched(
        self, arriving: "Iterator[tuple[ManifestMember, bytes | InputError]]", count: int
    ) -> Iterator[tuple[int, bytes | InputError]]:
        """The next members as their bytes come; none of them is held here while the next is waited
        for.
        """
        for _ in range(count):
            with self._clock("fetch"):
                member, data = next(arriving)
                if (
                    self._looks_for_sidecars
                    and member.place is None
                    and isinstance(data, bytes)
                    and scheme_of(member.uri) == "file"
                ):
                    data = attach_sidecar(data, local_path(member.uri))
            self._member_bytes += len(data) if isinstance(data, bytes) else 0
            yield member.image_id, data
            del data
        self._members.let_go()

    def close(self) -> None:
        """Give back what the decoder holds."""
        self.decoder.close()
