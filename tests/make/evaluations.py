"""Runs of random rows with awkward cases, and the truth of each row, for tests of evaluation."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa

from benchmarks.evaluation import struct_of, write_run
from ray_app.ensembles import sigmoid
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.protocols import load_protocol
from ray_app.evaluation.run import labels_for, measure
from ray_app.reports.evaluation.result import TABLE
from ray_app.runs import RunDirectory
from ray_app.storage import Store

MAKERS = ("flux", "sd-3", "real", "real:camera", "inpainter")


def random_rows(count, seed=0, views=(), failing=0.1):
    """Rows of a run, columns by name, with ties in their scores, failed images and scores that are
    missing; and truths of all of them.
    """
    rng = np.random.default_rng(seed)
    maker = rng.integers(0, len(MAKERS), count)
    fake = ~np.isin(maker, (2, 3))
    ok = rng.random(count) >= failing
    scores = {}
    for name, gap, digits in (("a", 0.0, 1), ("b", 0.05, 3)):
        there = ok & (rng.random(count) > gap)
        drawn = np.round(rng.normal(np.where(fake, 1, -1), 1.5), digits)
        scores[name] = np.where(there, drawn, np.nan).astype(np.float32)
    mean = np.mean([column.astype(np.float64) for column in scores.values()], axis=0)
    verdict = np.where(np.isnan(mean), "abstain", np.where(mean >= 0, "fake", "real"))
    widths = rng.choice([200, 400, 900, 1500, 4000], count)
    ids = np.unique(rng.integers(-(2**62), 2**62, count + 10))[:count]
    rng.shuffle(ids)
    columns = {
        "image_id": ids,
        "uri": [f"/data/{number:06d}.jpg" for number in range(count)],
        "member": [None if number % 7 else f"{number}.png" for number in range(count)],
        "occurrence": [0] * count,
        "status": np.where(
            ok, "ok", np.where(rng.random(count) < 0.5, "corrupt_image", "empty_file")
        ).tolist(),
        "sha256": [f"{number:064x}" if good else None for number, good in enumerate(ok)],
        "format": [str(rng.choice(["JPEG", "PNG"])) if good else None for good in ok],
        "width": pa.array(widths.astype(np.int32), mask=~ok),
        "height": pa.array(widths.astype(np.int32), mask=~ok),
        "scores": struct_of(scores),
        "score": pa.array(mean, mask=np.isnan(mean)),
        "probability": pa.array(sigmoid(mean), mask=np.isnan(mean)),
        "verdict": [str(one) if good else None for one, good in zip(verdict, ok, strict=True)],
    }
    if views:
        shifts = (np.float32(0.25 * place) for place in range(len(views)))
        seen = [{name: column - shift for name, column in scores.items()} for shift in shifts]
        columns["views"] = pa.StructArray.from_arrays(map(struct_of, seen), list(views))
    truths = [{"label": "fake" if fake[row] else "real", "generator": MAKERS[maker[row]],
               "kind": "local" if MAKERS[maker[row]] == "inpainter" else None} for row in range(count)]  # fmt: skip
    return columns, truths, scores | {"ensemble": mean}


def labelled(folder, columns, truths, but=(), **more):
    """A file of labels by image_id, of all rows but those at some places; returns its path."""
    rows = [
        {"image_id": int(image_id)} | truth | more
        for place, (image_id, truth) in enumerate(zip(columns["image_id"], truths, strict=True))
        if place not in but
    ]
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def cut(columns, places):
    """The same rows as several tables, cut at these places."""
    table = pa.table(columns)
    for start, end in pairwise([0, *sorted(places), len(table)]):
        part = table.slice(start, end - start)
        yield {name: part[name].combine_chunks() for name in part.column_names}


def made_run(folder, columns, places=(), **more):
    """A finished run of such rows, in a file for each piece."""
    fields = {"views": columns["views"].type} if "views" in columns else {}
    return write_run(folder, cut(columns, places), ("a", "b"), **more, **fields)


def measured(folder, run=None, **settings):
    """The result of a run, by default `folder`/run; its files are not written."""
    config = EvaluateConfig(at=(run or str(folder / "run"),), thumbnails=False, **settings)
    protocol = load_protocol(config.protocol) if config.protocol else None
    opened = RunDirectory.open(config.at[0])
    with labels_for(config, protocol, opened, Store.open(str(folder))) as labels:
        return measure(config, protocol, opened, labels)


def cells_of(result, system="a"):
    """The cells of a system in the protocol's table, by row."""
    cells = result.metrics.select(system, scope=TABLE)
    return {row.name: cells[row.name] for row in result.meta.table}


def footers_of(result, system="a"):
    """The footers of a system under the protocol's table, by name."""
    cells = result.metrics.select(system, scope=TABLE)
    return {name: cells[name] for name in result.meta.footers}
