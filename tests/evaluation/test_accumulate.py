"""What is counted of labelled rows, against plain counting; and the same however a run is cut, and
in tasks.
"""

import contextlib
import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest

from ray_app.archives import map_serial
from ray_app.datasets.label_reader import open_labels
from ray_app.evaluation.accumulate import (
    BANDS,
    COLUMNS,
    MODULUS,
    FileCell,
    compute_digest,
    count_rows,
    hash_ids,
)
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.join import read_labels
from ray_app.evaluation.systems import list_systems
from tests.make import evaluations as made
from tests.make.evaluations import made_run, random_rows

VIEWS = ("jpeg-50", "blur-1")


@pytest.fixture
def gather(tmp_path):
    """Labels of all rows but some, joined with a run, and the cells that were counted."""
    with contextlib.ExitStack() as stack:

        def gathered(run, columns, truths, but=(), each=None, **more):
            path = made.labelled(tmp_path, columns, truths, but)
            labels = stack.enter_context(read_labels(open_labels(str(path))))
            systems = list_systems(run)
            rows = labels.join(run, COLUMNS, systems=systems, map_fn=each)
            return labels, count_rows(rows, systems, **more)

        yield gathered


def by_cell(cells, column):
    """The scores of each cell, in ascending order."""
    found = {}
    for score, code in zip(column.scores.tolist(), column.cells.tolist(), strict=True):
        found.setdefault(cells.cells[code], []).append(score)
    return {cell: sorted(scores) for cell, scores in found.items()}


def told(labels, cells):
    """All that was gathered, in plain values."""

    return {
        "rows": dict(cells.rows),
        "scores": {name: by_cell(cells, cells.scores(name)) for name in ("ensemble", "a", "b")},
        "views": {
            (name, view): by_cell(cells, one)
            for name in ("ensemble", "a", "b")
            for view, one in cells.views(name)
        },
        "sample": cells.sample.to_pylist(),
        "mistakes": cells.mistakes,
        "others": (labels.others, labels.other, labels.unused),
        "predicted": cells.predicted,
        "digest": cells.digest,
    }


def group_of(truth):
    if truth["label"] == "real":
        return EvaluationGroup("real", truth["generator"])
    return EvaluationGroup(truth["kind"] or "whole", truth["generator"])


def test_cells_hold_every_row(tmp_path, gather):
    columns, truths, scores = random_rows(500, views=VIEWS)
    run = made_run(tmp_path / "run", columns, [100, 101, 350])
    labels, cells = gather(run, columns, truths, {3, 77}, max_sample=60)
    widths = columns["width"].to_pylist()
    expected, rows = {}, Counter()
    for row, truth in enumerate(truths):
        if row in (3, 77):
            continue
        width = widths[row]
        size = np.searchsorted([0.1, 0.5, 1, 4.000001], (width or 0) ** 2 / 1e6, "right")
        band = "unknown" if width is None else BANDS[int(size)]
        cell = FileCell(group_of(truth), columns["format"][row] or "unknown", band)
        rows[cell, columns["status"][row], columns["verdict"][row]] += 1
        for name, values in scores.items():
            if np.isfinite(values[row]):
                expected.setdefault((name, cell), []).append(values[row])
    assert dict(cells.rows) == dict(rows)
    assert cells.joined == 498
    assert (labels.others, labels.other) == (2, str(columns["image_id"][3]))
    for name in scores:
        mine = {cell: sorted(some) for (of, cell), some in expected.items() if of == name}
        assert by_cell(cells, cells.scores(name)) == mine
    ids = np.array([one for row, one in enumerate(columns["image_id"]) if row not in (3, 77)])
    assert cells.sample["image_id"].to_pylist() == ids[np.argsort(hash_ids(ids))][:60].tolist()


def test_cut_and_tasks_do_not_change_what_is_gathered(tmp_path, gather):
    columns, truths, _ = random_rows(250, views=VIEWS)
    whole = made_run(tmp_path / "whole", columns)
    pieces = made_run(tmp_path / "pieces", columns, [1, 70, 71, 200])

    def shipped(function, items):
        """As tasks do it: everything travels as bytes."""
        for item in items:
            yield pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(function))(item)))

    for most in (50, 100_000):
        expected = told(*gather(whole, columns, truths, {3, 77, 249}, max_sample=most))
        assert list(expected["views"]) == [*product(("ensemble", "a", "b"), VIEWS)]
        for each in (None, map_serial, shipped):
            assert (
                told(*gather(pieces, columns, truths, {3, 77, 249}, each, max_sample=most))
                == expected
            )


def test_mistakes_are_the_worst(tmp_path, gather):
    columns, truths, scores = random_rows(400)
    found = gather(made_run(tmp_path / "run", columns, [50, 200]), columns, truths)[1].mistakes
    fake = np.array([truth["label"] == "fake" for truth in truths])
    score = scores["ensemble"]
    wrong = np.flatnonzero(np.isfinite(score) & ((score >= 0) != fake)).tolist()
    wrong.sort(key=lambda row: (-abs(score[row]), columns["image_id"][row]))
    ids = [int(columns["image_id"][row]) for row in wrong[:24]]
    assert [row["image_id"] for row in found] == ids
    assert found[0]["probability"] == pytest.approx(1 / (1 + np.exp(-score[wrong[0]])))
    assert {row["verdict"] for row in found} <= {"real", "fake"}


def test_the_digest_is_of_a_set():
    rng = np.random.default_rng(1)
    ids, fake = rng.integers(-(2**63), 2**63 - 1, 1000), rng.random(1000) < 0.5
    turn = rng.permutation(1000)
    whole = compute_digest(ids, fake)
    assert compute_digest(ids[turn], fake[turn]) == whole
    assert (
        compute_digest(ids[:300], fake[:300]) + compute_digest(ids[300:], fake[300:])
    ) % MODULUS == whole
    assert compute_digest(ids[:0], fake[:0]) == 0
    # The first output of SplitMix64 for the seed 1234567 is published with the reference
    # implementation.
    assert compute_digest(np.array([1234567]), np.array([True])) == 6457827717110365317
