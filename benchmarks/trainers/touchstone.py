"""Ours: the `touchstone train` command as any user starts it, and the history that it leaves."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.trainers.trainer import Line, Trainer
from benchmarks.training_work import TrainingWork


def command(work: TrainingWork, out: Path) -> list[str]:
    """Every setting at its default."""
    return [
        str(Path(sys.executable).with_name("touchstone")),
        "train",
        str(work.config),
        "--out",
        str(out),
    ]


def history(out: Path) -> Sequence[Line]:
    """The lines of all history files."""
    from ray_app.storage import Store
    from ray_app.training.run_directory import HISTORY, read_history

    return list(read_history(Store.open(str(out)), HISTORY))


TOUCHSTONE = Trainer("touchstone", "touchstone train", command, history)
