"""Scores of recompressed views survive the way into a column of rows and back."""

import numpy as np
import pyarrow as pa

from ray_app.runs.schema import STABILITY, row_schema
from ray_app.runs.stability import stability_column, stability_views

KIND = row_schema(["a", "b"], stability=True).field(STABILITY).type
NAN = np.nan


def view(a, b):
    return {"a": np.array(a, np.float32), "b": np.array(b, np.float32)}


def test_there_and_back():
    views = [view([1, NAN, NAN, 4], [5, NAN, NAN, NAN]), view([2, NAN, NAN, NAN], [6, NAN, NAN, 3])]
    column = stability_column(views, KIND, np.array([True, True, False, True]))
    assert column.to_pylist() == [[{"a": 1, "b": 5}, {"a": 2, "b": 6}], None, None, [{"a": 4, "b": None}, {"a": None, "b": 3}]]
    back = stability_views(pa.chunked_array([column.slice(0, 1), column.slice(1)]), ["b", "a"])
    assert [list(one) for one in back] == [["b", "a"]] * 2
    for before, after in zip(views, back, strict=True):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])


def test_a_row_without_a_score_has_no_views_and_nobody_asked_means_none():
    views = [view([1, 2], [3, 4])]
    assert stability_column(views, KIND, np.array([False, True])).to_pylist() == [None, [{"a": 2, "b": 4}]]
    nothing = stability_column([view([NAN, NAN], [NAN, NAN])], KIND, np.array([True, True]))
    assert nothing.to_pylist() == [None, None]
    assert stability_views(pa.chunked_array([nothing]), ["a"]) == []
    assert stability_views(pa.chunked_array([], KIND), ["a"]) == []
