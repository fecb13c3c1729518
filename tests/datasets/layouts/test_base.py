import pytest

from ray_app.archives import Archive, ListedMember
from ray_app.datasets.labels import Labels, prompt_group
from ray_app.datasets.layouts import make_layout
from ray_app.errors import ConfigError
from ray_app.storage.urls import get_scheme
from tests.datasets.layouts.telling import fields, refused, row, told
from tests.make.published import picture, write_files, write_parquet, write_shard, write_zip


def test_columns_of_a_list(tmp_path):
    write_files(tmp_path, "a.png", "b.png", "m.png")
    (tmp_path / "list.csv").write_text(
        f"path,label,generator,mask,prompt,split,group\na.png,Fake,sdxl,{tmp_path}/m.png,A cat,train,g1\nb.png,0,camera,m.png,a cat,test,\n"
    )
    found = told(make_layout("columns", {}), tmp_path / "list.csv")
    assert fields(found, "label", "generator", "mask_uri", "prompt", "split", "group") == {
        "a.png": ("fake", "sdxl", f"{tmp_path}/m.png", "A cat", "train", "g1"),
        "b.png": ("real", "real:camera", None, "a cat", "test", prompt_group("a cat")),
    }
    assert found["b.png"][1] == "test"


def test_columns_by_other_names_with_masks_below_a_root(tmp_path):
    names = {"label": "kind", "mask": "where", "root": str(tmp_path / "masks")}
    layout = make_layout("columns", names)
    for mask in ("x/1.png", "file:x/1.png"):
        assert layout.labels(row(kind="fake", where=mask)).mask_uri == f"{tmp_path}/masks/x/1.png"
    assert layout.labels(row(kind="fake", where="s3://b/1.png")).mask_uri == "s3://b/1.png"
    assert "relative" in refused(make_layout("columns", {}), row(label="fake", mask="x/1.png"))


def test_columns_follow_class_names_of_a_table(tmp_path):
    columns = {"image": [picture(0), picture(1)], "label": [0, 1]}
    write_parquet(tmp_path / "x.parquet", columns, labels=["fake", "real"])
    found = told(make_layout("columns", {}), tmp_path)
    assert [labels.label for labels, _ in found.values()] == ["fake", "real"]


def test_columns_of_a_webdataset_are_fields_of_sidecars(tmp_path):
    fields_of_a = {"label": 1, "generator": "sdxl", "prompt": "A cat"}
    write_shard(tmp_path / "00000.tar", a=fields_of_a, b={"label": 0})
    found = told(make_layout("columns", {}), tmp_path)
    expected = {"a.png": ("fake", "sdxl", prompt_group("a cat")), "b.png": ("real", "real", None)}
    assert fields(found, "label", "generator", "group") == expected


@pytest.mark.parametrize("sidecar", ["[1, 2]", "label: real"])
def test_sidecar_without_fields_is_refused(tmp_path, sidecar):
    with pytest.raises(ConfigError, match=r"00000\.tar/a\.png: .* is not a JSON object"):
        told(make_layout("columns", {}), write_shard(tmp_path / "00000.tar", a=sidecar))


@pytest.mark.parametrize(
    "mask", ["https://host/m.png?X-Amz-Signature=a1b2", "https://me:a1b2@host/m.png"]
)
def test_keys_of_masks_are_not_kept(mask):
    message = refused(make_layout("columns", {}), row(label="fake", mask=mask))
    assert "the URL of its mask https://host/m.png has a secret" in message
    assert "a1b2" not in message


@pytest.mark.parametrize("word", ["nan", "None", "N/A", "-", " "])
def test_missing_words_of_columns_are_no_labels(word):
    columns = dict.fromkeys(("generator", "mask", "split", "group"), word)
    labels = make_layout("columns", {}).labels(row(label="fake", prompt="none", **columns))
    assert labels == Labels("fake", "unknown", prompt="none", group=prompt_group("none"))


def test_columns_without_valid_labels_are_refused():
    layout = make_layout("columns", {})
    assert "no column 'label'" in refused(layout, row(lable="real"))
    assert "row 7" in refused(layout, row(label="maybe"))
    assert "generator is 'real'" in refused(layout, row(label="fake", generator="real"))


ELSEWHERE = ["/etc/hostname", "file:///etc/hostname", "local:///etc/x", "s3://b/m.png"]
ELSEWHERE += ["http://169.254.169.254/x", "/data/b.parquet#row=0&column=m"]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_archive_may_not_name_masks_elsewhere(place, tmp_path):
    layout = make_layout("columns", {})
    for column in ("mask", "mask_uri"):
        assert f"may not name the mask {place}" in refused(
            layout, row(label="fake", **{column: place})
        )
    if get_scheme(place) in ("file", "local"):
        assert "may not name" in refused(
            make_layout("columns", {"root": str(tmp_path)}), row(label="fake", mask=place)
        )
        remote = ListedMember("s3://b/a.png", None, 0, "", -1, {"label": "fake", "mask": place})
        assert "may not name" in refused(layout, remote)
    own = row(label="fake")
    own.input["mask_uri"] = f"{own.uri}#row={own.member}&column=mask"
    assert layout.labels(own).mask_uri == own.input["mask_uri"]


def test_folders(tmp_path):
    images = ("train/real/a.jpg", "train/fake/sdxl/b.png", "train/1_fake/c.png")
    write_files(tmp_path, *images, "train/fake/notes.txt", "train/real/.DS_Store")
    write_zip(tmp_path / "more.zip", "val/0_real/d.jpg")
    found = told(make_layout("folders", {"split_folder": -1}), tmp_path)
    assert fields(found, "label", "generator", "split") == {
        "a.jpg": ("real", "real", "train"),
        "b.png": ("fake", "sdxl", "train"),
        "c.png": ("fake", "unknown", "train"),
        "d.jpg": ("real", "real", "val"),
    }


def test_container_is_a_folder_and_shard_is_none(tmp_path):
    write_shard(tmp_path / "train/real/00000.tar", a={})
    write_shard(tmp_path / "train/fake/sd_1.5/part-000017.tar", b={})
    write_shard(tmp_path / "test/fake/shard-00000-of-00002.tar", **{"flux/c": {}})
    write_zip(tmp_path / "test/fake/v6.1.zip", "d.png")
    write_zip(tmp_path / "test/real.zip", "e.png")
    found = told(make_layout("folders", {"split_folder": -1}), tmp_path)
    assert fields(found, "label", "generator", "split") == {
        "a.png": ("real", "real", "train"),
        "b.png": ("fake", "sd_1.5", "train"),
        "c.png": ("fake", "flux", "test"),
        "d.png": ("fake", "v6.1", "test"),
        "e.png": ("real", "real", "test"),
    }


def test_folders_without_class_are_refused(tmp_path):
    write_files(tmp_path, "other/a.jpg")
    [item] = Archive([str(tmp_path)])
    assert "must be in a folder named real" in refused(make_layout("folders", {}), item)
