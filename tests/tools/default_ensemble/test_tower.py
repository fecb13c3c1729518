"""The tower that is tuned and the detector that is shipped give the same scores, and a tuning that
was ended goes on as if it had not been.
"""

import hashlib
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ray_app.detectors import load_card, load_detector
from ray_app.detectors.card import Weights
from ray_app.detectors.families.clip_tower import VisionTower
from ray_app.detectors.families.frozen import StatisticsTower
from tests.make.images import encoded, photo
from tools.default_ensemble import export_tower, tune_tower

SHAPE = {"image_size": 224, "patch_size": 32, "width": 64, "heads": 2, "quick_gelu": True}
DEPTHS = [1, 2]


@pytest.fixture
def network():
    torch.manual_seed(0)
    whole = VisionTower(layers=3, embed_dim=None, **SHAPE)
    return tune_tower.TunedTower(whole.state_dict(), DEPTHS, rank=4, shape=SHAPE)


def change(network):
    """Change what a tuning changes, as a long one would."""
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.requires_grad:
                tensor += 0.05 * torch.randn_like(tensor)


def views():
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((400, 300))
        for _ in range(3)
    ]
    return [tune_tower.VIEW.prepare(image) for image in images]


def shipped(folder):
    """The detector that reads the exported files."""
    card = load_card("touchstone-photo")

    def weights(name, kind):
        return Weights(uri=str(folder / name), format=kind, unverified="of a test")

    backbone = card.backbone.model_copy(
        update={
            "architecture": card.backbone.architecture.model_copy(
                update={"name": "clip/statistics", "arguments": SHAPE | {"depths": DEPTHS}}
            ),
            "weights": weights("tower.safetensors", "safetensors-6bit"),
        }
    )
    card = card.model_copy(
        update={"backbone": backbone, "weights": weights("head.safetensors", "safetensors")}
    )
    return load_detector(card, precision="fp32", resize="fast")


def test_the_detector_gives_the_scores_of_the_tuned_tower(network, tmp_path):
    with torch.no_grad():
        network.mean.normal_()
        network.scale.uniform_(0.5, 2)
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    save_file(network.learned(), before)
    change(network)
    save_file(network.learned(), after)
    with torch.inference_mode():
        expected = network(tune_tower.normalise(views())).numpy()

    export_tower.export(network, before, after, 1.0, tmp_path)
    scores = shipped(tmp_path).score(np.stack(views()))

    # The matrices have 6 bits.
    assert scores == pytest.approx(expected, abs=0.05 * float(np.abs(expected).max()))


def test_additions_and_normalisation_are_merged_exactly(network):
    change(network)
    tower, head = network.plain()
    plain = StatisticsTower(depths=DEPTHS, **SHAPE)
    plain.load_state_dict(tower)
    pixels = torch.from_numpy(np.stack(views())).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = network(tune_tower.normalise(views())).numpy()
        scores = plain(pixels).statistics @ head["fc.weight"][0] + head["fc.bias"]
    assert scores.numpy() == pytest.approx(expected, abs=1e-3)


def test_a_step_sees_only_the_patches_of_its_batch(network):
    change(network)
    pixels = tune_tower.normalise(views())
    order = torch.rand(len(pixels), 49).argsort(dim=1)
    with torch.inference_mode():
        whole = network(pixels).numpy()
        # Statistics do not depend on the order of the patches.
        assert network(pixels, order).numpy() == pytest.approx(whole, abs=1e-4)
        half = network(pixels, order[:, :24])
        darker = pixels.clone()
        row, column = divmod(int(order[0, -1]), 7)
        darker[0, :, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = -2
        assert torch.equal(network(darker, order[:, :24]), half)
        assert network(darker).numpy() != pytest.approx(whole, abs=1e-4)


def test_half_of_a_tuning_has_half_of_the_additions(network, tmp_path):
    before = {name: tensor.clone() for name, tensor in network.learned().items()}
    change(network)
    after = {name: tensor.clone() for name, tensor in network.learned().items()}
    mixed = export_tower.mix(before, after, 0.5)
    name = "tower.transformer.resblocks.1.attn.in_proj"
    assert torch.allclose(
        mixed[f"{name}.up"] @ mixed[f"{name}.down"],
        (after[f"{name}.up"] @ after[f"{name}.down"]) / 2,
    )
    assert torch.allclose(mixed["head.weight"], (before["head.weight"] + after["head.weight"]) / 2)


@pytest.fixture
def archive(tmp_path):
    """A real and a generated source of two images each, and one of another split."""
    rows = []
    for number, (source, label, split) in enumerate(
        [("a", "real", "train")] * 2 + [("b", "fake", "train")] * 2 + [("c", "fake", "test")]
    ):
        data = encoded(photo(320, 280, number), "JPEG")
        (tmp_path / f"{number}.jpg").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append({"uri": f"{number}.jpg", "sha256": digest, "source": source}
                    | {"label": label, "split": split})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "index.parquet")
    (tmp_path / "taesd.py").write_text(
        "import torch\n"
        "class TAESD(torch.nn.Module):\n"
        "    def __init__(self, encoder, decoder):\n"
        "        super().__init__()\n"
        "        self.encoder, self.decoder = torch.nn.Identity(), lambda latents: latents / 2\n"
    )
    return tmp_path


@pytest.fixture
def tune(archive, monkeypatch):
    """Tune a small tower to a step, in the folder of this name; returns what it learned."""
    torch.manual_seed(0)
    monkeypatch.setattr(tune_tower, "TOWER", SHAPE)
    save_file(VisionTower(layers=2, embed_dim=None, **SHAPE).state_dict(), archive / "clip")

    def run(name, stop_at):
        words = ["tune", archive, archive / "clip", "--taesd", archive, "--depths", 1, 2]
        words += ["--steps", 4, "--batch", 4, "--stop-at", stop_at, "--out", archive / name]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        tune_tower.main()
        return load_file(archive / name / "tuned.safetensors")

    return run


@pytest.mark.slow
def test_a_tuning_that_was_ended_goes_on_as_if_it_had_not_been(tune, archive):
    whole = tune("whole", 4)
    tune("parts", 2)
    parts = tune("parts", 4)
    before = load_file(archive / "whole" / "untuned.safetensors")
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name
    name = "tower.transformer.resblocks.1.mlp.c_fc.up"
    assert not torch.equal(whole[name], before[name])


def test_a_batch_has_both_classes_and_twins_side_by_side(archive, monkeypatch):
    monkeypatch.setattr(tune_tower, "PAIRED", 0.5)  # Every real image has a twin.
    batch = tune_tower.Archive(archive, archive).batch(4, np.random.default_rng(0))
    assert batch.labels.tolist() == [0, 1, 0, 1]
    assert batch.found.shape == batch.damaged.shape == (4, 3, 224, 224)
    real, twin = batch.found[:2].permute(0, 2, 3, 1).numpy() * tune_tower.STD + tune_tower.MEAN
    # The autoencoder of this test halves every value.
    assert np.abs(twin - real / 2).max() < 2
