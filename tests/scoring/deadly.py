"""A worker that one block kills, every time, as the system's killer of processes would."""

import os
import signal

from ray_app.scoring.workers import BlockScorer

DEADLY_BLOCK = 1


class DeadlyScorer(BlockScorer):
    def _attempt(self, ref, members):
        attempt = super()._attempt(ref, members)
        return _Dying(attempt) if ref.block == DEADLY_BLOCK else attempt


class _Dying:
    def __init__(self, attempt):
        self.attempt = attempt

    def __enter__(self):
        self.attempt.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    def __exit__(self, *error):
        return self.attempt.__exit__(*error)
