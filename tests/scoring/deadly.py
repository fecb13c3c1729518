"""A worker that one block kills, every time, as the system's killer of processes would."""

import os
import signal

from ray_app.scoring.pipelines import FusedPipeline
from ray_app.scoring.workers import BlockScorer

DEADLY_BLOCK = 1


class DeadlyScorer(BlockScorer):
    def work(self, message):
        with self._attempts.of(message, "the first"):
            if message.block == DEADLY_BLOCK:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().work(message)


class DeadlyPipeline(FusedPipeline):
    scorer = DeadlyScorer
