"""Many labelled pictures, cheap to make: simulated photographs and their repainted twins, each pair after several histories."""

import csv
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from ray_app.datasets.simulation.camera import draw_history
from ray_app.datasets.simulation.decoders import DECODERS
from ray_app.datasets.simulation.pairs import Split, make_pair

# No learned decoder, which would have to be trained first; scenes and cameras that `touchstone-tiny` was not trained on.
SHOWN = Split(
    scenes=("strokes", "pebbles", "hills", "foliage"),
    cameras=("tablet", "rangefinder", "mirrorless", "camcorder"),
    decoders=("nearest", "bilinear", "transposed4", "shuffle", "bicubic", "transposed5", "sinc"),
)
SIDE = 320
HISTORIES = 5


def write_labelled(folder, pairs, *, seed):
    """`pairs` × 10 files below `folder` by two processes, and `labels.csv` beside it; returns that file."""
    folder.mkdir(parents=True, exist_ok=True)
    # A fork would have the locks of threads that this process started for other tests, and nobody who opens them.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = list(chain.from_iterable(pool.map(partial(_write_pair, folder, seed), range(pairs), chunksize=8)))
    labels = folder.with_name(f"{folder.name}-labels.csv")
    with labels.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["uri", "label", "generator", "source"])
        writer.writerows(rows)
    return labels


def _write_pair(folder: Path, seed: int, number: int):
    rng = np.random.default_rng([seed, number])
    pair = make_pair(SHOWN, DECODERS, rng, SIDE + 40, SIDE + 40)
    rows = []
    for history in range(HISTORIES):
        drawn = draw_history(rng, SIDE + 40, SIDE + 40, target=(SIDE, SIDE))
        for label, data in zip(("real", "fake"), pair.encode(drawn), strict=True):
            path = folder / f"{number:05d}-{history}-{label}.{drawn.last.format.lower()}"
            path.write_bytes(data)
            rows.append((str(path), label, pair.decoder if label == "fake" else None, f"scene-{seed}-{number}"))
    return rows
