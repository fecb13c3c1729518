"""`touchstone` that kills itself at the nth call of a function, before it does anything.

python -m tests.training.killed_at ray_app.training.learner:Learner.step 30 train RECIPE --out DIR
"""

import os
import signal
import sys
from importlib import import_module


def kill_at(place, count):
    """Replace a function, `MODULE:NAME` or `MODULE:CLASS.NAME`."""
    module, _, path = place.partition(":")
    owner, (*within, name) = import_module(module), path.split(".")
    for one in within:
        owner = getattr(owner, one)
    original, calls = getattr(owner, name), []

    def counted(*given, **named):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(owner, name, counted)


if __name__ == "__main__":
    kill_at(sys.argv[1], int(sys.argv[2]))
    from ray_app.cli.__main__ import script

    script(sys.argv[3:])
