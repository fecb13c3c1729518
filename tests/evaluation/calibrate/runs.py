"""Runs of drawn images and the labels of them: what the tests of reading and of the whole command
start from.
"""

import csv

import numpy as np
import pyarrow as pa

from benchmarks.evaluation import struct_of, write_run


def rows_of(labelled, **changed):
    """Columns of result rows of labelled images, all of them scored."""
    n = len(labelled)
    mean = np.mean([column.astype(np.float64) for column in labelled.scores.values()], axis=0)
    columns = {
        "image_id": labelled.image_id,
        "uri": [f"/data/{number:06d}.jpg" for number in range(n)],
        "occurrence": [0] * n,
        "status": ["ok"] * n,
        "sha256": labelled.sha256,
        "format": ["JPEG"] * n,
        "width": labelled.width.astype(np.int32),
        "height": labelled.height.astype(np.int32),
        "decoder": ["a decoder"] * n,
        "quality": pa.array(
            np.nan_to_num(labelled.quality).astype(np.int8), mask=np.isnan(labelled.quality)
        ),
        "scores": struct_of(labelled.scores),
        "score": mean,
        "verdict": np.where(mean >= 0, "fake", "real").tolist(),
    }
    return columns | changed


def run_of(folder, labelled, ensemble=None, **changed):
    """A finished run of them at a folder; returns its URL."""
    fields = {"input": changed["input"].type} if "input" in changed else {}
    return write_run(
        folder, [rows_of(labelled, **changed)], list(labelled.scores), ensemble, **fields
    ).store.url


def labels_of(path, labelled, **more):
    """A file of labels, keyed by image_id; returns its path."""
    classes = ["fake" if fake else "real" for fake in labelled.fake]
    columns = [labelled.image_id, classes, labelled.generator, *more.values()]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "label", "generator", *more])
        writer.writerows(zip(*columns, strict=True))
    return str(path)
