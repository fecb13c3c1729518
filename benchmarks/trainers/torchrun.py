"""The same loop under `torchrun`: the same learner, the same order and loader, and a torch
`DataLoader` over the numbers of the steps.

It has as many processes of each kind, as many threads and as many batches ahead as ours, and hands
batches over in shared memory. No checkpoints, no validation, no progress.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.trainers.trainer import Line, Trainer
from benchmarks.training_work import TrainingWork

HISTORY = "history.jsonl"
# batches that each loader prepares in advance: torch's own default, and what ours gives one
AHEAD = 2


def command(work: TrainingWork, out: Path) -> list[str]:
    """`torchrun` on this machine alone, on a free port."""
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(work.workers),
    ]
    return [*run, "-m", "benchmarks.trainers.torchrun", str(work.config), str(out)]


def history(out: Path) -> Sequence[Line]:
    """The lines that rank 0 wrote at its end."""
    return [json.loads(line) for line in (out / HISTORY).read_text().splitlines()]


class Steps:
    """A torch dataset whose items are whole batches; what a batch needs is opened in the process
    that loads it.
    """

    def __init__(
        self, config: Any, rows: Any, order: Any, rank: int, world: int, steps: int
    ) -> None:
        self._given, self._order, self._rank, self._world, self._steps = (
            (config, rows),
            order,
            rank,
            world,
            steps,
        )
        self._loader: Any = None

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        import torch

        if self._loader is None:
            self._loader = _loader(*self._given)
        batch = self._loader.load_steps(self._order, [step], self._rank, self._world)
        return {
            name: torch.from_numpy(values) if values.dtype.kind in "biuf" else values
            for name, values in batch.items()
        }


def _loader(config: Any, rows: Any) -> Any:
    from ray_app.training.loader import BatchLoader
    from ray_app.training.networks import training_card
    from ray_app.transforms.policy import make_policy

    preprocessing = training_card(config).preprocessing
    policy = make_policy(config.augmentation, side=preprocessing.shape[0])
    return BatchLoader(
        rows, preprocessing, policy=policy, seed=config.loop.seed, limits=config.limits
    )


def _batches(dataset: Steps, loaders: int, pin: bool) -> Iterator[dict[str, Any]]:
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, batch_size=None, num_workers=loaders, prefetch_factor=AHEAD, pin_memory=pin, collate_fn=_as_it_is,
                        multiprocessing_context="spawn")  # fmt: skip
    for batch in loader:
        yield {
            name: values.numpy() if hasattr(values, "numpy") else values
            for name, values in batch.items()
        }


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def main() -> None:
    import torch
    import torch.distributed as dist

    from benchmarks.work import cores
    from ray_app.config import load_yaml
    from ray_app.storage import Store
    from ray_app.training.config import TrainConfig
    from ray_app.training.detector import DetectorLearner
    from ray_app.training.job import plan_workers
    from ray_app.training.networks import training_card
    from ray_app.training.run import prepare_data

    config, out = load_yaml(Path(sys.argv[1]), TrainConfig), Path(sys.argv[2])
    rank, world, gpus = (
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
        torch.cuda.device_count(),
    )
    device = f"cuda:{rank}" if gpus else "cpu"
    layout = plan_workers(config.workers, cpus=float(cores()), gpus=float(gpus))
    dist.init_process_group("nccl" if gpus else "gloo")
    if not gpus:
        torch.set_num_threads(layout.threads)
    prepared = prepare_data(config, Store.open(str(out / str(rank))))
    learner = DetectorLearner(
        config, training_card(config), device=device, total_steps=prepared.total_steps, rank=rank
    )
    dataset = Steps(
        config, prepared.splits.train, prepared.order, rank, world, prepared.total_steps
    )
    lines = []
    clock = time.monotonic()
    for batch in _batches(dataset, layout.loaders, pin=bool(gpus)):
        waited, clock = time.monotonic() - clock, time.monotonic()
        figures = learner.step(batch)
        seconds, clock = time.monotonic() - clock, time.monotonic()
        lines.append(
            {
                "step": figures.step,
                "loss": figures.loss,
                "wait_s": waited,
                "compute_s": seconds,
                "time": time.time(),
            }
        )
    if rank == 0:
        (out / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in lines))
    dist.destroy_process_group()


TORCHRUN = Trainer("torchrun", "torchrun and a torch DataLoader", command, history)

if __name__ == "__main__":
    main()
