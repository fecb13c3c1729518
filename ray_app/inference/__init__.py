"""Encoded bytes → scores and verdicts, in one process."""

from typing import TYPE_CHECKING, Any

from ray_app.inference.batch import DESCRIBED, LOOKED, LOOKED_MS, REQUESTED, RUNS, STAGES, Batch, DecodeResult, StageClock
from ray_app.inference.decision import BlockResult, is_blank, judge, range_doubts, remarks_on
from ray_app.inference.decoder import BatchDecoder
from ray_app.inference.outputs import DetectorOutputs, Scores
from ray_app.inference.spec import ResourceEstimate, ScoringSpec, make_spec

if TYPE_CHECKING:
    from ray_app.inference.block_reader import BlockReader as BlockReader

__all__ = [
    "REQUESTED",
    "DESCRIBED",
    "LOOKED",
    "LOOKED_MS",
    "RUNS",
    "STAGES",
    "StageClock",
    "ScoringSpec",
    "make_spec",
    "Batch",
    "BatchDecoder",
    "DecodeResult",
    "BlockReader",
    "BlockResult",
    "DetectorOutputs",
    "ResourceEstimate",
    "Scores",
    "judge",
    "is_blank",
    "range_doubts",
    "remarks_on",
]


def __getattr__(name: str) -> Any:
    if name == "BlockReader":  # with archives and Arrow, which who scores files of its own has no use for
        from ray_app.inference.block_reader import BlockReader

        return BlockReader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
