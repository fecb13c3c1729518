import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import ConfigError
from ray_app.evaluation.labels import COLUMNS, open_labels

ROWS = [
    {"uri": "b/1.jpg", "label": "real", "generator": "real:camera", "prompt": None},
    {"uri": "/abs/2.jpg", "label": "fake", "generator": "flux, dev", "prompt": 'a "red"\nfox'},
    {"uri": "s3://bucket/3.jpg", "label": "1", "generator": "нейросеть", "prompt": "=cmd()"},
    {"uri": "../up/4.jpg", "label": "0", "generator": None, "prompt": None},
]


def write(folder, kind, rows=ROWS):
    path = folder / f"labels.{kind}"
    if kind == "csv":
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def read(place, *columns):
    labels = open_labels(str(place))
    return pa.concat_tables(labels.tables(columns or labels.names())).to_pylist()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_form_says_the_same(tmp_path, kind):
    found = read(write(tmp_path, kind))
    assert [row["uri"] for row in found] == [
        f"{tmp_path}/b/1.jpg",
        "/abs/2.jpg",
        "s3://bucket/3.jpg",
        f"{tmp_path.parent}/up/4.jpg",
    ]
    assert [row["label"] for row in found] == ["real", "fake", "1", "0"]
    assert [row["generator"] for row in found] == [row["generator"] for row in ROWS]
    assert found[1]["prompt"] == 'a "red"\nfox'
    assert open_labels(str(write(tmp_path, kind))).names() == [
        name for name in COLUMNS if name in ROWS[0]
    ]


def test_uris_are_spelled_as_runs_spell_them(tmp_path):
    rows = [
        {"uri": uri, "label": 1}
        for uri in (
            "file:///data/a.jpg",
            "/data/./b.jpg",
            "/data/x/../c.jpg",
            "https://h/p.jpg?X-Amz-Signature=1",
        )
    ]
    assert [row["uri"] for row in read(write(tmp_path, "jsonl", rows))] == [
        "/data/a.jpg",
        "/data/b.jpg",
        "/data/c.jpg",
        "https://h/p.jpg",
    ]


def test_numbers_keep_all_their_digits(tmp_path):
    rows = [{"image_id": -(2**63), "label": True}, {"image_id": 2**63 - 1, "label": 0}]
    for kind in ("csv", "jsonl", "parquet"):
        given = [row | {"label": int(row["label"])} for row in rows] if kind != "jsonl" else rows
        assert [row["image_id"] for row in read(write(tmp_path, kind, given), "image_id")] == [
            -(2**63),
            2**63 - 1,
        ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.csv", b"uri,uri,label\na,b,real\n", "each column once"),
        ("labels.csv", b"uri,label\n\xff\xfe.jpg,real\n", "its text is not UTF-8"),
        ("labels.jsonl", b'{"uri": "a", "label": 1}\n{"uri": \n', "line 2"),
        ("labels.csv", ..., r"labels\.csv"),  # which is not there
        ("labels.parquet", b"PAR1 and nothing else", "cannot be read"),
        ("labels.lst", b"a.jpg real\n", "neither a file of labels nor an index"),
    ],
)
def test_what_is_no_labels_is_said(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not ...:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read(path)


def test_labels_from_elsewhere_name_no_local_masks(tmp_path):
    rows = [
        {"uri": "/data/1.jpg", "label": 1, "mask_uri": "m.png"},
        {"uri": "/data/2.jpg", "label": 1, "mask_uri": "/etc/hostname"},
    ]
    assert [row["mask_uri"] for row in read(write(tmp_path, "csv", rows))] == [
        f"{tmp_path}/m.png",
        "/etc/hostname",
    ]
    with fsspec.open("memory://labels-elsewhere/labels.csv", "wb") as stream:
        stream.write((tmp_path / "labels.csv").read_bytes())
    assert [row["uri"] for row in read("memory://labels-elsewhere/labels.csv", "uri")] == [
        "/data/1.jpg",
        "/data/2.jpg",
    ]
    with pytest.raises(ConfigError, match="may not say that a mask lies at /etc/hostname"):
        read("memory://labels-elsewhere/labels.csv", "mask_uri")
    with pytest.raises(ConfigError, match="may not say that a mask lies at local:///etc/hostname"):
        read(
            write(
                tmp_path, "jsonl", [{"uri": "a", "label": 1, "mask_uri": "local:///etc/hostname"}]
            ),
            "mask_uri",
        )
