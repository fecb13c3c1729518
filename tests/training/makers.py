"""Pictures of eight simulated generators, a recipe that tells six of them apart, and a training of
it without Ray.
"""

import time

import numpy as np

from ray_app.config import validate
from ray_app.detectors import load_detector
from ray_app.storage import Store
from ray_app.training.config import TrainConfig
from ray_app.training.embeddings import embed, store_block
from ray_app.training.identify import select_rows, write_identifier
from ray_app.training.networks import training_card
from ray_app.training.run import prepare_data

HELD_OUT = ("shuffle/a", "bicubic/a")
KNOWN = ("bilinear/a", "nearest/a", "nearest/b", "sinc/a", "transposed/a", "transposed/b")


def config(labels, out=None, *, identify=None, **changes):
    """The recipe as `touchstone train` reads it; `identify` adds to its section."""
    told = {
        "name": "makers",
        "detector": "touchstone-tiny",
        "method": "identify",
        "identify": {"held_out": HELD_OUT, **(identify or {})},
        "data": {
            "train": [{"at": f"list::{labels}"}],
            "validation": {"groups": 0.3},
            "test": {"groups": 0.3},
            "licence": "CC0-1.0",
        },
        "loop": {"batch": 32, "epochs": 1},
        "cluster": {"cpus": 2},
        **({"out": str(out)} if out else {}),
        **changes,
    }
    return validate(told, TrainConfig, where="test")


def trained_here(given):
    """What `touchstone train` does, in this process: the content of metrics.json. Blocks that are
    there are not made again.
    """
    from ray_app.training.loader import BatchLoader

    began, out, card = time.monotonic(), Store.open(given.out), training_card(given)
    splits = prepare_data(given, out).splits
    wanted = select_rows(
        given, {"train": splits.train, "validation": splits.validation, "test": splits.test}
    )
    detector = load_detector(card)
    detector.keep_embeddings()
    for split, rows in wanted.rows.items():
        loader = BatchLoader(wanted.tables[split], card.preprocessing, policy=None, seed=0)
        for first in range(0, len(rows), given.loop.batch):
            if f"{first:08d}.npz" not in out.names(f"features/{split}"):
                store_block(
                    out,
                    split,
                    first,
                    embed(detector, loader, np.array(rows[first : first + given.loop.batch])),
                )
    return write_identifier(
        given, card, out, wanted, {"environment": {}, "data": splits.findings}, began
    )
