"""Members → batches (`BlockReader`): bytes fetched ahead of the decoder, every member in its own slot."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ray_app.archives import ManifestMember, MemberReader, uri_lists
from ray_app.errors import InputError, Status
from ray_app.images import ImageLimits
from ray_app.inference import decoder, reuse
from ray_app.inference.batch import Batch, DecodeResult, StageClock
from ray_app.inference.spec import ScoringSpec
from ray_app.storage import Fetcher, node_budget

AHEAD_BYTES = 64 * 2**20  # encoded bytes read ahead of the decoder, per worker


def file_bytes(decode_bytes: int, limits: ImageLimits) -> int:
    """What encoded files over AHEAD_BYTES may take together on a node where large images may take `decode_bytes`: at least one of them."""
    return max(decode_bytes // 4, limits.max_bytes)


class BlockReader:
    """Fetches and decodes blocks of members on one core."""

    def __init__(
        self,
        spec: ScoringSpec,
        clock: StageClock,
        *,
        fetcher: Fetcher,
        crumbs: Path | None = None,
        hand_over: bool = False,
        keeps_files: bool = False,
        wall_limit_s: float = decoder.WALL_LIMIT_S,
        recall: reuse.ScoreCache | None = None,
        decode_bytes: int | None = None,
    ) -> None:
        self._spec, self._clock, self.recall = spec, clock, recall
        self.fetcher = fetcher
        budget = node_budget.NodeBudget(decoder.BUDGET, decode_bytes)
        files = node_budget.NodeBudget("files", file_bytes(budget.total_bytes, spec.limits))
        self._members = MemberReader(self.fetcher, max_bytes=spec.limits.max_bytes, depth_bytes=AHEAD_BYTES, budget=files)
        self.decoder = decoder.BatchDecoder(
            spec, clock, crumbs, hand_over=hand_over, keeps_files=keeps_files, wall_limit_s=wall_limit_s, recall=recall, budget=budget
        )

    def read(self, members: Sequence[ManifestMember], noted: list[DecodeResult] | None = None) -> Iterator[Batch]:
        """The batches of a block, in slot order; a member that cannot be read or decoded keeps its slot, empty. What became of each is
        added to `noted`.
        """
        self.decoder.careful.look_for_crumbs()
        if self.recall is not None:
            self.recall.begin_block()
        arriving = self._members.read(members)
        for start in range(0, len(members), self._spec.slots):
            some = members[start : start + self._spec.slots]
            batch = self.decoder.decode(self._fetched(arriving, len(some)))
            outcomes = list(batch.outcomes)
            for place, member in enumerate(some):
                if outcomes[place].status is Status.UNSUPPORTED_FORMAT:
                    outcomes[place] = _with_list_hint(outcomes[place], member)
            if noted is not None:
                noted += outcomes
            yield replace(batch, outcomes=tuple(outcomes))

    def _fetched(
        self, arriving: Iterator[tuple[ManifestMember, bytes | InputError]], count: int
    ) -> Iterator[tuple[int, bytes | InputError]]:
        """The next members as their bytes come; none of them is held here while the next is waited for."""
        for _ in range(count):
            with self._clock("fetch"):
                member, data = next(arriving)
            yield member.image_id, data
            del data
        self._members.let_go()

    def close(self) -> None:
        """Give back what the decoder holds."""
        self.decoder.close()


def _with_list_hint(outcome: DecodeResult, member: ManifestMember) -> DecodeResult:
    """What became of a member; of a table beside images also how it is read as a list."""
    if outcome.status is Status.UNSUPPORTED_FORMAT and member.member is None and uri_lists.looks_like_list(member.uri):
        return replace(outcome, detail=f"{outcome.detail}; if it lists images, give it as a source of its own: list::{member.uri}")
    return outcome
