import pytest

from ray_app.datasets.labels import prompt_group
from ray_app.datasets.layouts import make_layout
from ray_app.errors import ConfigError
from tests.datasets.layouts.telling import fields, told
from tests.make.published import write_files, write_json, write_shard


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
    assert fields(found, "label", "generator", "group") == {
        "0012.jpeg.png": ("fake", "someMix_v2", prompt_group("a lighthouse")),
        "0013.png": ("fake", "a1b2", None),
        "0014.jpg": ("fake", "sdft", None),
    }


def test_dflip_version_1_without_urls(tmp_path):
    record = {"p": "a cat", "se": 1, "c": 7, "st": 50, "sa": "k"}
    file = write_json(tmp_path / "sd.json", {"ab-1.png": record})
    layout = make_layout("dflip", {"file": str(file)})
    found = told(layout, write_files(tmp_path / "images", "ab-1.png"))
    assert fields(found, "generator", "prompt") == {"ab-1.png": ("stable-diffusion", "a cat")}
    assert layout.published == {"all": 1}


def test_dflip_version_2(tmp_path):
    names = ("image_path", "is_fake", "family_id", "version_id", "split")
    fake, real = (
        ("train/fake/sd/1.jpg", 1, 18, 3, "train"),
        ("test/real/2.jpg", 0, None, None, "test"),
    )
    records = [dict(zip(names, values, strict=True)) for values in (fake, real)]
    file = write_json(tmp_path / "metadata.json", records)
    write_files(tmp_path, "train/fake/sd/1.jpg", "test/real/2.jpg", "unlisted.jpg")
    found = told(make_layout("dflip", {"file": str(file)}), tmp_path)
    assert {
        name: (one.label, one.generator, one.split, subset) for name, (one, subset) in found.items()
    } == {
        "1.jpg": ("fake", "qwen", "train", "fake"),
        "2.jpg": ("real", "real", "test", "real"),
    }


def test_dflip_version_2_in_shards(tmp_path):
    write_shard(tmp_path / "train/fake/sd_1.5/00000.tar", a={"prompt": "A lighthouse"})
    write_shard(tmp_path / "test/real/00000.tar", b={"source": "x"})
    layout = make_layout("dflip", {})
    found = told(layout, tmp_path)
    assert {
        name: (one.label, one.generator, one.split, one.group, subset)
        for name, (one, subset) in found.items()
    } == {
        "a.png": ("fake", "sd_1.5", "train", prompt_group("a lighthouse"), "fake"),
        "b.png": ("real", "real", "test", None, "real"),
    }
    assert layout.published == {"fake": 768_586}
    with pytest.raises(ConfigError, match="no family 'sdxl'"):
        told(layout, write_shard(tmp_path / "train/fake/sdxl/00000.tar", c={}))


FAKE = {"image_path": "1.jpg", "is_fake": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pd.json", {"1.a": {}, "1.b": {}}, "'1.b' and another id are both '1'"),
        ("pd.json", {"1": "url"}, "'1' must be an object, such as .*, got 'url'"),
        ("other.json", {"1": {}}, "does not show the generator"),
        ("x.json", [FAKE | {"family_id": None}], "family_id None"),
        ("x.json", [FAKE | {"family_id": 27}], "unknown family_id 27"),
        ("x.json", [{"is_fake": 0}], "record 0 must be an object with the key 'image_path'"),
        ("x.json", 7, "must be a mapping from id"),
    ],
)
def test_dflip_refuses(tmp_path, name, content, message):
    with pytest.raises(ConfigError, match=message):
        make_layout("dflip", {"file": str(write_json(tmp_path / name, content))})
