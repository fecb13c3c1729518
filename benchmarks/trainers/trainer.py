"""What a trainer is to the harness: a command to start, and the lines that it leaves, one per step.
Knows nothing about torch or Ray.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.training_work import TrainingWork

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Trainer:
    """`command(work, out)` trains and may write below `out`; `history(out)` reads what rank 0 noted
    of each step, in order.

    A line has `step`, `time` (epoch seconds at its end), `wait_s` (for its batch), `compute_s` and
    `loss`.
    """

    name: str
    says: str
    command: Callable[[TrainingWork, Path], list[str]]
    history: Callable[[Path], Sequence[Line]]
