import pickle
from collections import Counter

import numpy as np
import pytest

from ray_app.archives import in_turn
from ray_app.evaluation.accumulate import BANDS, FileCell, gather, hashed
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.join import index_labels
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.systems import systems_of
from ray_app.metrics.arrays import ScoreHistogram
from tests.evaluation import made
from tests.evaluation.made import made_run, random_rows

VIEWS = ("jpeg-50", "blur-1")


def labelled(folder, columns, truths, but=()):
    return index_labels(open_labels(str(made.labelled(folder, columns, truths, but))))


def told(cells):
    """All that was gathered, in plain values."""
    return {
        "rows": dict(cells.rows),
        "scores": {name: (tally.histogram().values.tolist(), tally.histogram().counts.tolist()) for name, tally in cells.scores.items()},
        "views": {name: (tally.histogram().values.tolist(), tally.histogram().counts.tolist()) for name, tally in cells.views.items()},
        "sample": cells.sample.rows().to_pylist(),
        "mistakes": cells.mistakes.rows(),
        "used": cells.used.tolist(),
        "others": (cells.others, cells.other),
        "predicted": dict(cells.predicted),
    }


def group_of(truth):
    if truth["label"] == "real":
        return EvaluationGroup("real", truth["generator"])
    return EvaluationGroup(truth["kind"] or "whole", truth["generator"])


def test_cells_hold_every_row(tmp_path):
    columns, truths, scores = random_rows(500, views=VIEWS)
    index = labelled(tmp_path, columns, truths, but={3, 77})
    run = made_run(tmp_path / "run", columns, [100, 101, 350])
    cells = gather(run, index, systems_of(run), most=60)
    widths = columns["width"].to_pylist()
    expected, rows = {}, Counter()
    for row, truth in enumerate(truths):
        if row in (3, 77):
            continue
        width = widths[row]
        band = "unknown" if width is None else BANDS[int(np.searchsorted([0.1, 0.5, 1, 4.000001], width * width / 1e6, "right"))]
        cell = FileCell(group_of(truth), columns["format"][row] or "unknown", band)
        rows[cell, columns["status"][row], columns["verdict"][row]] += 1
        for name, values in scores.items():
            if np.isfinite(values[row]):
                expected.setdefault((name, cell), []).append(values[row])
    assert dict(cells.rows) == dict(rows)
    assert cells.joined == 498
    assert (cells.others, cells.other) == (2, str(columns["image_id"][3]))
    assert set(cells.scores) == set(expected)
    for place, values in expected.items():
        found, wanted = cells.scores[place].histogram(), ScoreHistogram.of(values)
        np.testing.assert_array_equal(found.values, wanted.values)
        np.testing.assert_array_equal(found.counts, wanted.counts)
    ids = np.array([one for row, one in enumerate(columns["image_id"]) if row not in (3, 77)])
    assert cells.sample.rows()["image_id"].to_pylist() == ids[np.argsort(hashed(ids))][:60].tolist()


def test_any_cut_gives_the_same(tmp_path):
    columns, truths, _ = random_rows(250, views=VIEWS)
    index = labelled(tmp_path, columns, truths, but={3, 77, 249})
    whole, pieces = made_run(tmp_path / "whole", columns), made_run(tmp_path / "pieces", columns, [1, 70, 71, 200])

    def shipped(function, items):
        """As tasks do it: everything travels as bytes."""
        for item in items:
            yield pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(function))(item)))

    for most in (50, 100_000):
        expected = told(gather(whole, index, systems_of(whole), most=most))
        assert told(gather(pieces, index, systems_of(pieces), most=most)) == expected
        for each in (in_turn, shipped):
            assert told(gather(pieces, index, systems_of(pieces), each=each, most=most)) == expected


def test_mistakes_are_the_worst(tmp_path):
    columns, truths, scores = random_rows(400)
    run = made_run(tmp_path / "run", columns, [50, 200])
    found = gather(run, labelled(tmp_path, columns, truths), systems_of(run)).mistakes.rows()
    fake = np.array([truth["label"] == "fake" for truth in truths])
    score = scores["ensemble"]
    wrong = [row for row in range(400) if np.isfinite(score[row]) and (score[row] >= 0) != fake[row]]
    wrong.sort(key=lambda row: (-abs(score[row]), columns["image_id"][row]))
    assert [row["image_id"] for row in found] == [int(columns["image_id"][row]) for row in wrong[:24]]
    assert found[0]["probability"] == pytest.approx(1 / (1 + np.exp(-score[wrong[0]])))
    assert {row["verdict"] for row in found} <= {"real", "fake"}
