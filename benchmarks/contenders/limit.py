"""The limit: what the cores could do if nothing but decoding, preparing and the model took time.

cores ÷ (seconds to decode and prepare + seconds of the model, per image), medians of one thread in
one process with nothing beside it.
"""

import statistics
import time
from typing import Any

import numpy as np

from benchmarks.contenders.contender import Contender, Record, arguments, printed, script, without
from benchmarks.work import DETECTORS, cores

WARM_UP = 2  # batches: oneDNN prepares its kernels in the first


def main() -> None:
    import torch

    from benchmarks.contenders.detectors import DECODED, load_all
    from ray_app.images import ImageLimits, decode_image

    work, count, _ = arguments()
    torch.set_num_threads(1)
    imported = time.time()
    detectors, limits = load_all(work), ImageLimits()
    slots = detectors[0].slots
    loaded = time.time()
    scores: dict[str, float] = {}
    decoding, preparing, scoring = [], [], []
    files = work.files(count)
    for first in range(0, len(files), DECODED):
        decoded = files[first : first + DECODED]
        prepared: list[list[Any]] = [[] for _ in detectors]
        for path in decoded:
            data = path.read_bytes()
            begin = time.perf_counter()
            image = decode_image(data, limits)
            after = time.perf_counter()
            for detector, arrays in zip(detectors, prepared, strict=True):
                arrays.append(detector.prepare(image.pixels))
            decoding.append(after - begin)
            preparing.append(time.perf_counter() - after)
        for start in range(0, len(decoded), slots):
            batch = slice(start, start + slots)
            begin = time.perf_counter()
            scored = np.mean(
                [
                    detector.score(np.stack(arrays[batch]))
                    for detector, arrays in zip(detectors, prepared, strict=True)
                ],
                axis=0,
            )
            names = [path.name for path in decoded[batch]]
            scoring.append((time.perf_counter() - begin) / len(names))
            scores |= dict(zip(names, scored.tolist(), strict=True))
    images = WARM_UP * slots
    stages = {
        "decode_s": decoding[images:],
        "prepare_s": preparing[images:],
        "model_s": scoring[WARM_UP:],
    }
    detail = {name: statistics.median(seconds) for name, seconds in stages.items()}
    detail["rate_from_means"] = cores() / sum(
        statistics.fmean(seconds) for seconds in stages.values()
    )
    rate = cores() / sum(detail[name] for name in stages)
    Record(
        scores=scores,
        marks={"imported": imported, "model loaded": loaded},
        rate=rate,
        detail=detail,
    ).print()


LIMIT = Contender(
    "limit",
    "cores ÷ (decode + prepare + model seconds per image), one thread",
    script("benchmarks.contenders.limit"),
    printed,
    environment={"OMP_NUM_THREADS": "1"},
    lacks=without("torch"),
    works=tuple(DETECTORS),
)

if __name__ == "__main__":
    main()
