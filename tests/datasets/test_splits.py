import json
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.datasets import splitter
from ray_app.datasets.config import Data, DatasetSource, HeldOut
from ray_app.datasets.splits import Splits, make_splits
from ray_app.errors import ConfigError
from tests.make.datasets import labelled

TRAIN, VALIDATION, TEST = ((DatasetSource(at=name),) for name in ("train", "validation", "test"))


def prompts(count: int, *generators: str, first: int = 0) -> list[dict]:
    """Rows of `count` prompts, each with a real and a fake of each generator."""
    return [
        {"label": "real" if name == "real" else "fake", "generator": name}
        | {"group": f"p{number}", "uri": f"/{first + number}/{name}"}
        for number in range(count)
        for name in ("real", *generators)
    ]


def alone(count: int, *generators: str) -> list[dict]:
    """So many rows of each, without groups."""
    return [row | {"group": None} for row in prompts(count, *generators)]


def split(data: Data, **tables: list[dict]) -> Splits:
    return make_splits(data, lambda source: labelled(tables[source.at[0]]))


def column(table: pa.Table, name: str) -> list:
    return pc.struct_field(table["input"], name).to_pylist()


def ids(table: pa.Table) -> set[int]:
    return set(table["image_id"].to_pylist())


def generators(table: pa.Table) -> set[str]:
    return set(column(table, "generator"))


def test_a_share_of_groups_is_held_out_whole():
    data = Data(train=TRAIN, validation=HeldOut(groups=0.1), test=HeldOut(groups=0.2))
    splits = split(data, train=prompts(500, "a", "b"))
    tables = (splits.train, splits.validation, splits.test)
    assert [len(table) / 1500 for table in tables] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    for one, other in combinations(tables, 2):
        assert not set(column(one, "group")) & set(column(other, "group"))
    assert len(splits.set_aside) == 0


def test_a_group_stays_where_it_is_when_others_come():
    data = Data(train=TRAIN, validation=HeldOut(groups=0.2))
    few, many = (split(data, train=prompts(count, "a")) for count in (100, 300))
    assert ids(few.validation) == ids(many.validation) & (ids(few.train) | ids(few.validation))


def test_held_out_shares_hold_in_a_part_of_a_divided_index():
    rows = prompts(2_000, "a")
    in_train = splitter.split(splitter.group_keys(labelled(rows)), None, (0.6, 0.2, 0.2)) == 0
    part = [row for row, is_in in zip(rows, in_train, strict=True) if is_in]
    data = Data(train=TRAIN, validation=HeldOut(groups=0.2), test=HeldOut(groups=0.3))
    splits = split(data, train=part)
    tables = (splits.train, splits.validation, splits.test)
    assert [len(table) / len(part) for table in tables] == pytest.approx([0.5, 0.2, 0.3], abs=0.04)


def test_held_out_generator_takes_the_reals_of_its_pairs():
    others = [row | {"group": f"q{row['group']}"} for row in prompts(20, "b", first=100)]
    data = Data(train=TRAIN, validation=HeldOut(generators=("b",)))
    splits = split(data, train=prompts(20, "a") + others)
    assert generators(splits.validation) == {"real", "b"}
    assert (len(splits.train), len(splits.validation), len(splits.set_aside)) == (40, 40, 0)


def test_held_out_fakes_of_a_kept_prompt_are_set_aside():
    data = Data(train=TRAIN, validation=HeldOut(generators=("b",), groups=0.3))
    splits = split(data, train=prompts(200, "a", "b"))
    assert generators(splits.train) == {"real", "a"}
    assert generators(splits.validation) == {"real", "b"}
    aside = splits.set_aside
    assert dict(zip(column(aside, "generator"), aside["why"].to_pylist(), strict=True)) == {
        "a": "fakes of other generators than the split's",
        "b": "fakes of held-out generators",
    }
    assert sum(map(len, (splits.train, splits.validation, splits.set_aside))) == 600


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["real", "a", "b", "c"]), st.integers(0, 12)),
        min_size=60,
        max_size=90,
    ),
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.sampled_from([(), ("b",), ("c",)]),
    st.sampled_from([0.2, 0.4]),
)
def test_splits_are_disjoint_in_rows_groups_and_generators(drawn, for_validation, for_test, share):
    rows = [
        {"label": "real" if name == "real" else "fake", "generator": name, "uri": f"/{number}"}
        | {"group": f"p{group}" if group else None}
        for number, (name, group) in enumerate(drawn)
    ]
    data = Data(
        train=TRAIN,
        validation=HeldOut(generators=for_validation, groups=share),
        test=HeldOut(generators=for_test, groups=share),
    )
    try:
        splits = split(data, train=rows)
    except ConfigError:
        return  # a split of one class
    tables = (splits.train, splits.validation, splits.test)
    assert sum(map(len, tables)) + len(splits.set_aside) == len(rows)
    assert len(set.union(*map(ids, tables), ids(splits.set_aside))) == len(rows)
    for one, other in combinations(tables, 2):
        assert not set(column(one, "group")) & set(column(other, "group")) - {None}
    assert not generators(splits.train) & {*for_validation, *for_test}
    assert not for_test or generators(splits.test) == {"real", *for_test}
    assert not for_validation or generators(splits.validation) == {"real", *for_validation}


def test_splits_of_their_own_sources():
    data = Data(train=TRAIN * 2, validation=VALIDATION, test=TEST)
    rows = {"train": prompts(3, "a"), "validation": prompts(2, "b", first=50)}
    splits = split(data, **rows, test=prompts(4, "c", first=90))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 4, 8)
    assert splits.findings["set_aside"] == {"images": 6, "why": {"the same image a second time": 6}}
    assert split(data.model_copy(update={"test": ()}), **rows).test is None


def test_findings_count_and_are_json():
    data, held = Data(train=TRAIN, validation=VALIDATION), prompts(2, "c", first=9)
    findings, again = (
        json.loads(json.dumps(split(data, train=rows, validation=held).findings))
        for rows in (prompts(3, "a", "b"), prompts(3, "b", "a"))
    )
    train, validation = (findings["splits"][name] for name in ("train", "validation"))
    assert [train[name] for name in ("images", "real", "fake")] == [9, 3, 6]
    assert train["generators"] == {"a": 3, "b": 3, "real": 3}
    assert findings["leakage"]["checked"] == {"sha256": False, "phash": False}
    assert again["splits"]["validation"]["digest"] == validation["digest"]
    assert again["splits"]["train"]["digest"] != train["digest"]


def test_generator_in_several_spellings_is_named(caplog):
    data = Data(train=TRAIN, validation=VALIDATION)
    split(data, train=prompts(3, "SD15", "flux"), validation=prompts(2, "sd-15", first=9))
    assert (
        "data: names that may mean one generator count as different generators: SD15, sd-15;"
        in caplog.text
    )


@pytest.mark.parametrize("name", ["Test", "test_reddit"])
def test_validation_on_a_test_split_is_refused(name):
    few, many = ([row | {"split": name} for row in prompts(count, "a")] for count in (2, 50))
    said = f"split '{name}': a checkpoint is never selected on a test split"
    with pytest.raises(ConfigError, match=said):
        split(Data(train=TRAIN, validation=VALIDATION), train=prompts(2, "a"), validation=few)
    data = Data(train=TRAIN, validation=HeldOut(groups=0.3), test=VALIDATION)
    assert split(data, train=prompts(50, "a"), validation=few).test
    with pytest.raises(ConfigError, match=f"split '{name}'") as raised:
        split(Data(train=TRAIN, validation=HeldOut(groups=0.3)), train=many)
    assert "split: train" in raised.value.hint


def held(**validation) -> dict:
    return {"validation": HeldOut(**validation)}


@pytest.mark.parametrize(
    ("splits", "rows", "said"),
    [
        ({"train": (), "validation": VALIDATION}, [], "data.train: no source"),
        ({}, prompts(2, "a"), "data.validation: no source"),
        (held(groups=0.5), alone(40), "data.train: all .* images are real"),
        (held(generators=("b",)), alone(40, "a", "b"), "data.validation: all 40 images are fake"),
        (held(groups=0.001), prompts(2, "a"), "data.validation: the split has no images"),
        (held(generators=("c",)), prompts(2, "a"), "no image is by the held-out generator 'c'"),
        (
            held(groups=0.5) | {"test": HeldOut(groups=0.5)},
            prompts(9, "a"),
            "the sum of validation.groups and test.groups must be below 1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_split_is_refused(splits, rows, said):
    with pytest.raises(ConfigError, match=said):
        split(Data(**{"train": TRAIN} | splits), train=rows)


def hashed(rows: list[dict], hashes: list[int]) -> list[dict]:
    return [
        row | {"sha256": f"{value:064x}", "phash": f"{value:016x}"}
        for row, value in zip(rows, hashes, strict=True)
    ]


def test_leakage_is_found_by_bytes_by_looks_and_by_group():
    known = [int(value) for value in np.random.default_rng(0).integers(0, 2**63, 6)]
    four, five = (sum(1 << bit for bit in bits) for bits in ((0, 20, 40, 63), (1, 14, 30, 41, 60)))
    held = [known[0], known[1] ^ four, known[2] ^ five, 2**64 - 1 - known[3]]
    rows = {
        "train": hashed(prompts(3, "a"), known),
        "validation": hashed(prompts(2, "b", first=50), held),
    }
    rows["validation"][3]["group"] = None
    rows["train"][5] |= {"sha256": None, "phash": None}  # unreadable, and like none
    findings = split(Data(train=TRAIN, validation=VALIDATION), **rows).findings["leakage"]
    assert findings["checked"] == {"sha256": True, "phash": True}
    assert findings["unhashed"] == {"sha256": 1, "phash": 1}
    assert findings["pairs"]["validation in train"] == {
        "image_id": 0, "sha256": 1, "phash": 2, "group": 3, "examples": ["/50/real", "/50/b"]
    }  # fmt: skip
