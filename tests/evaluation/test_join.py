import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.groups import EvaluationGroup
from ray_app.evaluation.join import OwnLabels, index_labels, joined_rows
from ray_app.evaluation.labels import open_labels
from tests.evaluation.made import random_rows


def labels_of(folder, rows, kind="jsonl", **settings):
    path = folder / f"labels.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    return index_labels(open_labels(str(path)), **settings)


def table_of(columns):
    return pa.table({name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()})


@pytest.mark.parametrize("key", ["image_id", "sha256", "uri"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_join_is_that_of_a_dictionary(tmp_path, key, kind):
    columns, truths, _ = random_rows(200)
    rows = table_of(columns)
    keys = [key] if key != "uri" else ["uri", "member"]
    known = [dict(zip(keys, values, strict=True)) | truth
             for *values, truth in zip(*(rows[name].to_pylist() for name in keys), truths, strict=True)][50:]  # fmt: skip
    known = [row for row in known if row[key] is not None]
    np.random.default_rng(1).shuffle(known)
    index = labels_of(tmp_path, known, kind)
    truth = index.truth(rows)
    expected = {tuple(row[name] for name in keys): row for row in known}
    assert index.key.name == key
    for place, values in enumerate(zip(*(rows[name].to_pylist() for name in keys), strict=True)):
        wanted = expected.get(values)
        found = None if truth.codes[place] < 0 else truth.groups[truth.codes[place]]
        assert (found and (found.label, found.generator)) == (wanted and (wanted["label"], wanted["generator"]))
        assert (truth.places[place] < 0) == (wanted is None)
        if wanted and place % 20 == 0:  # which reads the file
            assert index.shown(int(truth.places[place])) == "/".join(str(value) for value in values if value is not None)


def test_colliding_words_are_told_apart(tmp_path):
    rows = [{"uri": f"/x/{number}.jpg", "label": number % 2} for number in range(10)]
    looked = table_of({"uri": [f"/x/{number}.jpg" for number in range(64)], "member": pa.nulls(64, pa.string())})
    told = []
    for bits in (6, 7, 8, 64):  # of few bits, the words of labels collide, and other salts are tried
        index = labels_of(tmp_path, rows, bits=bits)
        told.append(index.key.salt)
        truth = index.truth(looked)
        assert [truth.groups[code].label for code in truth.codes[:10]] == ["real", "fake"] * 5
    assert (truth.codes >= 0).sum() == 10
    assert max(told) > 0, "no salt but the first was ever needed: the test tests nothing"
    with pytest.raises(ConfigError, match="told apart"):
        labels_of(tmp_path, [{"uri": str(number), "label": 1} for number in range(9)], bits=2)


def test_contradictions_are_named(tmp_path):
    rows = [{"uri": "/a.jpg", "label": 1}, {"uri": "/b.jpg", "label": 0}, {"uri": "/a.jpg", "label": 0}]
    with pytest.raises(ConfigError, match=r"/a\.jpg is labelled twice: row 1 says fake of unknown, row 3 says real of real"):
        labels_of(tmp_path, rows)
    with pytest.raises(ConfigError, match="labelled twice"):
        labels_of(tmp_path, [{"uri": "/a.jpg", "label": 1, "generator": name} for name in ("x", "y")])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"uri": "/a", "label": "maybe"}], "row 1: 'maybe' is no label"),
        ([{"uri": "/a", "label": 1}, {"uri": "/b", "label": None}], "row 2: no label"),
        ([{"path": "/a", "label": 1}], "one of image_id, sha256, uri"),
        ([{"uri": "/a", "label": 1, "generator": "real:x"}], "labelled fake, but its generator is 'real:x'"),
        ([{"uri": "/a", "label": 1, "split": "train"}], "no labels of split 'test'"),
    ],
)
def test_what_labels_lack_is_said(tmp_path, rows, said):
    with pytest.raises(ConfigError, match=said):
        labels_of(tmp_path, rows, split="test")


def test_only_labels_of_a_split(tmp_path):
    rows = [{"uri": f"/{number}", "label": 1, "split": ("test", "train")[number % 2]} for number in range(5)]
    index = labels_of(tmp_path, rows, split="test")
    assert (index.rows, index.other_split, len(index.words)) == (5, 2, 3)


def test_kinds_and_generators(tmp_path):
    rows = [
        {"uri": "/1", "label": 1, "mask_uri": "m.png"},
        {"uri": "/2", "label": 1, "kind": "whole", "mask_uri": "m.png", "generator": " flux "},
        {"uri": "/3", "label": 1, "kind": "partial"},
        {"uri": "/4", "label": 0, "mask_uri": "m.png", "generator": "camera"},
        {"uri": "/5", "label": 1, "mask_uri": ""},
    ]
    index = labels_of(tmp_path, rows)
    found = index.truth(table_of({"uri": [row["uri"] for row in rows], "member": pa.nulls(5, pa.string())}))
    assert [(found.groups[code].kind, found.groups[code].generator) for code in found.codes] == [
        ("local", "unknown"), ("whole", "flux"), ("local", "unknown"), ("real", "real:camera"), ("whole", "unknown"),
    ]  # fmt: skip


def test_joined_rows_carry_texts(tmp_path):
    rows = [{"uri": f"/{number}", "label": 1, "prompt": f"p{number}", "mask_uri": f"m{number}.png"} for number in range(6)]
    index = labels_of(tmp_path, rows[::-1])
    table = table_of({"uri": [f"/{number}" for number in range(3, 9)], "member": pa.nulls(6, pa.string()), "width": list(range(6))})
    [found] = joined_rows(iter([table]), index, ["uri", "width", "label", "kind", "prompt", "mask_uri", "predicted_prompt"])
    assert found.to_pylist() == [
        {"uri": f"/{number}", "width": number - 3, "label": "fake", "kind": "local", "prompt": f"p{number}",
         "mask_uri": f"{tmp_path}/m{number}.png", "predicted_prompt": None}
        for number in range(3, 6)
    ]  # fmt: skip


def test_a_runs_own_labels():
    told = zip([0, 1, None, 1], ["fake", "real", None, "fake"], ["p", None, "q", "r"], strict=True)
    table = pa.table({"uri": list("abcd"), "input": [dict(zip(("label", "label_name", "prompt"), one, strict=True)) for one in told]})
    own = OwnLabels("run")
    truth = own.truth(table)
    assert [None if code < 0 else truth.groups[code] for code in truth.codes] == [
        EvaluationGroup("whole", "unknown"), EvaluationGroup("real", "real"), None, EvaluationGroup("whole", "unknown")
    ]  # fmt: skip
    [found] = joined_rows(iter([table]), own, ["uri", "label", "prompt"])
    assert found["prompt"].to_pylist() == ["p", None, "r"]
    assert (own.truth(pa.table({"uri": ["a"]})).codes == -1).all()


def test_what_lies_in_an_archive_does_not_say_where_masks_lie():
    def joined(uri, member, mask):
        rows = table_of({"uri": [uri], "member": [member], "input": [{"label": "fake", "mask_uri": mask}]})
        return pa.concat_tables(joined_rows(iter([rows]), OwnLabels("run"), ["uri", "mask_uri"]))["mask_uri"].to_pylist()

    table = "/data/a.parquet"
    assert joined(table, "3", f"{table}#row=3&column=mask") == [f"{table}#row=3&column=mask"]
    assert joined("/data/a.png", None, "/data/m.png") == ["/data/m.png"]  # as a list says it
    for uri, member, mask in (
        (table, "3", "/etc/hostname"), (table, "3", "http://169.254.169.254/x"), (table, "3", "/data/b.parquet#row=3&column=mask"),
        ("/data/a.tar", "a.png", "s3://b/m.png"), ("https://h/a.png", None, "/etc/hostname"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="may not say that a mask lies at") as caught:
            joined(uri, member, mask)
        assert "--labels" in caught.value.hint
