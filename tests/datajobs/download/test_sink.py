"""Shards whose store fails, and directories and folders that are refused."""

import pyarrow.parquet as pq
import pytest

from ray_app.config import validate
from ray_app.datajobs.download import CollectConfig
from ray_app.datajobs.download.run import Records
from ray_app.datajobs.download.sink import Sink, Task, make_row
from ray_app.errors import ConfigError, StorageError
from ray_app.storage import Store
from tests.datajobs.download.lists import config
from tests.make.servers.wild import picture


def test_unpublished_shard_lends_its_rows_to_no_other(tmp_path):
    settings = config("list.csv", tmp_path, form="parquet", shard_mb=0.001)
    store = Store.open(str(tmp_path))
    keeper = Sink(store, store, settings, ["id"])
    (tmp_path / "data").write_text("in the way")

    def add(name, number):
        data, _ = picture(number)
        url = f"https://a.test/{name}"
        task = Task(name, url, url, name, (), {"id": name})
        keeper.add(make_row(task, "ok", size_bytes=len(data), sha256="0", format="PNG"), data, task)

    with pytest.raises(StorageError):
        add("lost", 1)
    (tmp_path / "data").unlink()
    add("kept", 4)
    keeper.publish()
    keeper.close()
    assert Records(settings).read().rows["id"].to_pylist() == ["kept"]
    [shard] = (tmp_path / "data").iterdir()
    assert pq.read_table(shard)["id"].to_pylist() == ["kept"]


@pytest.mark.parametrize("folder", ["parts", "Parts/x", "index", "../x"])
def test_images_never_lie_among_our_own_records(tmp_path, folder):
    with pytest.raises(ValueError, match=r"folder below|own records"):
        config("list.csv", tmp_path, folder=folder)


@pytest.mark.parametrize("name", ["run.json", "generate.json", "index.json"])
def test_the_directory_of_another_command_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="another kind of command"):
        Records(config("list.csv", tmp_path)).claim()


def test_retired_key_cluster_names_its_replacement():
    with pytest.raises(ConfigError, match=r"cluster: retired: .*limits\.decoders"):
        validate({"meta": "urls.csv", "cluster": {}}, CollectConfig, where="collect.yaml")
