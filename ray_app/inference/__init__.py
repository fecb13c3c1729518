"""Encoded bytes → scores and verdicts, in one process. Knows images, detectors and ensembles; knows nothing of Ray."""

from ray_app.inference.batches import Batch, Outcome
from ray_app.inference.clock import ASKED, DESCRIBED, LOOKED, LOOKED_MS, RUNS, STAGES, StageClock
from ray_app.inference.decoding import BatchDecoder
from ray_app.inference.judging import Readings, Scored, Scores, is_blank, judge, range_doubts, remarks_on
from ray_app.inference.packing import pack, unpack
from ray_app.inference.reading import BlockReader
from ray_app.inference.spec import ScoringSpec, make_spec

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
    "Outcome",
    "BlockReader",
    "pack",
    "unpack",
    "Readings",
    "Scored",
    "Scores",
    "judge",
    "is_blank",
    "range_doubts",
    "remarks_on",
]
