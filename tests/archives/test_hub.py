import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import open_source
from ray_app.archives.containers import CONTAINERS
from ray_app.errors import ConfigError, SourceError, Status
from ray_app.storage import Fetcher, RetryPolicy, object_store
from tests.make.servers.hub import HubServer, blob_id

REPO = "someone/pictures"
CELLS = [random.Random(n).randbytes(3000) for n in range(12)]


def table() -> bytes:
    file = io.BytesIO()
    image = pa.array([{"bytes": cell, "path": f"{n}.png"} for n, cell in enumerate(CELLS)])
    pq.write_table(pa.table({"image": image, "label": list(range(12))}), file, row_group_size=5)
    return file.getvalue()


FILES = {
    "README.md": b"# pictures",
    "data/train-0.parquet": table(),
    "raw/a b.jpg": b"jpeg a",
    "raw/deep/ü#1.jpg": b"jpeg u",
}


@pytest.fixture
def server(monkeypatch):
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.commit(REPO, FILES)
        server.commit(REPO, {"x/0.jpg": b"converted"}, "refs/convert/parquet")
        yield server


def listed(source: str, **how):
    return list(open_source([source], **how))


def fetched(items):
    return list(Fetcher().prefetch(items, depth_bytes=1000, max_bytes=1000))


def test_hub_dataset_lists_and_reads_its_files(server):
    items = listed(f"hf://datasets/{REPO}", include=["raw/**", "README.md"])
    trees = [request for request in server.requests if "/tree/" in request]
    assert len(trees) == len(set(trees)), "each folder is asked for once"
    names = ["README.md", "raw/a b.jpg", "raw/deep/ü#1.jpg"]
    assert [(item.uri, item.version, item.size_bytes) for item in items] == [
        (f"hf://datasets/{REPO}/{name}", blob_id(FILES[name]), len(FILES[name])) for name in names
    ]
    assert fetched(items) == [FILES[name] for name in names]


def test_hub_parquet_is_read_in_ranges(server):
    items = listed(f"hf://datasets/{REPO}/data")
    assert [(item.member, item.version, item.input["label"]) for item in items] == [
        (str(n), blob_id(FILES["data/train-0.parquet"]), n) for n in range(12)
    ]
    server.requests.clear()
    assert list(CONTAINERS["parquet"].reader(Fetcher(), 10**6).read(items)) == CELLS
    files = [request for request in server.requests if "/resolve/" in request]
    assert files
    assert all("bytes=" in request for request in files)


@pytest.mark.parametrize("name", ["main", "refs%2Fconvert%2Fparquet"])
def test_hub_revision_is_read(server, name):
    source = f"hf://datasets/{REPO}@{name}"
    items = listed(source, include=["*.jpg"])
    assert all(item.uri.startswith(f"{source}/") for item in items)
    assert fetched(items) == ([b"jpeg a", b"jpeg u"] if name == "main" else [b"converted"])


def test_hub_branch_that_moves_is_changed_and_gated_is_denied(server):
    item, other = listed(f"hf://datasets/{REPO}/raw")
    server.commit(REPO, {**FILES, "raw/a b.jpg": b"another"})
    fetcher = Fetcher(RetryPolicy(attempts=1))
    assert fetcher.fetch(item.uri, item.version, 100) == b"jpeg a"
    object_store._commit.cache_clear()  # as a worker that starts later
    with pytest.raises(SourceError) as caught:
        fetcher.fetch(item.uri, item.version, 100)
    assert caught.value.status == Status.SOURCE_CHANGED
    server.gated.add(REPO)
    with pytest.raises(SourceError) as caught:
        fetcher.fetch(other.uri, other.version, 100)
    assert caught.value.status == Status.SOURCE_DENIED


@pytest.mark.parametrize("path", [f"{REPO}/nothing", "some/thing", f"{REPO}@v9"])
def test_hub_dataset_that_is_missing_names_the_token(server, path):
    with pytest.raises(ConfigError, match="no such file or folder") as caught:
        listed(f"hf://datasets/{path}")
    assert "HF_TOKEN" in caught.value.hint
