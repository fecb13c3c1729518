"""Layouts that are data: what each shipped one says of a tree of its data set's shape, and what
none of its rules fits.
"""

import pytest

from ray_app.config import load_yaml, named_configs
from ray_app.datasets.layouts import make_layout
from ray_app.datasets.layouts.rules import PathRule, PublishedLayout
from ray_app.errors import ConfigError
from tests.datasets.layouts.telling import fields, refused, row, told
from tests.make.published import picture, write_files, write_json

# By layout: files, and of each its label, generator and split.
TREES = {
    "genimage": {
        "ADM/imagenet_ai_0508_adm/val/ai/1.PNG": ("fake", "imagenet_ai_0508_adm", "val"),
        "ADM/imagenet_ai_0508_adm/train/nature/2.JPEG": ("real", "real:imagenet", "train"),
    },
    "drct-2m": {
        "MSCOCO/val2017/1.jpg": ("real", "real:coco", "val2017"),
        "DRCT-2M/stable-diffusion-v1-4/val2017/2.png": ("fake", "stable-diffusion-v1-4", "val2017"),
        "DR/DRCT-2M/sdxl/train2017/3.png": ("fake", "sdxl", "train2017"),
    },
    "chameleon": {
        "test/0_real/1.jpg": ("real", "real:chameleon", None),
        "test/1_fake/2.jpg": ("fake", "chameleon", None),
    },
    "aigcdetect": {
        "progan/airplane/0_real/1.png": ("real", "real:progan", None),
        "cyclegan/horse/1_fake/2.png": ("fake", "cyclegan", None),
        "stylegan2/car/1_fake/3.png": ("fake", "stylegan2", None),
        "Midjourney/1_fake/4.png": ("fake", "Midjourney", None),
        "Midjourney/0_real/5.png": ("real", "real:Midjourney", None),
    },
    "univfd": {
        "diffusion_datasets/laion/0_real/1.png": ("real", "real:laion", None),
        "diffusion_datasets/glide_100_27/1_fake/2.png": ("fake", "glide_100_27", None),
    },
    "synthbuster": {
        "RAISEpng/1.png": ("real", "real:raise", None),
        "synthbuster/raise/2.png": ("real", "real:raise", None),
        "synthbuster/stable-diffusion-1-3/3.png": ("fake", "stable-diffusion-1-3", None),
    },
    "diffusionforensics": {
        "images/test/imagenet/real/n03982430/1.JPEG": ("real", "real:imagenet", "test"),
        "images/test/imagenet/adm/999/2.png": ("fake", "adm", "test"),
    },
}
TABLES = {
    "ntire-2026": (
        ",image_name,label\n0,a.png,1\n1,b.jpg,0\n",
        ["images/a.png", "images/b.jpg"],
        {"a.png": ("fake", "ntire-2026", None), "b.jpg": ("real", "real", None)},
    ),
    "deepfake-eval-2024": (
        "Filename,Ground Truth,Finetuning Set\na.jpg,Fake,Test\nb.jpg,Real,Train\nc.jpg,Unknown,Train\n",
        ["image-data/a.jpg", "image-data/b.jpg", "image-data/c.jpg"],
        {"a.jpg": ("fake", "deepfake-eval-2024", "Test"), "b.jpg": ("real", "real", "Train")},
    ),
}


AI_GENBENCH = {  # DATASET_STATS.md and common_utils.py of MI-BioLab/AI-GenBench@2332e50
    "height": "uint32", "width": "uint32", "generator": "large_string", "file_id": "large_string", "description": "large_string",
    "positive_prompt": "large_string", "negative_prompt": "large_string", "conditioning": "large_string", "origin_dataset": "large_string",
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_labelled_by_its_folders(tmp_path, name):
    tree = TREES[name]
    write_files(tmp_path, *tree, "readme.md")
    found = fields(told(make_layout(name, {}), tmp_path), "label", "generator", "split")
    assert found == {path.rpartition("/")[2]: labels for path, labels in tree.items()}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_beside_images_labels_them(tmp_path, name):
    content, files, labels = TABLES[name]
    write_files(tmp_path, *files)
    (tmp_path / "labels.csv").write_text(content)
    found = told(
        make_layout(name, {"file": str(tmp_path / "labels.csv")}), tmp_path / files[0].split("/")[0]
    )
    assert fields(found, "label", "generator", "split") == labels


def test_list_of_forensichub_labels_its_files(tmp_path):
    write_files(
        tmp_path, "own/train/real/a.png", "own/train/real/unlisted.png", "GenImage/ADM/b.png"
    )
    listed = [
        {"path": "train/real/a.png", "label": 0},
        {"path": f"{tmp_path}/GenImage/ADM/b.png", "label": 1},
    ]
    file = write_json(tmp_path / "own" / "train.json", listed)
    layout = make_layout("forensichub", {"file": str(file), "generators": "adm"})
    found = fields(told(layout, tmp_path), "label", "generator", "split")
    assert found == {"a.png": ("real", "real", None), "b.png": ("fake", "adm", None)}
    for content, said in (
        ({"path": "a.png"}, "not a list of objects"),
        ([{"path": "a.png"}], "no column 'label'"),
        (["a"], "objects"),
    ):
        write_json(file, content)
        with pytest.raises(ConfigError, match=said):
            make_layout("forensichub", {"file": str(file)})


def test_a_table_of_ai_genbench_is_read_as_its_builder_writes_it(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Image, LargeList, Value

    kinds = {
        "image": Image(),
        "label": ClassLabel(names=["real", "fake"]),
        "paired_real_images": LargeList(Value("large_string")),
    }
    features = Features(kinds | {name: Value(kind) for name, kind in AI_GENBENCH.items()})
    columns = {name: ["", ""] for name in AI_GENBENCH}
    columns |= {"height": [16, 16], "width": [24, 24], "origin_dataset": ["DDMD", "DDMD"]}
    columns |= {"image": [picture(0), picture(1)], "label": [0, 1], "generator": ["", "FLUX 1 Dev"]}
    columns |= {"positive_prompt": ["", "a cat"], "paired_real_images": [[], ["RAISE/1"]]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "validation.parquet")
    found = fields(told(make_layout("ai-genbench", {}), tmp_path), "label", "generator", "prompt")
    assert list(found.values()) == [("real", "real", None), ("fake", "FLUX 1 Dev", "a cat")]


def test_words_of_a_column_are_labels():
    layout = make_layout("so-fake", {})
    for word, maker, labels in [
        ("full_synthetic", "gpt-4o", ("fake", "gpt-4o")),
        ("tampered", None, ("fake", "unknown")),
        ("real", "", ("real", "real")),
    ]:
        found = layout.labels(row(label=word, generator=maker))
        assert (found.label, found.generator) == labels
    assert "not a label" in refused(layout, row(label="video"))


def test_every_published_layout_is_tested_and_names_its_source():
    shipped = {
        name: load_yaml(path, PublishedLayout) for name, path in named_configs("layouts").items()
    }
    assert set(shipped) == {*TREES, *TABLES, "so-fake", "forensichub", "ai-genbench"}
    assert all(layout.name == name for name, layout in shipped.items())


def test_path_without_rule_is_refused_or_left_out(tmp_path):
    rules = [{"path": "{generator}/1_fake/*", "label": "fake"}]
    write_files(tmp_path, "gan/2_other/a.png")
    with pytest.raises(ConfigError, match="the path matches no rule"):
        told(make_layout("paths", {"rules": rules}), tmp_path)
    assert told(make_layout("paths", {"rules": rules, "others": "skip"}), tmp_path) == {}


def test_rules_hold_whole_names():
    rule = PathRule(path="a.b/{generator}/**/1_fake/*", label="fake")
    assert rule.match("x/a.b/sd (1)/p/q/1_fake/i.png")["generator"] == "sd (1)"
    assert rule.match("a.b/sd/1_fake/i.png")
    for other in ("axb/sd/1_fake/i.png", "xa.b/sd/1_fake/i.png", "a.b/sd/01_fake/i.png"):
        assert rule.match(other) is None


def test_a_table_without_its_columns_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("name,label\na.png,1\n")
    with pytest.raises(ConfigError, match="no column 'image_name'"):
        make_layout("ntire-2026", {"file": str(tmp_path / "labels.csv")})
