import json
import pickle
import re
import resource
import tarfile
from itertools import cycle

import pyarrow.parquet as pq
import pytest

from ray_app.datajobs.shards import run
from ray_app.errors import RESUMABLE, ConfigError, IdentityError, StorageError
from tests.datajobs.shards import archives
from tests.datajobs.shards.archives import contents, hashes, pack, samples, unpacked

SMALL = 0.03  # MB: two blocks of 64 members of some hundred bytes


@pytest.mark.parametrize(
    ("given", "form"), [*zip(archives.FORMS, cycle(["parquet", "webdataset"]), strict=False)]
)
def test_shards_of_each_source_hold_its_bytes(tmp_path, given, form):
    content = archives.files()
    summary = pack(archives.FORMS[given](tmp_path, content), tmp_path / "out", form=form)
    found = samples(tmp_path / "out")
    digests = [archives.sha256(sample["data"]) for sample in found]
    assert sorted(digests) == hashes(content)
    assert [sample["source"]["sha256"] for sample in found] == digests
    assert (summary["members"], summary["packed"], summary["unpacked"]) == (9, 9, 0)
    assert summary["shards"] == 1
    formats = [sample["source"]["format"] for sample in found]
    assert summary["formats"]["none"] == formats.count(None) == 2
    if given in ("parquet", "list"):
        assert sorted(sample["beside"]["label"] for sample in found) == [0] * 5 + [1] * 4


@pytest.fixture
def many(tmp_path):
    """Members of a few hundred bytes, enough for several blocks."""
    content = {f"{index:04}.bin": f"content {index}".encode() * 20 for index in range(300)}
    return archives.as_prefix(tmp_path, content)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_interrupted_pack_resumes_to_the_same_files(many, tmp_path, form, monkeypatch):
    whole = pack(many, tmp_path / "whole", form=form, shard_mb=SMALL)
    assert whole["shards"] == 3

    def stops(function, items):
        # what a task of a cluster is given
        function, [first, *_] = pickle.loads(pickle.dumps((function, list(items))))
        yield function(first)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run.archives, "map_serial", stops)
        with pytest.raises(KeyboardInterrupt) as stopped:
            pack(many, tmp_path / "out", form=form, shard_mb=SMALL)
    assert RESUMABLE in stopped.value.__notes__
    assert len(contents(tmp_path / "out")) == 1
    summary = pack(many, tmp_path / "out", form=form, shard_mb=SMALL)
    assert summary["session"]["shards"] == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert pack(many, tmp_path / "out", form=form, shard_mb=SMALL)["session"]["shards"] == 0


@pytest.mark.slow
def test_tasks_of_a_cluster_write_the_same_files(many, tmp_path, ray_cluster, monkeypatch):
    pack(many, tmp_path / "whole", shard_mb=SMALL)
    monkeypatch.setattr(run, "_SMALL_BYTES", 0)
    monkeypatch.setattr(run.archives, "map_serial", None)
    assert pack(many, tmp_path / "out", shard_mb=SMALL)["session"]["shards"] == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_are_archives_like_any_other(tmp_path):
    content = archives.files()
    pack(archives.as_list(tmp_path, content), tmp_path / "once", form="webdataset")
    pack(tmp_path / "once/data", tmp_path / "twice")
    pack(tmp_path / "twice/data", tmp_path / "thrice", form="webdataset")
    found = samples(tmp_path / "thrice")
    assert sorted(archives.sha256(sample["data"]) for sample in found) == hashes(content)
    # What was known of a member in the first place is still there, one layer deeper each time.
    first = json.loads(found[0]["beside"]["json"])
    assert set(first) == {"source", "label"}
    assert first["source"]["sha256"] == archives.sha256(found[0]["data"])


def test_names_never_become_paths(tmp_path):
    content = {name.replace("/", "_"): archives.images.jpeg() for name in archives.HOSTILE}
    unsafe = {"../../escape.jpg": b"x", "/etc/absolute.jpg": b"y"}
    tarred = archives.as_tar(tmp_path, content | unsafe)
    summary = pack(tarred, tmp_path / "out", form="webdataset")
    with tarfile.open(tmp_path / "out/data/train-00000-of-00001.tar") as tar:
        names = tar.getnames()
        assert all(re.fullmatch(r"\d{5}-\d{6}-[0-9a-f]{8}\.(jpg|json)", name) for name in names)
        assert len(set(names)) == len(names) == 2 * len(content)
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}
    assert {sample["source"]["member"] for sample in samples(tmp_path / "out")} == set(content)
    refused = {row["member"]: row["status"] for row in unpacked(tmp_path / "out")}
    assert refused == dict.fromkeys(unsafe, "unsafe_member")
    assert summary["packed"] + summary["unpacked"] == summary["members"] == len(content) + 2


def test_unreadable_members_are_listed_and_retried(tmp_path, monkeypatch):
    photos = archives.as_prefix(tmp_path, archives.files() | {"large": b"x" * 20_000})
    changed, gone = photos / "album/000.jpg", photos / "album/001.png"
    kept = gone.read_bytes()

    def changes(function, items):
        changed.write_bytes(b"another")
        gone.unlink()
        yield from map(function, items)

    monkeypatch.setattr(run.archives, "map_serial", changes)
    summary = pack(photos, tmp_path / "out", max_member_bytes=10_000)
    statuses = ["source_changed", "source_missing", "image_too_large"]
    expected = dict(zip((str(changed), str(gone), str(photos / "large")), statuses, strict=True))
    assert {row["uri"]: row["status"] for row in unpacked(tmp_path / "out")} == expected
    assert all(row["detail"] for row in unpacked(tmp_path / "out"))
    assert (summary["packed"], summary["statuses"]) == (7, dict.fromkeys(statuses, 1))
    monkeypatch.undo()
    assert pack(photos, tmp_path / "out")["packed"] == 7
    gone.write_bytes(kept)
    summary = pack(photos, tmp_path / "out", retry=True)
    assert (summary["session"]["shards"], summary["packed"] + summary["unpacked"]) == (1, 10)


def test_directory_belongs_to_one_command(tmp_path):
    photos = archives.as_prefix(tmp_path, archives.files(3))
    with pytest.raises(ConfigError, match="no such file"):
        pack(tmp_path / "fotos", photos / "out")  # and nothing is claimed by a misspelt source
    begun = pack(photos, photos / "out", form="webdataset", container_limits={"max_ratio": 50.0})
    assert begun["members"] == 3  # without what lies in the output
    again = pack(photos, photos / "out")
    assert (again["form"], again["packed"]) == ("webdataset", begun["packed"])
    assert again["session"]["shards"] == 0
    for settings in ({"form": "parquet"}, {"shard_mb": 1.0}, {"exclude": ("*.txt",)}):
        with pytest.raises(IdentityError, match=next(iter(settings))):
            pack(photos, photos / "out", **settings)
    with pytest.raises(IdentityError, match=r"max_ratio: this command 60\.0, the directory 50\.0"):
        pack(photos, photos / "out", container_limits={"max_ratio": 60.0})
    with pytest.raises(IdentityError, match="source"):
        pack(photos / "album", photos / "out")
    # Version 0.17 wrote other shards, whose source may be gone by now.
    claim = photos / "out/pack.json"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"format": 1}))
    with pytest.raises(IdentityError, match="format: this command 2, the directory 1"):
        pack(photos, photos / "out")


def test_full_disk_stops_and_the_same_command_resumes(tmp_path):
    files = {f"{index:03}": bytes([index]) * 8000 for index in range(100)}
    photos = archives.as_prefix(tmp_path, files)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(StorageError, match="too large") as stopped:
            pack(photos, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "TMPDIR" in stopped.value.hint
    assert RESUMABLE in stopped.value.__notes__
    assert pack(photos, tmp_path / "out")["packed"] == 100


def test_packs_from_and_to_a_bucket(tmp_path, s3):
    client, bucket = s3.client(), s3.bucket("packing")
    content = archives.files()
    for name, data in content.items():
        client.put_object(Bucket="packing", Key=f"photos/{name}", Body=data)
    summary = pack(f"{bucket}/photos", f"{bucket}/out")
    assert (summary["packed"], summary["unpacked"]) == (9, 0)
    (tmp_path / "data").mkdir()
    shard = "out/data/train-00000-of-00001.parquet"
    client.download_file("packing", shard, str(tmp_path / "data/one.parquet"))
    found = [archives.sha256(sample["data"]) for sample in samples(tmp_path)]
    assert sorted(found) == hashes(content)


def test_row_groups_are_small_and_indexed(many, tmp_path):
    pack(many, tmp_path / "out")
    metadata = pq.ParquetFile(tmp_path / "out/data/train-00000-of-00001.parquet").metadata
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [100] * 3
    image = groups[0].column(0)
    assert image.has_offset_index
    assert (image.path_in_schema, image.compression) == ("image.bytes", "UNCOMPRESSED")
    assert json.loads(metadata.metadata[b"huggingface"])
