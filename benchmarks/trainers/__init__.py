"""The trainers, one module each. Each runs in fresh processes."""

from benchmarks.trainers import torchrun, touchstone
from benchmarks.trainers.trainer import Trainer

TRAINERS: dict[str, Trainer] = {
    trainer.name: trainer for trainer in (touchstone.TOUCHSTONE, torchrun.TORCHRUN)
}

__all__ = ["TRAINERS", "Trainer"]
