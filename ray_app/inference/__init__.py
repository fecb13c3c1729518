"""Score encoded images in one process.

A card is a YAML file that describes a detector or an ensemble. `make_spec` collects the cards and
settings of an ensemble in a `ScoringSpec`. `BatchDecoder` decodes images, and prepares them in
batches as the spec requires. `judge` turns the outputs of the detectors into verdicts.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.inference.batch import (
        DESCRIBED,
        REQUESTED,
        RESCORED,
        RESCORED_MS,
        RUNS,
        Batch,
        DecodeResult,
    )
    from ray_app.inference.block_reader import BlockReader
    from ray_app.inference.decision import (
        BlockResult,
        DetectorOutputs,
        Scores,
        describe_range_violations,
        describe_replies,
        is_blank,
        judge,
    )
    from ray_app.inference.decoder import STAGES, BatchDecoder, StageClock
    from ray_app.inference.spec import ResourceEstimate, ScoringSpec, make_spec
else:
    __getattr__ = on_first_use(__name__)
