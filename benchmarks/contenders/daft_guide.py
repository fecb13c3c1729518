"""Daft's own way to run a model over image files: `download`, then a class with the model whose
method takes batches, one per core.

The detector is ours by the same code, in bf16 in static slots, so that the network is equal.
Decoding is ours too, in that method: scores from what Daft 0.7.26's `decode_image` gives differ by
up to 0.16 × max(1, |score|) on these photographs, more than two contenders may. It runs in an
environment of its own, since Daft wants an older pyarrow than ours.
"""

import time
from collections import Counter
from pathlib import Path

from benchmarks.contenders.contender import Contender, InEnvironment, Record, arguments, printed
from benchmarks.environments import Environment
from benchmarks.measuring import cumulative
from benchmarks.work import Work, cores

BATCH = 16
ENVIRONMENT = Environment("daft", ("daft==0.7.26",))


def main() -> None:
    import daft
    import numpy as np
    import torch
    from daft import DataType, col
    from daft.functions import download

    from benchmarks.contenders.detectors import load_all
    from ray_app.images import ImageLimits, decode_image

    work, count, _ = arguments()
    imported = time.time()
    said = DataType.struct({"score": DataType.float64(), "finished_at": DataType.float64()})

    @daft.cls(max_concurrency=cores())
    class Model:
        def __init__(self, work: Work) -> None:
            torch.set_num_threads(1)
            self.detectors, self.limits = load_all(work), ImageLimits()

        @daft.method.batch(return_dtype=said, batch_size=BATCH)
        def score(self, files: daft.Series) -> list[dict[str, float]]:
            scores: list[float] = []
            data, slots = files.to_pylist(), self.detectors[0].slots
            for start in range(0, len(data), slots):
                images = [
                    decode_image(one, self.limits).pixels for one in data[start : start + slots]
                ]
                columns = []
                for detector in self.detectors:
                    prepared = [detector.prepare(image) for image in images]
                    empty = [np.zeros_like(prepared[0])] * (slots - len(prepared))
                    columns.append(detector.score(np.stack(prepared + empty))[: len(prepared)])
                scores += np.mean(columns, axis=0).tolist()
            finished_at = time.time()
            return [{"score": score, "finished_at": finished_at} for score in scores]

    photographs = daft.from_pydict({"path": [str(path) for path in work.files(count)]})
    predictions = photographs.select("path", Model(work).score(download(col("path"))).alias("said"))
    batches: Counter[float] = Counter()
    scores = {}
    for row in predictions.iter_rows():
        batches[row["said"]["finished_at"]] += 1
        scores[Path(row["path"]).name] = row["said"]["score"]
    Record(cumulative(list(batches.items())), scores, {"imported": imported}).print()


_APART = InEnvironment(ENVIRONMENT, "benchmarks.contenders.daft_guide")
DAFT_GUIDE = Contender(
    "daft_guide",
    "Daft: download, then a class with the detector, one per core",
    _APART.command,
    printed,
    lacks=_APART.lacks,
    works=("decode_bound", "default_ensemble", "compute_bound", "clip_bound"),
)

if __name__ == "__main__":
    main()
