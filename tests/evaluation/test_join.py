import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.evaluation import write_run
from ray_app.datasets.label_reader import open_labels
from ray_app.errors import ConfigError
from ray_app.evaluation.join import own_labels, read_labels
from tests.evaluation.made import cut, made_run, random_rows


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
    count = len(rows["uri"])
    usual, _, _ = random_rows(count)
    fields = {"input": pa.array(rows["input"]).type} if "input" in rows else {}
    columns = (
        usual
        | {"member": [None] * count}
        | {name: pa.array(column) for name, column in rows.items()}
    )
    return write_run(folder / "run", cut(columns, []), ("a", "b"), **fields)


@pytest.mark.parametrize("key", ["image_id", "sha256", "uri"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_join_is_that_of_a_dictionary(tmp_path, key, kind):
    columns, truths, _ = random_rows(200)
    [rows] = cut(columns, [])
    rows = pa.table(rows)
    keys = [key] if key != "uri" else ["uri", "member"]
    known = [dict(zip(keys, values, strict=True)) | truth
             for *values, truth in zip(*(rows[name].to_pylist() for name in keys), truths, strict=True)][50:]  # fmt: skip
    known = [row for row in known if row[key] is not None]
    np.random.default_rng(1).shuffle(known)
    labels = labels_of(
        tmp_path, [*known, {key: 7 if key == "image_id" else "/7", "label": "real"}], kind
    )
    found = joined(
        labels, made_run(tmp_path / "run", columns, [30, 120]), [*keys, "label", "generator"]
    )
    expected = {tuple(row[name] for name in keys): row for row in known}
    order = [
        expected[place]
        for place in zip(*(rows[name].to_pylist() for name in keys), strict=True)
        if place in expected
    ]
    assert [tuple(row.values()) for row in found] == [
        tuple(row[name] for name in (*keys, "label", "generator")) for row in order
    ]
    assert (labels.key, labels.joined, labels.others, labels.unused, labels.unused_key) == (
        key,
        len(known),
        200 - len(known),
        1,
        "7" if key == "image_id" else "/7",
    )
    first = next(
        row for row in rows.select(keys).to_pylist() if tuple(row.values()) not in expected
    )
    shown = (
        "/".join(str(one) for one in first.values() if one is not None) or rows["uri"][0].as_py()
    )
    assert labels.other == shown


def test_labels_of_a_spreadsheet_are_joined(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "\ufeffURI;Label;Generator\r\n/1.jpg;1.0;Müller\r\n/2.jpg;0.0;\r\n", encoding="utf-16"
    )
    run = run_of(tmp_path, {"uri": ["/1.jpg", "/2.jpg"]})
    found = joined(
        read_labels(open_labels(str(tmp_path / "labels.csv"))), run, ["uri", "label", "generator"]
    )
    assert [tuple(row.values()) for row in found] == [
        ("/1.jpg", "fake", "Müller"),
        ("/2.jpg", "real", "real"),
    ]


def test_labels_without_a_key_are_refused_with_their_columns(tmp_path):
    (tmp_path / "labels.csv").write_text("Filename;Truth\na.jpg;real\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match="need the column `label` and one of image_id, sha256, uri"
    ) as refused:
        read_labels(open_labels(str(tmp_path / "labels.csv")))
    assert refused.value.hint == "its columns: Filename, Truth"


@pytest.mark.parametrize("at_once", [1, 4_000_000])
def test_contradictions_are_named(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("ray_app.evaluation.join._GROUPED_AT_ONCE", at_once)
    rows = [
        {"uri": "/a.jpg", "label": 1},
        {"uri": "/b.jpg", "label": 0},
        {"uri": "/a.jpg", "label": 0},
    ]
    with pytest.raises(
        ConfigError,
        match=r"/a\.jpg is labelled twice: row 1 says fake of unknown, row 3 says real of real",
    ):
        labels_of(tmp_path, rows)
    with pytest.raises(ConfigError, match="labelled twice"):
        labels_of(
            tmp_path, [{"uri": "/a.jpg", "label": 1, "generator": name} for name in ("x", "y")]
        )
    with labels_of(tmp_path, [*rows[:2], *rows[:2], rows[0]]) as labels:
        assert (labels.rows, labels.doubled, labels.distinct) == (5, 3, 2)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"uri": "/a", "label": "maybe"}], "row 1: 'maybe' is not a label"),
        ([{"uri": "/a", "label": 1}, {"uri": "/b", "label": None}], "row 2: no label"),
        ([{"uri": "/a", "label": 1}, {"uri": None, "label": 1}], "row 2: no uri"),
        ([{"uri": "/a", "label": 1, "kind": "odd"}], "row 1: 'odd' is not a kind"),
        (
            [
                {"uri": f"/{number}", "label": 1, "generator": f"g{number}"}
                for number in range(5_001)
            ],
            "more than 5,000 generators",
        ),
        ([{"path": "/a", "label": 1}], "one of image_id, sha256, uri"),
        (
            [{"uri": "/a", "label": 1, "generator": "real:x"}],
            "labelled fake, but its generator is 'real:x'",
        ),
        ([{"uri": "/a", "label": 1, "split": "train"}], "no labels of split 'test'"),
    ],
)
def test_what_labels_lack_is_said(tmp_path, rows, said):
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
    found = joined(
        labels_of(tmp_path, rows),
        run_of(tmp_path, {"uri": [row["uri"] for row in rows]}),
        ["kind", "generator"],
    )
    assert [tuple(row.values()) for row in found] == [
        ("local", "unknown"), ("whole", "flux"), ("local", "unknown"), ("real", "real:camera"), ("whole", "unknown"),
    ]  # fmt: skip


def test_joined_rows_carry_texts(tmp_path):
    rows = [
        {"uri": f"/{number}", "label": 1, "prompt": f"p{number}", "mask_uri": f"m{number}.png"}
        for number in range(6)
    ]
    run = run_of(
        tmp_path,
        {"uri": [f"/{number}" for number in range(3, 9)], "width": pa.array(range(6), pa.int32())},
    )
    columns = ["uri", "width", "label", "kind", "prompt", "mask_uri", "predicted_prompt", "source"]
    assert joined(labels_of(tmp_path, rows[::-1]), run, columns) == [
        {"uri": f"/{number}", "width": number - 3, "label": "fake", "kind": "local", "prompt": f"p{number}",
         "mask_uri": f"{tmp_path}/m{number}.png", "predicted_prompt": None, "source": None}
        for number in range(3, 6)
    ]  # fmt: skip


def test_a_runs_own_labels(tmp_path):
    told = zip(
        [0, 1, None, 1, 1],
        ["fake", "real", None, "fake", "real"],
        "pxqrs",
        ["test"] * 4 + ["train"],
        strict=True,
    )
    inputs = [
        dict(zip(("label", "label_name", "prompt", "split"), one, strict=True)) for one in told
    ]
    run = run_of(tmp_path, {"uri": list("abcde"), "input": inputs})
    labels = own_labels("run", "test")
    assert joined(labels, run, ["uri", "kind", "prompt"]) == [
        {"uri": "a", "kind": "whole", "prompt": "p"},
        {"uri": "b", "kind": "real", "prompt": "x"},
        {"uri": "d", "kind": "whole", "prompt": "r"},
    ]
    assert (labels.rows, labels.joined, labels.others, labels.other, labels.unused) == (
        3,
        3,
        2,
        "c",
        0,
    )
    assert joined(own_labels("run"), run_of(tmp_path / "bare", {"uri": ["a"]}), ["uri"]) == []


def test_labels_of_a_file_replace_classes_of_the_run(tmp_path):
    run = run_of(tmp_path, {"uri": ["/a"], "input": [{"label": "cat", "architecture": "DiT"}]})
    with labels_of(tmp_path, [{"uri": "/a", "label": 1}]) as labels:
        [table] = labels.join(run, ["input"]).tables(["label", "architecture"])
    assert table.to_pylist() == [{"label": "fake", "architecture": "DiT"}]
    with pytest.raises(ConfigError, match=r"the columns of .*run, row 1: 'cat' is not a label"):
        joined(own_labels("run"), run, ["label"])


def test_what_lies_in_an_archive_does_not_say_where_masks_lie(tmp_path):
    def masks(uri, member, mask):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run = run_of(
            folder,
            {
                "uri": [uri],
                "member": pa.array([member], pa.string()),
                "input": [{"label": "fake", "mask_uri": mask}],
            },
        )
        return [row["mask_uri"] for row in joined(own_labels("run"), run, ["mask_uri"])]

    table = "/data/a.parquet"
    assert masks(table, "3", f"{table}#row=3&column=mask") == [f"{table}#row=3&column=mask"]
    assert masks("/data/a.png", None, "/data/m.png") == ["/data/m.png"]  # as a list says it
    for uri, member, mask in (
        (table, "3", "/etc/hostname"), (table, "3", "http://169.254.169.254/x"), (table, "3", "/data/b.parquet#row=3&column=mask"),
        ("/data/a.tar", "a.png", "s3://b/m.png"), ("https://h/a.png", None, "/etc/hostname"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="may not say that a mask lies at") as caught:
            masks(uri, member, mask)
        assert "--labels" in caught.value.hint
