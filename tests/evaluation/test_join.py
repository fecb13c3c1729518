import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.evaluation import write_run
from ray_app.datasets.label_reader import open_labels
from ray_app.errors import ConfigError
from ray_app.evaluation.join import own_labels, read_labels
from tests.make.evaluations import cut, made_run, random_rows


def labels_of(folder, rows, kind="jsonl", **settings):
    path = folder / f"labels.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return read_labels(open_labels(str(path)), **settings)


def joined(labels, run, columns, **more):
    with labels:
        return [
            row
            for table in labels.join(run, columns, **more).tables(columns)
            for row in table.to_pylist()
        ]


def run_of(folder, rows):
    """A run of a few rows, columns by name; those that are not given are made up."""
    usual, _, _ = random_rows(len(rows["uri"]))
    fields = {"input": pa.array(rows["input"]).type} if "input" in rows else {}
    given = {name: pa.array(column) for name, column in rows.items()}
    columns = usual | {"member": [None] * len(rows["uri"])} | given
    return write_run(folder / "run", cut(columns, []), ("a", "b"), **fields)


@pytest.mark.parametrize("key", ["image_id", "sha256", "uri"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_join_equals_that_of_a_dictionary(tmp_path, key, kind):
    columns, truths, _ = random_rows(200)
    run = made_run(tmp_path / "run", columns, [30, 120])
    [rows] = cut(columns, [])
    rows = pa.table(rows)
    keys = [key] if key != "uri" else ["uri", "member"]
    wanted = [*keys, "label", "generator"]
    order = rows.select(keys).to_pylist()
    known = [row | truth for row, truth in zip(order, truths, strict=True)][50:]
    known = [row for row in known if row[key] is not None]
    np.random.default_rng(1).shuffle(known)
    stranger = 7 if key == "image_id" else "/7"
    labels = labels_of(tmp_path, [*known, {key: stranger, "label": "real"}], kind)
    expected = {tuple(row[name] for name in keys): row for row in known}
    matched = [expected[one] for row in order if (one := tuple(row.values())) in expected]
    assert joined(labels, run, wanted) == [{name: row[name] for name in wanted} for row in matched]
    assert (labels.key, labels.joined, labels.others) == (key, len(known), 200 - len(known))
    assert (labels.unused, labels.unused_key) == (1, str(stranger))
    first = next(row for row in order if tuple(row.values()) not in expected)
    shown = "/".join(str(one) for one in first.values() if one is not None)
    assert labels.other == (shown or columns["uri"][0])


def test_labels_without_a_key_are_refused_with_their_columns(tmp_path):
    (tmp_path / "labels.csv").write_text("Filename;Truth\na.jpg;real\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="`label` and one of image_id, sha256, uri") as refused:
        read_labels(open_labels(str(tmp_path / "labels.csv")))
    assert refused.value.hint == "check the names of its columns: Filename, Truth"


@pytest.mark.parametrize("at_once", [1, 4_000_000])
def test_contradictions_are_named(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("ray_app.evaluation.join._GROUP_BATCH_SIZE", at_once)
    rows = [
        {"uri": "/a.jpg", "label": 1},
        {"uri": "/b.jpg", "label": 0},
        {"uri": "/a.jpg", "label": 0},
    ]
    said = r"/a\.jpg has two labels: row 1 is fake of unknown, row 3 is real of real"
    with pytest.raises(ConfigError, match=said):
        labels_of(tmp_path, rows)
    two = [{"uri": "/a.jpg", "label": 1, "generator": name} for name in ("x", "y")]
    with pytest.raises(ConfigError, match="has two labels"):
        labels_of(tmp_path, two)
    with labels_of(tmp_path, [*rows[:2], *rows[:2], rows[0]]) as labels:
        assert (labels.rows, labels.doubled, labels.distinct) == (5, 3, 2)


FAKE = {"uri": "/a", "label": 1}
MANY = [{"uri": f"/{number}", "label": 1, "generator": f"g{number}"} for number in range(5_001)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([FAKE, {"uri": "/b", "label": None}], "row 2: the label is missing"),
        ([FAKE, {"uri": None, "label": 1}], "row 2: the column `uri` is empty"),
        ([FAKE | {"kind": "odd"}], "row 1: 'odd' is not a kind of image"),
        (MANY, "more than 5,000 generators"),
        ([{"path": "/a", "label": 1}], "one of image_id, sha256, uri"),
        ([FAKE | {"generator": "real:x"}], "labelled fake, but its generator is 'real:x'"),
        ([FAKE | {"split": "train"}], "no labelled image is in the split 'test'"),
    ],
)
def test_incomplete_labels_are_refused(tmp_path, rows, said):
    with pytest.raises(ConfigError, match=said):
        labels_of(tmp_path, rows, split="test")


def test_only_labels_of_a_split(tmp_path):
    rows = [
        {"uri": f"/{number}", "label": 1, "split": ("test", "train")[number % 2]}
        for number in range(5)
    ]
    with labels_of(tmp_path, [*rows, rows[0]], split="test") as labels:
        assert (labels.rows, labels.other_split, labels.doubled, labels.distinct) == (6, 2, 1, 3)


def test_kinds_and_generators(tmp_path):
    rows = [
        {"uri": "/1", "label": 1, "mask_uri": "m.png"},
        {"uri": "/2", "label": 1, "kind": "whole", "mask_uri": "m.png", "generator": " flux "},
        {"uri": "/3", "label": 1, "kind": "partial"},
        {"uri": "/4", "label": 0, "mask_uri": "m.png", "generator": "camera"},
        {"uri": "/5", "label": 1, "mask_uri": ""},
    ]
    run = run_of(tmp_path, {"uri": [row["uri"] for row in rows]})
    found = joined(labels_of(tmp_path, rows), run, ["kind", "generator"])
    assert [tuple(row.values()) for row in found] == [
        ("local", "unknown"), ("whole", "flux"), ("local", "unknown"), ("real", "real:camera"), ("whole", "unknown"),
    ]  # fmt: skip


def test_generator_in_several_spellings_is_named(tmp_path, caplog):
    names = ["sd15", "SD15", "sd-15", "flux", "nan", None]
    rows = [
        {"uri": f"/{row}", "label": 1, "generator": name, "source": "None"}
        for row, name in enumerate(names)
    ]
    run = run_of(tmp_path, {"uri": [row["uri"] for row in rows]})
    found = joined(labels_of(tmp_path, rows), run, ["generator", "source"])
    assert [row["generator"] for row in found] == [*names[:4], "unknown", "unknown"]
    assert {row["source"] for row in found} == {None}
    assert "count as different generators: SD15, sd-15, sd15; write" in caplog.text


def test_joined_rows_carry_texts(tmp_path):
    rows = [
        {"uri": f"/{number}", "label": 1, "prompt": f"p{number}", "mask_uri": f"m{number}.png"}
        for number in range(6)
    ]
    uris = [f"/{number}" for number in range(3, 9)]
    run = run_of(tmp_path, {"uri": uris, "width": pa.array(range(6), pa.int32())})
    columns = ["uri", "width", "label", "kind", "prompt", "mask_uri", "predicted_prompt", "source"]
    assert joined(labels_of(tmp_path, rows[::-1]), run, columns) == [
        {"uri": f"/{number}", "width": number - 3, "label": "fake", "kind": "local", "prompt": f"p{number}",
         "mask_uri": f"{tmp_path}/m{number}.png", "predicted_prompt": None, "source": None}
        for number in range(3, 6)
    ]  # fmt: skip


def test_labels_of_the_run_are_joined(tmp_path):
    names = ("label", "label_name", "prompt", "split")
    told = [(0, "fake", "p", "test"), (1, "real", "x", "test"), (None, None, "q", "test")]
    told += [(1, "fake", "r", "test"), (1, "real", "s", "train")]
    inputs = [dict(zip(names, row, strict=True)) for row in told]
    run = run_of(tmp_path, {"uri": list("abcde"), "input": inputs})
    labels = own_labels("run", "test")
    found = [tuple(row.values()) for row in joined(labels, run, ["uri", "kind", "prompt"])]
    assert found == [("a", "whole", "p"), ("b", "real", "x"), ("d", "whole", "r")]
    assert (labels.rows, labels.joined, labels.unused) == (3, 3, 0)
    assert (labels.others, labels.other) == (2, "c")
    assert joined(own_labels("run"), run_of(tmp_path / "bare", {"uri": ["a"]}), ["uri"]) == []


def test_labels_of_a_file_replace_classes_of_the_run(tmp_path):
    run = run_of(tmp_path, {"uri": ["/a"], "input": [{"label": "cat", "architecture": "DiT"}]})
    with labels_of(tmp_path, [{"uri": "/a", "label": 1}]) as labels:
        [table] = labels.join(run, ["input"]).tables(["label", "architecture"])
    assert table.to_pylist() == [{"label": "fake", "architecture": "DiT"}]
    with pytest.raises(ConfigError, match=r"the columns of .*run, row 1: 'cat' is not a label"):
        joined(own_labels("run"), run, ["label"])


TABLE = "/data/a.parquet"


def masks(folder, uri, member, mask):
    inputs = [{"label": "fake", "mask_uri": mask}]
    members = pa.array([member], pa.string())
    run = run_of(folder, {"uri": [uri], "member": members, "input": inputs})
    return [row["mask_uri"] for row in joined(own_labels("run"), run, ["mask_uri"])]


@pytest.mark.parametrize(
    ("uri", "member", "mask"),
    [(TABLE, "3", f"{TABLE}#row=3&column=mask"), ("/data/a.png", None, "/data/m.png")],
)
def test_masks_of_a_table_or_a_list_are_read(tmp_path, uri, member, mask):
    assert masks(tmp_path, uri, member, mask) == [mask]


@pytest.mark.parametrize(
    ("uri", "member", "mask"),
    [
        (TABLE, "3", "/etc/hostname"),
        (TABLE, "3", "http://169.254.169.254/x"),
        (TABLE, "3", "/data/b.parquet#row=3&column=mask"),
        ("/data/a.tar", "a.png", "s3://b/m.png"),
        ("https://h/a.png", None, "/etc/hostname"),
    ],
)
def test_archive_may_not_name_masks_elsewhere(tmp_path, uri, member, mask):
    with pytest.raises(ConfigError, match="may not name a mask at") as caught:
        masks(tmp_path, uri, member, mask)
    assert "--labels" in caught.value.hint
