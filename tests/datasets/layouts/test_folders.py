from ray_app.archives import Archive
from ray_app.datasets.layouts import make_layout
from tests.datasets.layouts.telling import refused, told
from tests.datasets.published import write_files, write_shard, write_zip


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
