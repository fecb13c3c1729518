import hashlib
import io
import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.archives import (
    Archive,
    BlockPlan,
    MemberReader,
    read_block,
    read_blocks,
    read_referenced,
    rows_to_members,
)
from ray_app.datasets import (
    INPUT,
    DatasetSource,
    build_index,
    index,
    index_source,
    labelling,
    make_layout,
    read_index,
    read_info,
    write_index,
)
from ray_app.datasets.label_reader import LabelIndex
from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Fetcher, Store
from tests.archives.given import backwards
from tests.make.published import encoded, picture, write_files, write_json, write_parquet


def labels_of(table):
    return table["input"].combine_chunks().to_pylist()


def indexed(tmp_path, *sources, layout="folders", arguments=None, out="index", **settings):
    """An index of sources, and what was said of it."""
    store, archive = Store.open(str(tmp_path / out)), Archive([str(one) for one in sources])
    return store, write_index(store, archive, make_layout(layout, arguments or {}), **settings)


def folder_set(folder, each=2):
    """Reals and the fakes of two generators, in folders."""
    kinds = ("real", "fake/sdxl", "fake/flux")
    return write_files(
        folder, *(f"{kind}/{number}.png" for kind in kinds for number in range(each))
    )


def test_index_gives_images_masks_and_labels(tmp_path):
    images, mask = [picture(number) for number in range(3)], picture(9, "L")
    keys = ["partial/sd3/fake/1.jpg", "entire/sd3/fake/2.jpg", "partial/sd3/real/1.jpg"]
    columns = {"key": keys, "image": images, "mask": [mask, None, mask], "label": [1, 1, 0]}
    path = tmp_path / "OpenSDI_test/data/sd3-00000-of-00001.parquet"
    shard = write_parquet(path, columns, ("image", "mask"), ["real", "fake"])
    store, info = indexed(tmp_path, shard.parent, layout="opensdi")
    rows = read_index(store.url)
    assert rows.schema.field("input").type == INPUT
    read = [
        data for _, data in MemberReader(Fetcher(), max_bytes=10**6).read(rows_to_members(rows))
    ]
    assert [Image.open(io.BytesIO(data)).tobytes() for data in read] == [
        one.tobytes() for one in images
    ]
    said = labels_of(rows)
    assert [one["label"] for one in said] == ["fake", "fake", "real"]
    stored = read_referenced(said[0]["mask_uri"], Fetcher())
    assert Image.open(io.BytesIO(stored)).tobytes() == mask.tobytes()
    assert [one["mask_uri"] for one in said[1:]] == [None, None]
    assert info == read_info(store)
    assert list(info.counts) == [
        {"split": "test", "label": "fake", "generator": "sd3", "rows": 2},
        {"split": "test", "label": "real", "generator": "real", "rows": 1},
    ]
    assert list(info.published) == [
        {"subset": "test/sd3", "rows": 3, "published": 20_000, "agrees": False}
    ]
    assert not [path for path in (tmp_path / "index/listing").rglob("*") if path.is_file()]


def test_index_names_a_generator_in_several_spellings(tmp_path):
    source = tmp_path / "set"
    write_files(source, *(f"fake/{name}/1.png" for name in ("sd15", "SD15", "nan", "flux")))
    _, info = indexed(tmp_path, source)
    assert {entry["generator"] for entry in info.counts} == {"sd15", "SD15", "unknown", "flux"}
    assert info.fault_lines() == [
        "names that may mean one generator count as different generators: SD15, sd15"
    ]


def test_an_index_of_an_older_version_has_null_in_later_fields(tmp_path, monkeypatch):
    """Read, divided, joined with a newer one, and as labels of an evaluation."""
    older = pa.struct([one for one in INPUT if one.name != "architecture"])
    monkeypatch.setattr(labelling, "INPUT", older)
    monkeypatch.setattr(index, "INPUT", older)
    source = folder_set(tmp_path / "set")
    store, _ = indexed(tmp_path, source)
    monkeypatch.undo()
    assert read_block(store, read_blocks(store, 0)[0]).schema.field("input").type == older
    newer, _ = indexed(tmp_path, source, out="newer")
    rows = read_index(store.url)
    assert rows.equals(read_index(newer.url))
    both = DatasetSource(at=[store.url, newer.url])
    assert len(index_source(both, Store.open(str(tmp_path / "none")))) == 2 * len(rows)
    index.write_split_index(newer, store, pa.array(["train"] * len(rows)), {})
    assert [one["split"] for one in labels_of(read_index(newer.url))] == ["train"] * len(rows)
    labels = pa.concat_tables(LabelIndex(store.url).tables(["image_id", "label", "architecture"]))
    assert labels["architecture"].null_count == len(rows)
    assert labels["label"].to_pylist() == [one["label"] for one in labels_of(rows)]


def test_missing_and_unlisted_files_are_counted(tmp_path):
    file = write_json(tmp_path / "mj.json", {"1": {}, "2": {}, "3": {}})
    images = write_files(tmp_path / "images", "1.png", "3.png", "4.png", "5.png", "notes.txt")
    _, info = indexed(tmp_path, images, layout="dflip", arguments={"file": str(file)})
    assert list(info.published) == [{"subset": "all", "rows": 2, "published": 3, "agrees": False}]
    assert list(info.left_out) == [
        {"why": "no labelled image (.png)", "files": 2, "example": f"{images}/4.png"},
        {"why": "no labelled image (.txt)", "files": 1, "example": f"{images}/notes.txt"},
    ]
    assert info.agrees is False


def test_unknown_label_is_refused_and_leaves_no_index(tmp_path):
    """It comes in the second block of the listing."""
    labels = {
        "uri": [f"s3://bucket/{number:06}.jpg" for number in range(5_000)],
        "label": ["real"] * 4_999 + ["perhaps"],
    }
    pq.write_table(pa.table(labels), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"004999\.jpg, column 'label': 'perhaps' is not a label"):
        indexed(tmp_path, tmp_path / "x.parquet", layout="columns")
    assert read_info(Store.open(str(tmp_path / "index"))) is None
    with pytest.raises(ConfigError, match="no index"):
        read_index(str(tmp_path / "index"))


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (("run.json", "manifest/0/_complete"), r"a scored run \(run\.json\)"),
        (("train.json",), r"a training \(train\.json\)"),
        (("manifest/mine.txt",), "manifest contains mine.txt"),
        (("listing/mine.txt",), "listing contains mine.txt"),
    ],
)
def test_index_keeps_files_of_others(tmp_path, theirs, reason):
    out = write_files(tmp_path / "out", *theirs)
    source = DatasetSource(at=(str(folder_set(tmp_path / "set")),), layout="folders")
    with pytest.raises(ConfigError, match=reason):
        build_index(source, Store.open(str(out)))
    left = [path for path in out.rglob("*") if path.is_file()]
    assert {str(path.relative_to(out)) for path in left} == set(theirs)


def test_source_without_labelled_image_is_refused(tmp_path):
    images = write_files(tmp_path / "images", "a.jpg")
    file = str(write_json(tmp_path / "meta/list.json", [["a.jpg", "Negative"]]))
    listed = {"layout": "imdlbenco-json", "arguments": {"file": file}}
    with pytest.raises(ConfigError, match=r"1 × no labelled image \(.jpg\)") as raised:
        indexed(tmp_path, images, **listed)
    assert f"{tmp_path}/meta/a.jpg" in raised.value.hint
    listed["arguments"]["root"] = str(images)
    assert indexed(tmp_path, images, **listed)[1].agrees


def test_hashes(tmp_path):
    source = folder_set(tmp_path / "set")
    picture(1).save(source / "real/again.jpg", quality=95)  # real/1.png in another format
    (source / "real/broken.png").write_bytes(encoded(3)[:200])
    store, info = indexed(tmp_path, source, hashes=("sha256", "phash"))
    found = {
        row["uri"].removeprefix(f"{source}/"): row["input"]
        for row in read_index(store.url).to_pylist()
    }
    data = (source / "fake/sdxl/0.png").read_bytes()
    assert found["fake/sdxl/0.png"]["sha256"] == hashlib.sha256(data).hexdigest()
    names = ("real/again.jpg", "real/1.png", "real/0.png")
    bits = [int(found[name]["phash"], 16) for name in names]
    assert (bits[0] ^ bits[1]).bit_count() <= 4 < (bits[0] ^ bits[2]).bit_count()
    assert found["real/broken.png"]["label"] == "real"
    assert found["real/broken.png"]["phash"] is None
    assert [(one["why"], one["files"]) for one in info.unreadable] == [("truncated_image", 1)]
    assert info.unreadable[0]["example"].startswith(f"{source}/real/broken.png: ")


def test_unreadable_container_is_reported(tmp_path):
    source = folder_set(tmp_path / "set")
    (source / "fake/more.zip").write_bytes(b"PK\3\4 and no more")
    _, info = indexed(tmp_path, source)
    assert info.rows == 6
    [told] = info.left_out
    assert told["example"] == f"{source}/fake/more.zip"
    assert told["why"].startswith(("corrupt_image", "truncated_image"))


def test_row_without_an_image_stays_a_row(tmp_path):
    columns = {"image": [picture(), None], "label": [0, 1], "generator": ["real", "g"]}
    shard = write_parquet(tmp_path / "train-00000-of-00001.parquet", columns)
    store, info = indexed(tmp_path, shard, layout="columns")
    assert (info.rows, info.agrees) == (2, None)
    assert [one["why"] for one in info.unreadable] == ["source_missing"]
    refused = read_index(store.url)["refused"].to_pylist()
    assert [one and one["status"] for one in refused] == [None, "source_missing"]


def test_digest_is_of_members_and_labels_alone(tmp_path):
    source, said = folder_set(tmp_path / "set", each=30), []
    _, first = indexed(tmp_path, source, progress=lambda *doing: said.append(doing))
    assert ("listed", 90) in said
    assert said[-1] == ("labelled", 90)
    tasks = {"each": backwards, "reading": backwards, "hashes": ("sha256",)}
    assert indexed(tmp_path, source, out="tasks", **tasks)[1].digest == first.digest
    ids = [read_index(f"{tmp_path}/{name}")["image_id"] for name in ("index", "tasks")]
    assert ids[0].equals(ids[1])
    _, other = indexed(tmp_path, source, out="other", arguments={"generator": "one"})
    assert other.digest != first.digest
    assert indexed(tmp_path, source, out="some", limit=50)[1].rows == 50


def test_images_of_several_blocks_are_hashed(tmp_path, monkeypatch):
    source, seen = folder_set(tmp_path / "set", each=30), []

    def reading(labeller, refs):
        seen.append(len(refs))
        return backwards(labeller, refs)

    plan = BlockPlan(batch_slots=1, max_block_members=32, blocks_per_doubling=1)
    monkeypatch.setattr(index, "_LISTING_PLAN", plan)
    store, _ = indexed(tmp_path, source, reading=reading, hashes=("sha256",))
    assert seen == [5]
    assert all(row["sha256"] for row in labels_of(read_index(store.url)))


@pytest.mark.parametrize(
    ("again", "told"),
    [
        ("a.png,fake,,", "generator real, split train] and as [label fake, generator unknown]"),
        ("a.png,real,train,g7", "] and as [label real, generator real, split train, group g7]"),
        ("a.png,unsure,train,", "'unsure' is not a label"),
    ],
)
def test_member_named_twice_may_not_have_other_labels(tmp_path, again, told):
    write_files(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text(
        f"path,label,split,group\na.png,real,train,\nb.png,fake,train,\n{again}\n"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{tmp_path}/a.png')}.*{re.escape(told)}"):
        indexed(tmp_path, tmp_path / "list.csv", layout="columns")
    assert indexed(tmp_path, tmp_path / "list.csv", layout="columns", limit=2)[1].rows == 2
    (tmp_path / "list.csv").write_text("path,label\na.png,real\na.png,real\n")
    info = indexed(tmp_path, tmp_path / "list.csv", layout="columns")[1]
    assert (info.rows, info.repeated) == (1, 1)


def test_a_list_that_a_spreadsheet_saved_is_labelled(tmp_path):
    write_files(tmp_path, "a.png", "b.png")
    lines = ["Path;Label;Generator;Split", "a.png;0.0;;train", "b.png;1.0;flux;test"]
    (tmp_path / "list.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    store, _ = indexed(tmp_path, tmp_path / "list.csv", layout="columns")
    rows = labels_of(read_index(store.url))
    found = sorted((row["label"], row["generator"], row["split"]) for row in rows)
    assert found == [("fake", "flux", "test"), ("real", "real", "train")]


class TestSources:
    @pytest.fixture
    def folders(self, tmp_path):
        names = ["a/real/1.png", "a/fake/sdxl/2.png", "a/fake/flux/3.png"]
        at = write_files(tmp_path / "set", *names, "b/real/4.png", "b/fake/sdxl/5.png")
        return DatasetSource(at=str(at), layout="folders", arguments={"split_folder": -1})

    def test_a_source_is_indexed_once(self, folders, tmp_path):
        store = Store.open(str(tmp_path / "data/train-0"))
        first = index_source(folders, store)
        (tmp_path / "set/a/real/1.png").unlink()
        assert index_source(folders, store).equals(first)
        with pytest.raises(IdentityError, match="layout: 'folders' there, 'columns' here"):
            index_source(DatasetSource(at=folders.at), store)

    @pytest.mark.parametrize("at", ["data", "set/a/index"])
    def test_unfinished_index_is_written_again(self, folders, tmp_path, at):
        """Also if the index is inside its own source."""
        store = Store.open(str(tmp_path / at))
        assert [build_index(folders, store).rows for _ in range(2)] == [5, 5]
        store.delete("index.json")
        (tmp_path / "set/a/real/1.png").unlink()
        assert (build_index(folders, store).rows, len(read_index(store.url))) == (4, 4)

    def test_splits_and_generators_are_chosen(self, folders, tmp_path):
        store = Store.open(str(tmp_path / "data"))
        of = [("a", ()), (None, ("sdxl",)), ("b", ("sdxl",))]
        found = [
            index_source(folders.model_copy(update={"split": split, "generators": names}), store)
            for split, names in of
        ]
        names = [sorted(row["uri"][-5:-4] for row in table.to_pylist()) for table in found]
        assert names == [["1", "2", "3"], ["1", "2", "4", "5"], ["4", "5"]]
        for wrong, said, hint in [
            ({"split": "c"}, "no image has the split 'c'", "use one of a, b"),
            (
                {"generators": ("sdxi",)},
                "no image has the generator 'sdxi'",
                "try a similar name: sdxl",
            ),
        ]:
            with pytest.raises(ConfigError, match=said) as raised:
                index_source(folders.model_copy(update=wrong), store)
            assert raised.value.hint == hint

    def test_an_index_is_a_source(self, folders, tmp_path):
        store, nowhere = Store.open(str(tmp_path / "data")), Store.open(str(tmp_path / "nowhere"))
        build_index(folders, store)
        assert len(index_source(DatasetSource(at=store.url, split="b"), nowhere)) == 2
        assert not (tmp_path / "nowhere").exists()
        for wrong, said in [
            ({"limit": 1}, "limit must be set when it is made"),
            ({"hashes": ("phash",)}, "the index has no column phash"),
            ({"at": (store.url, *folders.at)}, "is an index, but"),
        ]:
            with pytest.raises(ConfigError, match=said):
                index_source(DatasetSource(**{"at": store.url} | wrong), nowhere)

    def test_secrets_are_not_kept(self, tmp_path):
        file = write_json(tmp_path / "mj.json", {"1": {}})
        write_files(tmp_path / "set", "1.png")
        arguments = {"file": str(file), "root": "https://user:hunter2@host/x?sig=a1b2c3"}
        build_index(
            DatasetSource(at=str(tmp_path / "set"), layout="dflip", arguments=arguments),
            Store.open(str(tmp_path / "index")),
        )
        written = (tmp_path / "index/index.json").read_text()
        assert "https://host/x" in written
        assert "hunter2" not in written
        assert "a1b2c3" not in written

    def test_labels_and_images_of_a_bucket_are_indexed(self, tmp_path, s3):
        s3.bucket("labelled")
        client = s3.client()
        objects = {"labels.csv": b"filename,typ\n1.png,real\n2.png,flux\n"}
        objects |= {"real/1.png": encoded(), "flux/2.png": encoded(1)}
        for name, data in objects.items():
            client.put_object(Bucket="labelled", Key=f"images/{name}", Body=data)
        at, hashed = "s3://labelled/images/", {"hashes": ("sha256",)}
        arguments = {"file": f"{at}labels.csv"}
        source = DatasetSource(at=at, layout="openfake-csv", arguments=arguments, **hashed)
        info = build_index(source, Store.open("s3://labelled/index"))
        assert (info.rows, info.agrees) == (2, True)
        rows = index_source(DatasetSource(at="s3://labelled/index"), Store.open(str(tmp_path)))
        assert [one["sha256"] for one in labels_of(rows)] == [
            hashlib.sha256(encoded(number)).hexdigest() for number in (1, 0)
        ]

    def test_shipped_sample_is_a_source(self, tmp_path):
        store = Store.open(str(tmp_path / "data"))
        rows = index_source(DatasetSource(at="sample::", split="test"), store)
        counts = Counter(row["label"] for row in labels_of(rows))
        assert min(counts["real"], counts["fake"]) >= 12
        assert all(
            not isinstance(data, Exception)
            for _, data in MemberReader(Fetcher(), max_bytes=10**7).read(rows_to_members(rows))
        )
        assert read_info(store).source["at"] == ["sample::"]

    def test_simulated_set_is_refused_with_the_sample_archive(self, tmp_path):
        source = DatasetSource(at="simulated::", arguments={"pairs": {"train": 2}})
        for step in (index.check_source, build_index):
            with pytest.raises(ConfigError, match="'simulated::' is retired") as caught:
                step(source, Store.open(str(tmp_path / "data")))
            assert "touchstone demo --archive-only --out sample" in caught.value.hint


def test_an_index_of_another_version_is_refused(tmp_path):
    store, _ = indexed(tmp_path, folder_set(tmp_path / "set"))
    store.write("index.json", json.dumps({"format": 99, "digest": ""}).encode())
    with pytest.raises(ConfigError, match="another version"):
        read_index(store.url)


def test_foreign_index_json_is_no_index(tmp_path):
    folder = folder_set(tmp_path / "set")
    file = write_json(folder / "index.json", [["real/1.png", "Negative"]])
    source = DatasetSource(at=str(folder), layout="folders")
    assert len(index_source(source, Store.open(str(tmp_path / "index")))) == 6
    with pytest.raises(ConfigError, match="is not an index of Touchstone"):
        build_index(source, Store.open(str(folder)))
    assert json.loads(file.read_text()) == [["real/1.png", "Negative"]]
