"""How fast a training steps, against the same loop under `torchrun`, on the same work in the same
run.

    python -m benchmarks.training [--quick] [--json FILE]

1024 × 768 JPEG photographs, batches of 16, two recipes: one bound by computing (a ViT-tiny at 224
px), one by its input (the shipped tiny detector, which learns faster than one process decodes).
Ours is `touchstone train`; the peer is the same learner with the same order and loader, with a
torch `DataLoader` over the numbers of the steps, and as many loaders and threads. Each runs in
fresh processes, in each round once, in turns. Rate = slope of steps over time between 15 % and 90 %
of the steps; the time a step waits for its batch is stated for both. Ratios are of medians, ours ÷
theirs. Run it on a quiet machine.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.machine import Steal, machine, versions
from benchmarks.measuring import ContenderError, run_measured
from benchmarks.trainers import TRAINERS
from benchmarks.trainers.trainer import Trainer
from benchmarks.training_figures import (
    SAME_STEPS,
    Measurement,
    complaints,
    figures,
    steady_figures,
    table,
)
from benchmarks.training_work import (
    DETECTORS,
    WORKS,
    TrainingWork,
    write_labelled_photographs,
    write_work,
)
from benchmarks.work import discard

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 1200.0
PACKAGES = ("touchstone", "torch", "torchvision", "ray", "pillow", "timm", "numpy", "pyarrow")
# by --quick
STEPS = {
    True: {"compute_bound": 60, "input_bound": 160},
    False: {"compute_bound": 160, "input_bound": 400},
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    here = machine()
    # so that the trainer under way is ended with us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # short: the paths of Ray's sockets may have 107 characters
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        _say("writing photographs")
        index = write_labelled_photographs(Path(folder))
        steps = {
            name: max(round(STEPS[options.quick][name] * options.scale), SAME_STEPS)
            for name in options.works
        }
        works = [
            write_work(Path(folder), name, index, steps=steps[name], workers=options.workers)
            for name in options.works
        ]
        measured = list(_rounds(works, options.trainers, options.rounds, Path(folder)))
    facts = {
        "machine": here,
        "versions": versions(PACKAGES),
        "works": DETECTORS,
        "quick": options.quick,
        "workers": options.workers,
    }
    result = {**facts, "steps": steps, **figures(measured)}
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
        print(f"\nwritten to {options.json}")
    missing = len(works) * len(options.trainers) * options.rounds - len(measured)
    found = [
        *complaints(result),
        *([f"{missing} measurements are missing, see above"] if missing else []),
    ]
    for complaint in found:
        _say(complaint)
    return 1 if found else 0


def _rounds(
    works: Sequence[TrainingWork], names: Sequence[str], rounds: int, folder: Path
) -> Iterator[Measurement]:
    for number in range(rounds):
        for work in works:
            for name in names if number % 2 == 0 else reversed(names):
                where = f"round {number + 1}/{rounds}  {work.name:<15}{name:<12}"
                try:
                    measurement = measure(TRAINERS[name], work, folder, number)
                # the others are measured all the same; what is missing then shows in the result
                except ContenderError as error:
                    _say(f"{where}failed: {error}")
                    continue
                _say(f"{where}{measurement.rate:8.3f} steps/s")
                yield measurement


def measure(trainer: Trainer, work: TrainingWork, folder: Path, number: int = 0) -> Measurement:
    """Run one trainer once. Raises ContenderError, also where its history is not one line per step."""
    out, steal = folder / "out", Steal()
    out.mkdir()
    try:
        ran = run_measured(
            trainer.command(work, out),
            environment(folder),
            timeout_s=TIMEOUT_S,
            log=folder / f"{trainer.name}.log",
        )
        lines = trainer.history(out)
        return Measurement(
            work.name, trainer.name, number,
            **steady_figures(lines, work.steps),
            startup_s=lines[0]["time"] - ran.started_at,
            total_s=ran.ended_at - ran.started_at,
            peak_memory_bytes=ran.peak_memory_bytes,
            losses=[line["loss"] for line in lines[:SAME_STEPS]],
            steal=steal.share(),
        )  # fmt: skip
    finally:
        discard(out)


def environment(folder: Path) -> dict[str, str]:
    """A plain user's, with nothing about threads in it."""
    ray_folder = folder / "ray"
    ray_folder.mkdir(exist_ok=True)
    # what pip installs is compiled
    left_out = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(ray_folder),
        "HF_HUB_OFFLINE": "1",
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=as_written
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes as well")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of fewer steps, in under 10 minutes on 2 cores",
    )
    parser.add_argument(
        "--rounds", type=int, help="how often each trainer runs  [1 with --quick, else 3]"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that train, on both sides  [1]"
    )
    parser.add_argument(
        "--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="only these"
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="only these")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times as many steps, for trying it out"
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
