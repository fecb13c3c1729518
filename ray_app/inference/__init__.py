"""Encoded bytes → scores and verdicts, in one process. Knows images, detectors and ensembles; knows nothing of Ray."""

from ray_app.inference.batch import Batch, DecodeResult
from ray_app.inference.block_reader import BlockReader
from ray_app.inference.decision import BlockResult, DetectorOutputs, Scores, is_blank, judge, range_doubts, remarks_on
from ray_app.inference.decoder import BatchDecoder
from ray_app.inference.spec import ScoringSpec, make_spec
from ray_app.inference.timing import ASKED, DESCRIBED, LOOKED, LOOKED_MS, RUNS, STAGES, StageClock

__all__ = [
    "ASKED",
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
    "DetectorOutputs",
    "BlockResult",
    "Scores",
    "judge",
    "is_blank",
    "range_doubts",
    "remarks_on",
]
