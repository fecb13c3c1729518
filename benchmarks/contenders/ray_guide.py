"""The pipeline of Ray Data's own batch-inference guide for images, on CPUs.

`read_images` → `map` with torchvision transforms, row by row, keeping the original → `map_batches`
with the model in an actor pool, which hands the original on → the original is dropped. Where the
guide's requests of a whole CPU for each stage would wait for each other for ever on two cores, they
are made small; everything else is as it stands there.
"""

import os
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.contenders.contender import Contender, Record, arguments, printed, script, without
from benchmarks.measuring import cumulative
from benchmarks.work import cores

BATCH = 32
TASK_CPUS, ACTOR_CPUS = 0.5, 0.4  # as many readers and models as there are cores, and room for both
STORE_BYTES = 2 * 2**30  # as large as this pipeline needs: a smaller one spills


def main() -> None:
    import ray
    import ray.data
    import torch
    from ray.data import ActorPoolStrategy

    from benchmarks.contenders.as_people_write import array_transform, log_odds, plain_model
    from ray_app.detectors import load_card

    work, count, _ = arguments()
    card = load_card(work.card)
    transform = array_transform(card.preprocessing)
    imported = time.time()
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        logging_level="ERROR",
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    up = time.time()

    def preprocess_image(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "path": row["path"],
            "original_image": row["image"],
            "transformed_image": transform(row["image"]).numpy(),
        }

    class Model:
        def __init__(self) -> None:
            self.model = plain_model(card)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with torch.inference_mode():
                scores = log_odds(card, self.model(torch.from_numpy(batch["transformed_image"])))
            return {
                "path": batch["path"],
                "score": scores,
                "finished_at": [time.time()] * len(scores),
                "original_image": batch["original_image"],
            }

    paths = [str(path) for path in work.files(count)]
    photographs = ray.data.read_images(
        paths, mode="RGB", include_paths=True, ray_remote_args={"num_cpus": TASK_CPUS}
    )
    predictions = photographs.map(preprocess_image, num_cpus=TASK_CPUS).map_batches(
        Model, compute=ActorPoolStrategy(size=cores()), num_cpus=ACTOR_CPUS, batch_size=BATCH
    )
    batches: Counter[float] = Counter()
    scores = {}
    for batch in predictions.drop_columns(["original_image"]).iter_batches(batch_size=None):
        batches.update(batch["finished_at"].tolist())
        scores |= {
            Path(path).name: float(score)
            for path, score in zip(batch["path"], batch["score"], strict=True)
        }
    Record(cumulative(list(batches.items())), scores, {"imported": imported, "ray up": up}).print()
    ray.shutdown()


RAY_GUIDE = Contender(
    "ray_guide",
    "the pipeline of Ray Data's batch-inference guide for images",
    script("benchmarks.contenders.ray_guide"),
    printed,
    needs_ray=True,
    lacks=without("ray", "torch", "torchvision"),
)

if __name__ == "__main__":
    # as ours: no port obeys a stranger, no file is left
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    main()
