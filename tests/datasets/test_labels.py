import pyarrow as pa
import pytest

from ray_app.datasets.labels import (
    coded,
    describe_spellings,
    drop_missing,
    fakes,
    name_real_generator,
    parse_label,
    prompt_group,
    texts,
)
from ray_app.errors import ConfigError


def table(**columns) -> pa.Table:
    """Each row in a piece of memory of its own."""
    struct = pa.StructArray.from_arrays(
        [pa.array(values, pa.string()) for values in columns.values()], list(columns)
    )
    return pa.Table.from_batches(
        pa.table({"input": struct}).to_batches(max_chunksize=1), pa.schema([("input", struct.type)])
    )


def test_texts_are_numbered_by_their_first_rows():
    codes, names = coded(table(group=["b", None, "a", "b", "", None]), "group")
    assert codes.tolist() == [0, -1, 1, 0, 2, -1]
    assert names == ["b", "a", ""]
    rows = table(label=["real", "fake"])
    codes, names = coded(rows, "generator")
    assert codes.tolist() == [-1] * len(rows)
    assert names == []
    assert texts(rows, "generator").null_count == len(rows)


def test_labels_are_real_or_fake():
    assert fakes(table(label=["fake", "real", "fake"])).tolist() == [True, False, True]
    assert fakes(table(label=[])).tolist() == []
    for others in (["real", "Fake"], ["real", None]):
        with pytest.raises(ConfigError, match="labels must be real or fake"):
            fakes(table(label=others))


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("real", ["real", " REAL ", "0", 0, 0.0, "0.0", "0,0", "0.", False, "false"]),
        ("fake", ["fake", "FAKE", "1", 1, 1.0, "1.0", "1,0", "1.00", True, "True"]),
    ],
)
def test_labels_are_words_numbers_or_truths(label, values):
    assert [parse_label(value, "row 1") for value in values] == [label] * len(values)


@pytest.mark.parametrize(
    "value", [None, "", 2, 0.5, float("nan"), "synthetic", "0.5", "1.01", "10", "1e0", b"fake"]
)
def test_parse_label_has_no_default(value):
    with pytest.raises(ConfigError) as raised:
        parse_label(value, "labels.csv, row 7")
    assert "labels.csv, row 7" in raised.value.message
    assert repr(value) in raised.value.message


MISSING = ["", " ", "nan", "NaN", "None", "none", "NULL", "N/A", "NA", "<NA>", "-"]


def test_missing_words_are_no_names():
    assert drop_missing(pa.array([*MISSING, None, "flux", "nano"])).to_pylist() == [
        *[None] * (len(MISSING) + 1),
        "flux",
        "nano",
    ]
    assert {name_real_generator(word) for word in MISSING} == {"real"}


def test_spellings_of_one_generator_are_named():
    assert describe_spellings(["sd15", "flux", "SD15", "sd-15", "flux", "..", "_"]) == [
        "names that may mean one generator count as different generators: SD15, sd-15, sd15"
    ]
    assert describe_spellings(["sd15", "sd-1.6", "flux", "flux"]) == []


def test_reals_are_never_mistaken_for_a_generator():
    assert [name_real_generator(source) for source in (None, "", "real", "Real", "LAION", "real:LAION")] == [
        "real", "real", "real", "real", "real:LAION", "real:LAION",
    ]  # fmt: skip


def test_one_prompt_is_one_group_however_it_is_written():
    group = prompt_group("A lighthouse in  fog")
    assert group is not None
    assert (
        group == prompt_group(" a Lighthouse\nin fog ") != prompt_group("a lighthouse in the fog")
    )
    assert prompt_group(None) is prompt_group(" \n") is None
