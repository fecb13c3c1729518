"""Prompts from every form, and what they become."""

import json
from collections import Counter
from http.server import BaseHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ray_app.config import validate
from ray_app.datajobs.generate import GenerateConfig
from ray_app.datajobs.generate.config import FileEncoding
from ray_app.datajobs.generate.requests import (
    Prompt,
    cut_blocks,
    derive_seed,
    hash_requests,
    make_requests,
    read_prompts,
)
from ray_app.datasets import DatasetSource, build_index
from ray_app.errors import ConfigError, StorageError
from ray_app.storage import Store
from tests.make.servers.faulty import FaultyServer
from tests.make.servers.http_server import HttpServer
from tests.make.small_run import begun, finish

SEEDS = [5139938044916651094, 8333433344501418808, 6363984814392141082]
ROWS = [
    {"id": "a.1", "prompt": "a cat", "negative_prompt": "ugly"},
    {"id": "b", "prompt": "a, dog", "negative_prompt": None},
]


class Moved(BaseHTTPRequestHandler):
    """Sends everybody to another server, `to`."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.server.owner.to + self.path)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_) -> None:
        pass


def config(prompts, **more):
    return GenerateConfig.model_validate({"pipeline": "sd-3.5", "prompts": str(prompts), **more})


def read(prompts, **more):
    return [
        (one.id, one.text, one.negative)
        for one in read_prompts(config(prompts, **more), images=False)
    ]


def test_lines_of_a_text_are_numbered_and_unchanged(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(
        "\ufeffa cat\u2028on a mat\r\n\n  \nein Hund, größer\n".encode()
    )
    assert read(tmp_path / "prompts.txt") == [
        ("0", "a cat\u2028on a mat", None),
        ("1", "ein Hund, größer", None),
    ]
    (tmp_path / "prompts.csv").write_text("id,prompt\n007,NA\n8,null\n")
    assert read(tmp_path / "prompts.csv") == [("007", "NA", None), ("8", "null", None)]


def test_tables_bring_ids_and_negative_prompts(tmp_path):
    (tmp_path / "prompts.csv").write_text(
        'id,prompt,negative_prompt\na.1,a cat,ugly\nb,"a, dog",\n'
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "prompts.parquet")
    for path in tmp_path.iterdir():
        assert read(path, negative_prompt="blurred") == [
            ("a.1", "a cat", "ugly"),
            ("b", "a, dog", "blurred"),
        ]


def test_index_brings_prompts_groups_and_real_images(reals, tmp_path):
    source = DatasetSource.model_validate(
        {"at": [str(reals)], "layout": "columns", "arguments": {"label": "kind"}}
    )
    text = reals.read_text().splitlines()
    kinds = ["kind", "real", "real", "fake", "real", "real", "real"]
    text[0] = text[0].replace("mask_uri", "seen")
    lines = [f"{line},{kind}" for line, kind in zip(text, kinds, strict=True)]
    reals.write_text("\n".join(lines) + "\n")
    build_index(source, Store.open(str(tmp_path / "index")))
    assert len(read(tmp_path / "index")) == 6
    found = read_prompts(config(tmp_path / "index"), images=True)
    assert len(found) == 5
    assert {one.group for one in found} == {f"scene-{number}" for number in (0, 1, 3, 4, 5)}
    assert all(
        one.image is not None and one.image.uri.startswith(str(reals.parent)) for one in found
    )


def test_a_run_without_predictions_says_where_they_come_from(tmp_path):
    run = begun(tmp_path, ["a.png"])
    with pytest.raises(ConfigError, match="no listing of this run is finished yet"):
        read(run.store.url)
    finish(run)
    with pytest.raises(ConfigError, match="it has no prompts") as raised:
        read(run.store.url)
    assert "describer" in raised.value.hint


def test_lists_of_private_servers_need_permission():
    with FaultyServer() as server, HttpServer(Moved) as other:
        other.to = server.url
        server.objects["/p.csv"] = f"uri,prompt\n{server.url}/a.png,a cat\n".encode()
        with pytest.raises(StorageError, match="not on the public Internet"):
            read_prompts(config(f"list::{other.url}/p.csv"), images=True)
        [found] = read_prompts(config(f"list::{other.url}/p.csv", allow_private=True), images=True)
        assert found.image.uri == f"{server.url}/a.png"


@pytest.mark.parametrize("kind", ["", "list::"])
def test_a_table_from_elsewhere_names_no_local_mask(tmp_path, kind):
    with FaultyServer() as server:
        server.objects["/p.csv"] = (
            f"uri,prompt,mask_uri\n{server.url}/a.png,a cat,/etc/passwd\n".encode()
        )
        with pytest.raises(ConfigError, match="may not name the mask /etc/passwd"):
            read_prompts(config(f"{kind}{server.url}/p.csv"), images=True)
    (tmp_path / "p.csv").write_text("uri,prompt,mask_uri\na.png,a cat,m.png\n")
    [found] = read_prompts(config(f"{kind}{tmp_path}/p.csv"), images=True)
    assert found.mask == f"{tmp_path}/m.png"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("prompts.csv", "id,prompt\n1,a\n1,b\n", "duplicate id"),
        ("prompts.csv", "id,words\n1,a\n", "no column 'prompt'"),
        ("prompts.csv", "id,prompt\n1,\n", "no prompt"),
        # The parser would end this process; tests/archives/test_uri_lists.py shows this.
        ("prompts.jsonl", '{"prompt": "a", "x": ' + "[" * 100_000 + "}\n", "64 nested brackets"),
    ],
    ids=("twice", "no column", "no prompt", "nested"),
)
def test_prompts_that_cannot_be_used_are_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=told):
        read(tmp_path / name)


def test_seeds_never_change():
    assert [derive_seed(0, 0), derive_seed(0, 1), derive_seed(1, 0)] == SEEDS
    assert len({derive_seed(base, index) for base in range(20) for index in range(500)}) == 10_000


def test_orders_follow_from_their_numbers_alone(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"thing {number}\n" for number in range(40)))
    prompts = read_prompts(config(tmp_path / "prompts.txt"), images=False)
    encoding = FileEncoding(format=("PNG", "JPEG"), quality=(70, 95))
    drawn = {"sizes": [(32, 32), (48, 32)], "encoding": encoding}
    whole = make_requests(prompts, per_prompt=2, base_seed=5, **drawn)
    assert make_requests(prompts[:10], per_prompt=2, base_seed=5, **drawn) == whole[:20]
    assert len({order.seed for order in whole}) == 80
    assert {order.size for order in whole} == {(32, 32), (48, 32)}
    assert {order.style.format for order in whole} == {"PNG", "JPEG"}
    assert hash_requests(whole) != hash_requests(
        make_requests(prompts, per_prompt=2, base_seed=6, **drawn)
    )
    blocks = cut_blocks(whole, 8)
    assert sorted(order.index for block in blocks for order in block.requests) == list(range(80))
    assert all(
        len({order.size for order in block.requests}) == 1 and len(block.requests) <= 8
        for block in blocks
    )


def test_format_and_quality_are_drawn_from_ranges():
    prompts = [Prompt(str(number), "a cat") for number in range(400)]
    encoding = FileEncoding.model_validate(
        {"format": ["JPEG", "JPEG", "WEBP", "PNG"], "quality": [70, 95], "subsampling": "4:4:4"}
    )
    made = make_requests(prompts, per_prompt=1, base_seed=0, sizes=[(32, 32)], encoding=encoding)
    styles = [request.style for request in made]
    assert {style.quality for style in styles if style.format != "PNG"} == set(range(70, 96))
    assert {(style.quality, style.subsampling) for style in styles if style.format == "PNG"} == {
        (None, None)
    }
    assert {style.subsampling for style in styles if style.format == "JPEG"} == {"4:4:4"}
    counts = Counter(style.format for style in styles)
    assert 160 < counts["JPEG"] < 240
    assert min(counts.values()) > 60


@pytest.mark.parametrize(
    "encode", [{"format": []}, {"quality": [95, 70]}, {"quality": 101}, {"format": "GIF"}], ids=str
)
def test_encoding_rejects_what_cannot_be_drawn(encode):
    with pytest.raises(ValidationError):
        FileEncoding.model_validate(encode)


def test_retired_key_like_names_its_replacement():
    config = {"pipeline": "sd-3.5", "like": {"source": "photos"}}
    with pytest.raises(ConfigError, match=r"like: retired: set encode\.format"):
        validate(config, GenerateConfig, where="job.yaml")
