"""Runs with labels of their own, planted mistakes and planted shortcuts: what the tests of label audits read."""

import numpy as np
import pyarrow as pa

from benchmarks.evaluation import struct_of, write_run
from ray_app.datasets.labels import INPUT

DETECTORS = ("a", "b")


def planted_run(folder, count=2000, *, flipped=0.05, shortcut=False, apart=3.0, seed=0):
    """(run, flips): half fakes by three generators, two images a group, whose scores are `apart` standard deviations apart; a share
    `flipped` of labels is wrong. `shortcut`: fakes are PNG.
    """
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.5
    flips = rng.random(count) < flipped
    label = truth ^ flips
    makers = np.where(label, np.array(["flux", "sd-3", "dalle"])[rng.integers(0, 3, count)], "real")
    form = np.where(truth if shortcut else rng.random(count) < 0.5, "PNG", "JPEG")
    side = rng.choice([512, 768, 1024], count)
    inputs = [{"label": "fake" if fake else "real", "generator": str(maker), "group": f"g{number // 2}"}
              for number, (fake, maker) in enumerate(zip(label, makers, strict=True))]  # fmt: skip
    scores = {name: (np.where(truth, 0.5, -0.5) * apart + rng.normal(0, 1, count)).astype(np.float32) for name in DETECTORS}
    columns = {
        "image_id": rng.permutation(count).astype(np.int64) + 1,
        "uri": [f"/data/{number:06d}.img" for number in range(count)],
        "status": ["ok"] * count,
        "sha256": [f"{number:064x}" for number in range(count)],
        "format": form.tolist(),
        "width": side.astype(np.int32),
        "height": rng.permutation(side).astype(np.int32),
        "mode": ["RGB"] * count,
        "quality": np.where(form == "JPEG", rng.integers(70, 95, count), None).tolist(),
        "scores": struct_of(scores),
        "input": pa.array([{name: one.get(name) for name in INPUT.names} for one in inputs], INPUT),
    }
    run = write_run(folder, [columns], DETECTORS, input=INPUT)
    return run, columns["image_id"][flips]


def truth_of(document_ids, flips):
    """(precision, recall) of a list of ids against the planted ones."""
    found = np.isin(document_ids, flips)
    return float(found.mean()) if len(found) else 0.0, float(found.sum() / len(flips))
