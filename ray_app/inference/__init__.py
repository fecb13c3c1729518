"""Encoded bytes → scores and verdicts, in one process."""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.inference.batch import (
        DESCRIBED,
        LOOKED,
        LOOKED_MS,
        REQUESTED,
        RUNS,
        Batch,
        DecodeResult,
    )
    from ray_app.inference.block_reader import BlockReader
    from ray_app.inference.decision import (
        BlockResult,
        DetectorOutputs,
        Scores,
        is_blank,
        judge,
        range_doubts,
        remarks_on,
    )
    from ray_app.inference.decoder import STAGES, BatchDecoder, StageClock
    from ray_app.inference.spec import ResourceEstimate, ScoringSpec, make_spec
else:
    __getattr__ = on_first_use(__name__)
