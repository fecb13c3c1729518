import pyarrow as pa
import pytest

from ray_app.datasets.columns import coded, fakes, texts
from ray_app.errors import ConfigError


def table(**columns) -> pa.Table:
    """Each row in a piece of memory of its own."""
    struct = pa.StructArray.from_arrays([pa.array(values, pa.string()) for values in columns.values()], list(columns))
    return pa.Table.from_batches(pa.table({"input": struct}).to_batches(max_chunksize=1), pa.schema([("input", struct.type)]))


def test_texts_of_a_table_in_pieces_are_numbered_by_their_first_rows():
    codes, names = coded(table(group=["b", None, "a", "b", "", None]), "group")
    assert codes.tolist() == [0, -1, 1, 0, 2, -1]
    assert names == ["b", "a", ""]


@pytest.mark.parametrize("rows", [table(label=["real", "fake"]), table(label=[]), table(group=[])])
def test_a_field_that_is_not_there_is_null_everywhere(rows):
    codes, names = coded(rows, "generator")
    assert codes.tolist() == [-1] * len(rows)
    assert names == []
    assert texts(rows, "generator").null_count == len(rows)


def test_labels_are_real_or_fake():
    assert fakes(table(label=["fake", "real", "fake"])).tolist() == [True, False, True]
    assert fakes(table(label=[])).tolist() == []
    for others in (["real", "Fake"], ["real", None]):
        with pytest.raises(ConfigError, match="labels are real or fake"):
            fakes(table(label=others))
