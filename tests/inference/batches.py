"""Pictures of noise, what a decoder makes of files batch by batch, what a process that holds
everything says of them, and rows of that.
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from PIL import Image

from ray_app.inference import BatchDecoder, StageClock
from ray_app.inference.worker import open_scorer
from ray_app.runs import result_rows
from tests.make.images import encoded


def noise(*sizes):
    """A file of each size (width, height); no two are equal."""
    pictures = (
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        for seed, (width, height) in enumerate(sizes)
    )
    return [encoded(Image.fromarray(pixels), "JPEG") for pixels in pictures]


def batches(spec, files, decoder=None):
    """As many files in each as the spec has slots, the last one shorter."""
    decoder = decoder or BatchDecoder(spec, StageClock())
    members = list(enumerate(files))
    return [
        decoder.decode(members[start : start + spec.slots])
        for start in range(0, len(members), spec.slots)
    ]


def read(spec, members, **options):
    """Outcomes of (number, file), outputs and counts, after second looks and words;
    `counts["read"]`: files decoded before them.
    """
    clock, outcomes = StageClock(), []
    decoder, scorer = open_scorer(spec, spec.device, clock, **options)

    def arriving():
        for start in range(0, len(members), spec.slots):
            batch = decoder.decode(members[start : start + spec.slots])
            outcomes.extend(batch.outcomes)
            yield batch

    outputs = scorer.score(arriving())
    return (
        outcomes,
        outputs,
        scorer.counts | {"read": decoder.counts["decoded"], "seconds": clock.seconds},
    )


def rows_of(scored):
    """The rows of what was judged, of members of their own numbers."""
    count = len(scored.outcomes)
    members = pa.table({"image_id": pa.array(range(count), pa.int64()), "uri": [f"{number}.png" for number in range(count)],
                        "member": pa.nulls(count, pa.string()), "occurrence": pa.array([0] * count, pa.int32())})  # fmt: skip
    return result_rows(
        members, scored, attempt=1, scored_at=datetime(2026, 1, 1, tzinfo=UTC)
    ).to_pylist()
