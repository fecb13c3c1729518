import io
import json
import pickle
import tarfile

import pytest

from ray_app.archives import Archive, Listed
from ray_app.archives.members import Place
from ray_app.datasets.labels import prompt_group
from ray_app.datasets.layouts import LAYOUTS, make_layout
from ray_app.datasets.layouts.hub import config_of, split_of
from ray_app.errors import ConfigError
from tests.datasets.published import encoded, picture, write_files, write_json, write_parquet, write_zip

PICTURES = [picture(number) for number in range(4)]


def told(layout, *sources, **settings):
    """What a layout, sent to a task, says of each member that it labels, by the end of its name; and the subset each counts to."""
    items = list(Archive([str(source) for source in sources], **settings))
    layout = pickle.loads(pickle.dumps(layout.prepared(items)))
    found = {}
    for item in items:
        if (labels := layout.labels(item)) is not None:
            found[(item.member or item.uri).rpartition("/")[2]] = (labels, layout.subset(item, labels))
    return found


def row(place="/data/train-00000-of-00001.parquet", **columns):
    return Listed(place, "7", 0, "", -1, columns, Place("parquet", 7))


def refused(layout, item):
    with pytest.raises(ConfigError) as raised:
        layout.labels(item)
    return raised.value.message


def write_shard(path, **samples):
    """A WebDataset shard: of each key a picture and a sidecar, the fields or text given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for key, sidecar in samples.items():
            said = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
            for name, data in ((f"{key}.png", encoded()), (f"{key}.json", said.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


# columns


def test_columns_of_a_list(tmp_path):
    write_files(tmp_path, "a.png", "b.png", "m.png")
    (tmp_path / "list.csv").write_text(
        f"path,label,generator,mask,prompt,split,group\na.png,Fake,sdxl,{tmp_path}/m.png,A cat,train,g1\nb.png,0,camera,m.png,a cat,test,\n"
    )
    found = told(make_layout("columns", {}), tmp_path / "list.csv")
    fake, real = found["a.png"][0], found["b.png"][0]
    assert (fake.label, fake.generator, fake.mask_uri, fake.prompt, fake.split, fake.group) == (
        "fake", "sdxl", f"{tmp_path}/m.png", "A cat", "train", "g1",
    )  # fmt: skip
    assert (real.label, real.generator, real.mask_uri, real.group) == ("real", "real:camera", None, prompt_group("a cat"))
    assert found["b.png"][1] == "test"


def test_columns_by_other_names_with_masks_below_a_root(tmp_path):
    layout = make_layout("columns", {"label": "kind", "mask": "where", "root": str(tmp_path / "masks")})
    assert layout.labels(row(kind="fake", where="x/1.png")).mask_uri == f"{tmp_path}/masks/x/1.png"
    assert layout.labels(row(kind="fake", where="s3://b/1.png")).mask_uri == "s3://b/1.png"
    assert "relative" in refused(make_layout("columns", {}), row(label="fake", mask="x/1.png"))


def test_columns_follow_the_names_that_a_table_gives_its_numbers(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": PICTURES[:2], "label": [0, 1]}, labels=["fake", "real"])
    assert [labels.label for labels, _ in told(make_layout("columns", {}), tmp_path).values()] == ["fake", "real"]


def test_columns_of_a_webdataset_are_the_fields_of_its_sidecars(tmp_path):
    write_shard(tmp_path / "00000.tar", a={"label": 1, "generator": "sdxl", "prompt": "A cat"}, b={"label": 0})
    found = told(make_layout("columns", {}), tmp_path)
    assert {name: (one.label, one.generator, one.group) for name, (one, _) in found.items()} == {
        "a.png": ("fake", "sdxl", prompt_group("a cat")),
        "b.png": ("real", "real", None),
    }


@pytest.mark.parametrize("sidecar", ["[1, 2]", "label: real", '"real"'])
def test_a_sidecar_without_fields_is_refused(tmp_path, sidecar):
    with pytest.raises(ConfigError, match=r"00000\.tar/a\.png: the \.json beside it is no JSON object"):
        told(make_layout("columns", {}), write_shard(tmp_path / "00000.tar", a=sidecar))


@pytest.mark.parametrize("mask", ["https://host/m.png?X-Amz-Signature=a1b2", "https://me:a1b2@host/m.png"])
def test_keys_of_masks_are_not_kept(mask):
    message = refused(make_layout("columns", {}), row(label="fake", mask=mask))
    assert "its mask https://host/m.png is named with a key" in message
    assert "a1b2" not in message


def test_columns_refuse_what_is_not_said():
    layout = make_layout("columns", {})
    assert "no column 'label'" in refused(layout, row(lable="real"))
    assert "row 7" in refused(layout, row(label="maybe"))
    assert "generator is 'real'" in refused(layout, row(label="fake", generator="real"))


# folders


def test_folders(tmp_path):
    write_files(tmp_path, "train/real/a.jpg", "train/fake/sdxl/b.png", "train/1_fake/c.png", "train/fake/notes.txt", "train/real/.DS_Store")
    write_zip(tmp_path / "more.zip", "val/0_real/d.jpg")
    found = told(make_layout("folders", {"split_folder": -1}), tmp_path)
    assert {name: (one.label, one.generator, one.split) for name, (one, _) in found.items()} == {
        "a.jpg": ("real", "real", "train"),
        "b.png": ("fake", "sdxl", "train"),
        "c.png": ("fake", "unknown", "train"),
        "d.jpg": ("real", "real", "val"),
    }


def test_a_container_is_a_folder_and_a_shard_is_none(tmp_path):
    write_shard(tmp_path / "train/real/00000.tar", a={})
    write_shard(tmp_path / "train/fake/sd_1.5/part-000017.tar", b={})
    write_shard(tmp_path / "test/fake/shard-00000-of-00002.tar", **{"flux/c": {}})
    write_zip(tmp_path / "test/fake/v6.1.zip", "d.png")
    write_zip(tmp_path / "test/real.zip", "e.png")
    found = told(make_layout("folders", {"split_folder": -1}), tmp_path)
    assert {name: (one.label, one.generator, one.split) for name, (one, _) in found.items()} == {
        "a.png": ("real", "real", "train"),
        "b.png": ("fake", "sd_1.5", "train"),
        "c.png": ("fake", "flux", "test"),
        "d.png": ("fake", "v6.1", "test"),
        "e.png": ("real", "real", "test"),
    }


def test_folders_know_no_default(tmp_path):
    write_files(tmp_path, "other/a.jpg")
    [item] = Archive([str(tmp_path)])
    assert "in no folder called real" in refused(make_layout("folders", {}), item)


def test_folders_of_community_forensics(tmp_path):
    write_files(tmp_path, "SDXL-lora-7/fake/a.png", "LAION/real/b.png", "index.csv")
    found = told(make_layout("community-forensics-folders", {}), tmp_path, include=["**/*"])
    assert {name: (one.label, one.generator) for name, (one, _) in found.items()} == {
        "a.png": ("fake", "SDXL-lora-7"),
        "b.png": ("real", "real:LAION"),
    }


# OpenFake


def test_openfake_on_the_hub(tmp_path):
    common = {"prompt": ["A dog", "a dog", None], "label": ["fake", "real", "fake"], "model": ["flux.1-dev", "real", "sd-3.5"]}
    v1 = write_parquet(tmp_path / "data/test-00000-of-00002.parquet", {"image": PICTURES[:3]} | common)
    v2 = write_parquet(
        tmp_path / "core/validation-00001-of-00009.parquet",
        {"image": PICTURES[:3]} | common | {"type": ["Base", "real", "LoRA"], "release_date": [None, None, "2025"]},
    )
    first = list(told(make_layout("openfake", {"version": "v1"}), v1).values())
    assert [(one.label, one.generator, one.split, subset) for one, subset in first] == [
        ("fake", "flux.1-dev", "test", "default/test"),
        ("real", "real", "test", "default/test"),
        ("fake", "sd-3.5", "test", "default/test"),
    ]
    assert first[0][0].group == first[1][0].group is not None
    assert first[2][0].group is None
    assert [subset for _, subset in told(make_layout("openfake", {"version": "v2"}), v2).values()] == ["core/validation"] * 3


@pytest.mark.parametrize(("value", "label"), [("full_synthetic", "fake"), ("Tampered", "fake"), (1, "fake"), (0, "real"), ("REAL", "real")])
def test_openfake_labels_of_either_version(value, label):
    assert make_layout("openfake", {}).labels(row(label=value, model="m" if label == "fake" else "real")).label == label


def test_openfake_takes_no_unknown_label_for_the_one_or_the_other():
    layout = make_layout("openfake", {})
    assert "'unsure' is no label" in refused(layout, row(label="unsure", model="m"))
    assert "its model is 'real'" in refused(layout, row(label="fake", model="real"))


def test_openfake_label_file_of_version_1(tmp_path):
    write_files(tmp_path, "images/real/a.jpg", "images/flux/a.jpg", "images/flux/unlisted.jpg")
    csv = tmp_path / "images/labels.csv"
    csv.write_text("filename,typ\na.jpg,real\na.jpg,flux\ngone.jpg,flux\n")
    layout = make_layout("openfake-csv", {"file": str(csv)})
    found = {item.uri: layout.labels(item) for item in Archive([str(tmp_path / "images")])}
    assert {uri.removeprefix(f"{tmp_path}/images/"): labels and labels.generator for uri, labels in found.items()} == {
        "flux/a.jpg": "flux",
        "flux/unlisted.jpg": None,
        "labels.csv": None,
        "real/a.jpg": "real",
    }
    assert layout.published == {"all": 3}


def test_openfake_split_file_of_version_2_as_the_source(tmp_path):
    write_files(tmp_path, "001999999.jpg", "pexels-7.jpg", "b.png")
    (tmp_path / "test.csv").write_text(
        "file_name,prompt,label,model,type,release_date\n"
        "001999999.jpg,,real,pexels,real,\npexels-7.jpg,,real,pexels,real,\nb.png,a dog,synthetic,veo-3,Base,2025-05\n"
    )
    found = told(make_layout("openfake-csv", {"split": "test"}), tmp_path / "test.csv")
    generators = {name: one.generator for name, (one, _) in found.items()}
    # The number of a row of version 1 falls among those that the rule takes for pexels.
    assert generators == {"001999999.jpg": "real", "pexels-7.jpg": "real:pexels", "b.png": "veo-3"}
    assert {subset for _, subset in found.values()} == {"test"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,typ\na.jpg,\n", "line 2: no typ"),
        ("filename,kind\na.jpg,real\n", "neither a column 'typ' nor 'label'"),
        ("name,typ\na.jpg,real\n", "no filename or file_name"),
        ("filename,typ\na.jpg\n", "line 2 has not as many values"),
        ("file_name,label,model\na.jpg,fake,m\na.jpg,real,real\n", "is there twice"),
        ("file_name,label,model\na.jpg,none,m\n", "'none' is no label"),
    ],
)
def test_openfake_label_files_that_are_not_what_they_should_be(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_layout("openfake-csv", {"file": str(tmp_path / "x.csv")})


def test_openfake_out_of_distribution(tmp_path):
    layout = make_layout("openfake-ood", {"generator": "imagen-3"})
    archive = write_zip(tmp_path / "imagen3.zip", "imagen3/1.png", "imagen3/2.png")
    write_files(tmp_path / "sd21", "fake/1.png", "captions.txt", "real/2.png")
    assert {one.generator for one, _ in told(layout, archive).values()} == {"imagen-3"}
    with pytest.raises(ConfigError, match="all of this set is fake"):
        told(layout, tmp_path / "sd21")
    assert list(told(layout, tmp_path / "sd21", exclude=["real/**"])) == ["1.png"]


# OpenSDI


def opensdi(path, keys, labels, masks):
    columns = {"key": keys, "image": PICTURES[: len(keys)], "mask": masks, "label": labels}
    return write_parquet(path, columns, images=("image", "mask"), labels=["real", "fake"])


def test_opensdi(tmp_path):
    mask = picture(9, "L")
    shard = opensdi(
        tmp_path / "OpenSDI_test/data/sd2-00000-of-00007.parquet",
        ["partial/sd2/fake/000000007.jpg", "entire/sd2/fake/000000008.jpg", "partial/sd2/real/000000007.jpg"],
        [1, 1, 0],
        [mask, None, mask],
    )
    found = list(told(make_layout("opensdi", {}), shard).values())
    assert [(one.label, one.generator, one.mask_uri, one.split, one.group, subset) for one, subset in found] == [
        ("fake", "sd2", f"{shard}#row=0&column=mask", "test", "key:000000007", "test/sd2"),
        ("fake", "sd2", None, "test", "key:000000008", "test/sd2"),
        ("real", "real", None, "test", "key:000000007", "test/sd2"),
    ]
    assert make_layout("opensdi", {"part": "plus"}).labels(next(iter(Archive([str(shard)])))).split == "train"


@pytest.mark.parametrize(
    ("key", "label", "mask", "message"),
    [
        ("partial/sd2/fake/1.jpg", 0, True, "its label is real"),
        ("entire/sd2/real/1.jpg", 1, False, "its label is fake"),
        ("partial/sd2/fake/1.jpg", 1, False, "no mask of it"),
        ("sd2/fake/1.jpg", 1, True, "is not partial|entire/GENERATOR/real|fake/FILE"),
    ],
)
def test_opensdi_refuses_contradictions(tmp_path, key, label, mask, message):
    shard = opensdi(tmp_path / "sd2-00000-of-00001.parquet", [key], [label], [picture(9, "L") if mask else None])
    [item] = Archive([str(shard)])
    assert message in refused(make_layout("opensdi", {}), item)


# Community Forensics


def test_community_forensics(tmp_path):
    shard = write_parquet(
        tmp_path / "data/CompEval-00003-of-00400.parquet",
        {
            "image_name": ["1.png", "2.png"],
            "image_data": [b"a", b"b"],
            "model_name": ["dalle2", "RAISE"],
            "prompt": ["a cat", None],
            "real_source": [None, "RAISE"],
            "label": [1, 0],
        },
    )
    found = list(told(make_layout("community-forensics", {}), shard).values())
    assert [(one.label, one.generator, one.split, one.group, subset) for one, subset in found] == [
        ("fake", "dalle2", "CompEval", prompt_group("A cat"), "CompEval"),
        ("real", "real:RAISE", "CompEval", None, "CompEval"),
    ]
    assert "model_name is None" in refused(make_layout("community-forensics", {}), row(label=1, model_name=None))


# OpenDeepfake-Preview


@pytest.mark.parametrize("names", [["Fake", "Real"], None])
def test_open_deepfake_preview_is_the_other_way_round(tmp_path, names):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", {"image": PICTURES[:2], "label": [0, 1]}, labels=names)
    found = told(make_layout("opendeepfake-preview", {}), tmp_path)
    assert [(one.label, subset) for one, subset in found.values()] == [("fake", "fake"), ("real", "real")]


def test_open_deepfake_preview_refuses_a_table_that_turns_it_round(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": PICTURES[:1], "label": [0]}, labels=["Real", "Fake"])
    [item] = Archive([str(tmp_path)])
    assert "calls it 'Real'" in refused(make_layout("opendeepfake-preview", {}), item)
    assert "2 is no label" in refused(make_layout("opendeepfake-preview", {}), row(label=2))


# DFLIP


def test_dflip_version_1(tmp_path):
    file = write_json(
        tmp_path / "meta/pd.json",
        {
            "0012": {"url": "https://host/x.png", "Prompt": "A lighthouse", "Model": "someMix_v2"},
            "0013": {"url": "https://host/y.png", "Prompt": "", "Model": "", "Model hash": "a1b2"},
            "0014": {"Model": None},
        },
    )
    write_files(tmp_path / "images", "0012.jpeg.png", "0013.png", "0014.jpg", "0099.png")
    found = told(make_layout("dflip", {"file": str(file)}), tmp_path / "images")
    assert {name: (one.label, one.generator, one.group) for name, (one, _) in found.items()} == {
        "0012.jpeg.png": ("fake", "someMix_v2", prompt_group("a lighthouse")),
        "0013.png": ("fake", "a1b2", None),
        "0014.jpg": ("fake", "sdft", None),
    }


def test_dflip_version_1_without_urls(tmp_path):
    file = write_json(tmp_path / "sd.json", {"ab-1.png": {"p": "a cat", "se": 1, "c": 7, "st": 50, "sa": "k"}})
    layout = make_layout("dflip", {"file": str(file)})
    found = told(layout, write_files(tmp_path / "images", "ab-1.png"))
    assert [(one.generator, one.prompt) for one, _ in found.values()] == [("stable-diffusion", "a cat")]
    assert layout.published == {"all": 1}


def test_dflip_version_2(tmp_path):
    records = [
        {"image_path": "train/fake/sd/1.jpg", "is_fake": 1, "family_id": 18, "version_id": 3, "split": "train"},
        {"image_path": "test/real/2.jpg", "is_fake": 0, "family_id": None, "version_id": None, "split": "test"},
    ]
    file = write_json(tmp_path / "metadata.json", records)
    write_files(tmp_path, "train/fake/sd/1.jpg", "test/real/2.jpg", "unlisted.jpg")
    found = told(make_layout("dflip", {"file": str(file)}), tmp_path)
    assert {name: (one.label, one.generator, one.split, subset) for name, (one, subset) in found.items()} == {
        "1.jpg": ("fake", "qwen", "train", "fake"),
        "2.jpg": ("real", "real", "test", "real"),
    }


def test_dflip_version_2_in_shards(tmp_path):
    write_shard(tmp_path / "train/fake/sd_1.5/00000.tar", a={"prompt": "A lighthouse"})
    write_shard(tmp_path / "test/real/00000.tar", b={"source": "x"})
    layout = make_layout("dflip", {})
    found = told(layout, tmp_path)
    assert {name: (one.label, one.generator, one.split, one.group, subset) for name, (one, subset) in found.items()} == {
        "a.png": ("fake", "sd_1.5", "train", prompt_group("a lighthouse"), "fake"),
        "b.png": ("real", "real", "test", None, "real"),
    }
    assert layout.published == {"fake": 768_586}
    with pytest.raises(ConfigError, match="no family 'sdxl'"):
        told(layout, write_shard(tmp_path / "train/fake/sdxl/00000.tar", c={}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pd.json", {"1.a": {}, "1.b": {}}, "two ids are '1'"),
        ("pd.json", {"1": "url"}, "no record but 'url'"),
        ("other.json", {"1": {}}, "which generator"),
        ("x.json", [{"image_path": "1.jpg", "is_fake": 1, "family_id": None}], "reals, and reals alone|family_id None"),
        ("x.json", [{"image_path": "1.jpg", "is_fake": 0, "family_id": 3}], "family_id 3"),
        ("x.json", [{"image_path": "1.jpg", "is_fake": 1, "family_id": 27}], "no family has the id 27"),
        ("x.json", [{"image_path": "1.jpg", "is_fake": None, "family_id": None}], "None is no label"),
        ("x.json", [{"is_fake": 0}], "record 0 has no image_path"),
        ("x.json", 7, "neither id"),
    ],
)
def test_dflip_refuses(tmp_path, name, content, message):
    with pytest.raises(ConfigError, match=message):
        make_layout("dflip", {"file": str(write_json(tmp_path / name, content))})


# IMDLBenCo


def test_imdlbenco_json(tmp_path):
    write_files(tmp_path, "Tp/1.jpg", "Gt/1.png", "Au/2.jpg")
    file = write_json(
        tmp_path / "CASIA2.json", [["Tp/1.jpg", "Gt/1.png"], [f"{tmp_path}/Au/2.jpg", "Negative"], ["Tp/gone.jpg", "Negative"]]
    )
    layout = make_layout("imdlbenco-json", {"file": str(file)})
    found = told(layout, tmp_path)
    assert {name: (one.label, one.generator, one.mask_uri) for name, (one, _) in found.items()} == {
        "1.jpg": ("fake", "CASIA2", f"{tmp_path}/Gt/1.png"),
        "2.jpg": ("real", "real:CASIA2", None),
    }
    assert layout.published == {"all": 3}


@pytest.mark.parametrize("content", [[["a.jpg"]], [["a.jpg", 1]], {"a": "b"}, [["a.jpg", "m.png"], ["a.jpg", "Negative"]]])
def test_imdlbenco_json_refuses(tmp_path, content):
    with pytest.raises(ConfigError, match=r"is not \[image, mask\]|is there twice"):
        make_layout("imdlbenco-json", {"file": str(write_json(tmp_path / "x.json", content))})


def test_imdlbenco_folders_pair_by_name(tmp_path):
    write_files(tmp_path, "Tp/a.jpg", "Tp/b.jpg", "Gt/b_gt.png", "Gt/a_gt.png", "readme.md")
    found = told(make_layout("imdlbenco-folder", {"mask_suffix": "_gt", "generator": "splice"}), tmp_path)
    assert {name: (one.label, one.generator, one.mask_uri) for name, (one, _) in found.items()} == {
        "a.jpg": ("fake", "splice", f"{tmp_path}/Gt/a_gt.png"),
        "b.jpg": ("fake", "splice", f"{tmp_path}/Gt/b_gt.png"),
    }


def test_imdlbenco_folders_that_do_not_pair_are_refused(tmp_path):
    # IMDLBenCo would pair a with 0, b with a, and leave the rest.
    write_files(tmp_path, "Tp/a.jpg", "Tp/b.jpg", "Gt/0.png", "Gt/a.png", "Gt/b.png")
    with pytest.raises(ConfigError, match=r"1 of 3 names do not pair: .*/0 is a mask of no image"):
        told(make_layout("imdlbenco-folder", {}), tmp_path)
    with pytest.raises(ConfigError, match="no image lies in a folder Tp"):
        told(make_layout("imdlbenco-folder", {}), write_files(tmp_path / "other", "a.jpg"))


# all


@pytest.mark.parametrize("name", LAYOUTS)
def test_arguments_are_checked(name):
    with pytest.raises(ConfigError, match=f"layout {name}: .*wrong: unknown key"):
        make_layout(name, {"wrong": 1})


def test_a_missing_argument_is_told_how_to_give():
    with pytest.raises(ConfigError, match="file: missing") as raised:
        make_layout("imdlbenco-json", {})
    assert raised.value.hint == "its arguments: file, root, generator; as in --set arguments.KEY=VALUE"


def test_a_layout_that_there_is_not():
    with pytest.raises(ConfigError, match="no layout 'genimage'"):
        make_layout("genimage", {})


@pytest.mark.parametrize(
    ("uri", "split", "config"),
    [
        ("hf://datasets/x/y@abc/data/train-00000-of-00070.parquet", "train", "default"),
        ("/m/core/test-00012-of-00100-0a1b2c.parquet", "test", "core"),
        ("hf://datasets/x/y@refs%2Fconvert%2Fparquet/reddit/partial-test/0003.parquet", "test", "reddit"),
        ("/m/data/Systematic+Manual-00000-of-00010.parquet", "Systematic+Manual", "default"),
        ("/m/table.parquet", None, None),
    ],
)
def test_names_of_shards(uri, split, config):
    assert (split_of(uri), config_of(uri)) == (split, config)
