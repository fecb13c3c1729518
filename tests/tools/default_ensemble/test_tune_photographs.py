"""The script that tuned the default's backbone: a file that the backbone reads, other weights than
before, and pictures decoded once.
"""

import hashlib
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ray_app.config import config_root
from ray_app.detectors.families.frozen import StageBackbone
from tests.make.images import encoded, photo
from tools.default_ensemble import tune_photographs

pytestmark = pytest.mark.slow

SHIPPED = config_root() / "backbones" / "efficientnet-lite0-stages.safetensors"


@pytest.fixture
def photos(tmp_path):
    """Two sources of two pictures each, one of them generated, and one of another split that must
    not be read.
    """
    rows = []
    for number, (source, label, split) in enumerate(
        [("a", "real", "train")] * 2 + [("b", "fake", "train")] * 2 + [("c", "fake", "test")]
    ):
        data = encoded(photo(320, 280, number), "JPEG")
        (tmp_path / f"{number}.jpg").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append(
            {
                "uri": f"{number}.jpg",
                "sha256": digest,
                "source": source,
                "label": label,
                "split": split,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "index.parquet")
    return tmp_path


@pytest.fixture
def taesd(tmp_path_factory):
    """A module of that name whose autoencoder darkens."""
    folder = tmp_path_factory.mktemp("taesd")
    (folder / "taesd.py").write_text(
        "import torch\n"
        "class TAESD(torch.nn.Module):\n"
        "    def __init__(self, encoder, decoder):\n"
        "        super().__init__()\n"
        "        self.encoder, self.decoder = torch.nn.Identity(), lambda latents: latents / 2\n"
    )
    return folder


@pytest.fixture
def tune(photos, taesd, monkeypatch):
    """Tune for two steps, in the folder of this name."""
    monkeypatch.setattr(tune_photographs, "HALF_BATCH", 2)

    def run(name):
        words = ["tune", photos, SHIPPED, "--taesd", taesd, "--steps", 2, "--out", photos / name]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        tune_photographs.main()

    return run


def test_it_writes_a_backbone_that_was_tuned_and_heads_for_it(photos, tune):
    tune("out")
    out = photos / "out"
    before, after = load_file(SHIPPED), load_file(out / "backbone.safetensors")
    StageBackbone("tf_efficientnet_lite0").network.load_state_dict(after)
    for kind in ("whole", "detail"):
        head = load_file(out / f"{kind}.safetensors")
        assert (head["fc.weight"].shape, head["fc.bias"].shape) == ((1, 4128), (1,))
    assert all(tensor.dtype == torch.float16 for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert sorted(folder.name for folder in (out / "views").iterdir()) == ["a", "b"]
    shapes = {np.load(path).shape for path in (out / "views").rglob("*.npy")}
    assert shapes == {(2, 224, 224, 3)}


def test_a_run_that_was_ended_goes_on(photos, tune, monkeypatch):
    tune("whole")
    monkeypatch.setattr(tune_photographs, "SAVED_EVERY", 1)
    save = tune_photographs.Tuning.save

    def save_and_end(tuning, path):
        save(tuning, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as ending:
        ending.setattr(tune_photographs.Tuning, "save", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            tune("ended")
    (photos / "0.jpg").unlink()  # views are kept: no picture is read again
    tune("ended")
    for name, tensor in load_file(photos / "whole/backbone.safetensors").items():
        assert torch.equal(tensor, load_file(photos / "ended/backbone.safetensors")[name]), name
