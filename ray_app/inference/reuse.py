"""The score cache (`ScoreCache`): byte-identical members are decoded and scored once."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ray_app.errors import Status
from ray_app.images import decoder_name
from ray_app.inference import batch, decision
from ray_app.inference.decision import REPLIES, DetectorOutputs
from ray_app.inference.spec import ScoringSpec

MOST_REMEMBERED = 10_000  # members that a process knows by heart: about 15 MB


class Index(Protocol):
    """Scores of members that were committed before this process began."""

    def find(self, sha256: str) -> batch.DecodeResult | None:
        """The outcome of such bytes, with what detectors said of them; None where they are not known."""


class ScoreCache:
    """Remembers members by the SHA-256 of their bytes: those of the block at work, of this process's last blocks, and of an index."""

    def __init__(self, spec: ScoringSpec, index: Index | None = None) -> None:
        self._spec, self._index = spec, index
        self._rows: dict[str, tuple[int, batch.DecodeResult]] = {}
        self._row = 0
        self._remembered: OrderedDict[str, batch.DecodeResult] = OrderedDict()

    def begin_block(self) -> None:
        """From now on rows are those of another block."""
        self._rows, self._row = {}, 0

    def known(self, sha256: str) -> batch.DecodeResult | None:
        """The outcome of the same bytes before, if there is one whose scores can stand for new ones."""
        if sha256 in self._rows:
            row, outcome = self._rows[sha256]
            return replace(outcome, said=batch.ReusedOutput(row))
        found = self._remembered.get(sha256) or (self._index.find(sha256) if self._index is not None else None)
        return found if found is not None and self._suffices(found) else None

    def _suffices(self, outcome: batch.DecodeResult) -> bool:
        """Whether all is there that this spec wants. An index may have been made under another decision of the same detectors, by which
        fewer of them looked at an image; or by a decoder that took damaged files, or gave other pixels.
        """
        if self._spec.perceptual_hash and outcome.phash is None:
            return False
        if outcome.facts is not None and any(getattr(outcome.facts, name) is None for name in self._spec.measured):
            return False
        if outcome.facts is not None and outcome.facts.format and outcome.facts.decoder != decoder_name(outcome.facts.format):
            return False
        if outcome.said is None or outcome.facts is None:
            return True
        scores, facts = outcome.said.scores, outcome.facts
        first = DetectorOutputs.clean(scores={name: np.array([scores.get(name)], np.float32) for name in self._spec.first})  # None is NaN
        goes_on = not self._spec.late or bool(decision.second_stage_rows(self._spec, [outcome], first))
        return is_complete(self._spec, facts.width, facts.height, scores, goes_on=goes_on)

    def met(self, outcome: batch.DecodeResult) -> None:
        """Count one more member of the block, with what became of it."""
        if outcome.said is None and outcome.status is Status.OK and outcome.facts is not None:
            self._rows[outcome.facts.sha256] = (self._row, outcome)
        self._row += 1

    def learn(self, outcomes: Sequence[batch.DecodeResult], outputs: DetectorOutputs) -> None:
        """Remember a block that this process has scored."""
        going = set(decision.second_stage_rows(self._spec, outcomes, outputs))
        columns, texts_of = outputs.scores, outputs.of(REPLIES)
        for row, outcome in enumerate(outcomes):
            if outcome.status is not Status.OK or outcome.facts is None or outcome.said is not None:
                continue
            scores = {name: decision.finite(columns[name][row]) for name in self._spec.cards}
            if is_complete(self._spec, outcome.facts.width, outcome.facts.height, scores, goes_on=row in going):
                replies = {name: texts[row] for name, texts in texts_of.items()}
                self._remembered[outcome.facts.sha256] = replace(outcome, said=batch.ReusedOutput(None, scores, replies))
        while len(self._remembered) > MOST_REMEMBERED:
            self._remembered.popitem(last=False)


def is_complete(
    spec: ScoringSpec, width: int | None, height: int | None, scores: Mapping[str, float | None], *, goes_on: bool = True
) -> bool:
    """Whether every detector that should score an image of this size has; only the first ones of a cascade where it does not go on."""
    names = spec.cards if goes_on else spec.first
    return all(scores.get(name) is not None or not spec.is_scored(name, width or 0, height or 0) for name in names)
