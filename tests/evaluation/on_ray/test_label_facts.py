import numpy as np
import pytest
from PIL import Image

from ray_app.cluster.ray_cluster import on_ray
from ray_app.datasets import DatasetSource, build_index
from ray_app.evaluation.label_audit.features import facts_of_index
from ray_app.storage import Store

pytestmark = pytest.mark.ray


def test_files_are_read_by_tasks_as_they_are_in_this_process(ray_cluster, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "files" / ("real" if number % 2 else "fake") / f"{number}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    (tmp_path / "files" / "real" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    build_index(DatasetSource(at=[str(tmp_path / "files")], layout="folders"), Store.open(str(tmp_path / "index")))
    here = facts_of_index(str(tmp_path / "index"), read=True)
    there = facts_of_index(str(tmp_path / "index"), read=True, each=on_ray)
    assert there.equals(here)
    assert here["width"].null_count == 1
    assert set(here["subsampling"].to_pylist()) == {None, "4:2:0"}
