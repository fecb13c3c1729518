"""Read the files of a block as batches of uint8 tensors (`BlockReader`).

A block is a group of files that one task scores. The bytes of the next files are fetched while the
decoder decodes earlier ones.
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
from ray_app.storage.urls import get_scheme, local_path

if TYPE_CHECKING:
    from ray_app.archives import ManifestMember

MEMBER_BYTES = "member_bytes"  # The name of a count.


class BlockReader:
    """Fetch and decode the members of blocks on one core.

    A member is one file of the archive. A block is a group of members that one task scores. The
    clock counts the seconds of fetching. `close` of the reader closes the decoder. `decode_bytes`
    is the memory that all processes of this node together may take to decode large images, by
    default a quarter of the node's memory.
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
        # This imports pyarrow, which is not needed for images in memory.
        from ray_app.archives import MemberReader

        self._spec, self._clock = spec, clock
        self._reads_sidecars = spec.provenance is not None
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
        """The counter `member_bytes`: the total encoded size of the files that were read.

        `bytes_read` of the fetcher can be larger, because reading a file from a container, such as
        a tar, may also read its neighbours.
        """
        return {MEMBER_BYTES: self._member_bytes}

    def read(
        self, members: Sequence["ManifestMember"], results: list[DecodeResult] | None = None
    ) -> Iterator[Batch]:
        """Yield the members of a block in decoded batches, in the order of `members`.

        A member that cannot be read or decoded leaves its slot of the batch empty. The decoding
        result of each member is appended to `results`.
        """
        from ray_app.archives.split_archives import explain_part
        from ray_app.archives.uri_lists import looks_like_list

        self.decoder.careful.read_crash_markers()
        arriving = self._members.read(members)
        for start in range(0, len(members), self._spec.slots):
            chunk = members[start : start + self._spec.slots]
            batch = self.decoder.decode(self._fetch(arriving, len(chunk)))
            outcomes = list(batch.outcomes)
            for slot, (member, outcome) in enumerate(zip(chunk, batch.outcomes, strict=True)):
                if outcome.status is Status.OK or member.member is not None:
                    continue
                detail = explain_part(member.uri, outcome.status, outcome.detail)
                if outcome.status is Status.UNSUPPORTED_FORMAT and looks_like_list(member.uri):
                    # A table next to images.
                    hint = f"if it lists images, name it as another source: list::{member.uri}"
                    detail = f"{detail}; {hint}"
                outcomes[slot] = replace(outcome, detail=detail)
            if results is not None:
                results += outcomes
            yield replace(batch, outcomes=tuple(outcomes))

    def _fetch(
        self, arriving: "Iterator[tuple[ManifestMember, bytes | InputError]]", count: int
    ) -> Iterator[tuple[int, bytes | InputError]]:
        """Yield the next members as their bytes arrive.

        No member is held here while the next one is being fetched.
        """
        for _ in range(count):
            with self._clock("fetch"):
                member, data = next(arriving)
                if (
                    self._reads_sidecars
                    and member.place is None
                    and isinstance(data, bytes)
                    and get_scheme(member.uri) == "file"
                ):
                    data = attach_sidecar(data, local_path(member.uri))
            self._member_bytes += len(data) if isinstance(data, bytes) else 0
            yield member.image_id, data
            del data
        self._members.let_go()

    def close(self) -> None:
        """Close the decoder."""
        self.decoder.close()
