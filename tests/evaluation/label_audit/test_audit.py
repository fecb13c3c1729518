"""Labels are looked through: what tells the classes apart by files alone, and which labels are doubted."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.datasets import DatasetSource, build_index
from ray_app.evaluation.label_audit.audit import audit_labels
from ray_app.storage import Store
from tests.evaluation.labelled_run import planted_run, truth_of


def test_planted_flips_and_a_planted_shortcut_are_found(tmp_path):
    _, flips = planted_run(tmp_path / "run", shortcut=True)
    document = audit_labels(str(tmp_path / "run"), tmp_path, thumbnails=False)
    precision, recall = truth_of(pq.read_table(tmp_path / "suspicious.parquet")["image_id"].to_numpy(), flips)
    assert precision > 0.9
    assert recall > 0.6
    assert document["differences"][0]["name"] == "format"
    assert document["shortcut"]["confounded"]
    assert "Files alone tell the classes apart" in (tmp_path / "labels.html").read_text()
    assert json.loads((tmp_path / "labels.json").read_text()) == json.loads(json.dumps(document))


@pytest.mark.parametrize("read", [True, False])
def test_an_index_is_looked_through_with_its_files_or_without(tmp_path, read):
    """Fakes are PNG, reals JPEG; two files of the same bytes are labelled both ways."""
    rng = np.random.default_rng(1)
    for label, form in (("real", "jpeg"), ("fake", "png")):
        (tmp_path / "files" / label).mkdir(parents=True)
        for number in range(30):
            Image.fromarray(rng.integers(0, 255, (36, 48, 3), np.uint8)).save(tmp_path / "files" / label / f"{number}.{form}")
    (tmp_path / "files" / "fake" / "copy.jpeg").write_bytes((tmp_path / "files" / "real" / "0.jpeg").read_bytes())
    source = DatasetSource(at=[str(tmp_path / "files")], layout="folders", hashes=("sha256", "phash"))
    build_index(source, Store.open(str(tmp_path / "index")))
    document = audit_labels(str(tmp_path / "index"), tmp_path, read=read)
    assert document["headline"] == "1 file stands under both labels."
    assert document["differences"][0]["name"] == ("format" if read else "ending")
    assert any("--read reads them" in one for one in document["remarks"]) != read
