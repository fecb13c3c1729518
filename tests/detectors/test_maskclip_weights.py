"""MaskCLIP's weights: a checkpoint, MAE and CLIP to begin from, another input size."""

import pytest
import torch
from PIL import Image

from benchmarks.seeded import card_with_weights
from ray_app.detectors import load_card
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import load_detector
from ray_app.detectors.maskclip import MaskClip
from ray_app.detectors.maskclip_weights import fit_relative_positions, initialise
from ray_app.errors import DetectorError
from tests.detectors.fill import pattern_image
from tests.detectors.golden_maskclip import ARGUMENTS, GOLDEN
from tests.detectors.small_maskclip import TOLERANCE, filled, filled_weights


@pytest.fixture(scope="module")
def tiny():
    return filled("tiny256")


def test_one_missing_and_one_extra_key_are_named(tiny):
    state = dict(filled_weights("tiny256"))
    del state["aggregator.vit_model.blocks.5.attn.rel_pos_w"]
    state["aggregator.vit_model.cls_token"] = torch.zeros(1, 1, 96)

    with pytest.raises(DetectorError) as failure:
        load_strictly(tiny, state, "maskclip.pth")

    assert "missing (aggregator.vit_model.blocks.5.attn.rel_pos_w)" in str(failure.value)
    assert "unexpected (aggregator.vit_model.cls_token)" in str(failure.value)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_published_checkpoint_loads_strictly(tiny, tmp_path, prefix):
    checkpoint = {"model": {prefix + name: tensor for name, tensor in filled_weights("tiny256").items()}, "optimizer": {}, "epoch": 49}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")

    state = read_state_dict(tmp_path / "checkpoint.pth", load_card("maskclip").weights)

    load_strictly(tiny, state, "maskclip.pth")


def test_a_card_and_a_file_give_the_reference_s_score_and_mask(tmp_path):
    golden = GOLDEN["tiny256", "B"]
    path = tmp_path / "maskclip.pth"
    torch.save({"model": filled_weights("tiny256")}, path)
    card = card_with_weights(load_card("maskclip"), path)
    preprocessing = card.preprocessing.model_copy(update={"resize": card.preprocessing.resize.model_copy(update={"size": 256})})
    architecture = card.architecture.model_copy(update={"arguments": ARGUMENTS["tiny256"]})
    card = card.model_copy(update={"preprocessing": preprocessing, "architecture": architecture})

    detector = load_detector(card, precision="fp32", offline=True, slots=2)
    pixels = torch.from_numpy(detector.prepare(Image.fromarray(pattern_image(360, 480))))[None]
    reading = detector.read(detector.normalise(pixels))

    assert reading.scores.tolist() == pytest.approx([golden.logits[1] - golden.logits[0]], abs=TOLERANCE)
    assert reading.masks.dtype is torch.uint8
    assert [int(reading.masks[0, row, column]) for row, column, _ in golden.pixels] == [round(255 * value) for *_, value in golden.pixels]


def published_beginnings():
    """The MAE file's and CLIP's tensors in the layout in which they are published, at small sizes."""
    state = filled_weights("tiny256")
    vit, clip = "aggregator.vit_model.", "clip."
    mae = {key.removeprefix(vit): tensor for key, tensor in state.items() if key.startswith(vit) and ".rel_pos_" not in key}
    mae |= {"cls_token": torch.zeros(1, 1, 96), "norm.weight": torch.ones(96), "norm.bias": torch.zeros(96)}
    return mae, {key.removeprefix(clip): tensor for key, tensor in state.items() if key.startswith(clip)}


def test_training_begins_from_mae_and_clip():
    mae, clip = published_beginnings()
    network = MaskClip(**ARGUMENTS["tiny256"])

    initialise(network, mae, {**clip, "vocab_size": torch.tensor(49408)})

    vit = network.aggregator.vit_model.state_dict()
    tables = [key for key in vit if ".rel_pos_" in key]
    assert len(clip) == 446
    assert len(tables) == 24
    assert all(not vit[key].any() for key in tables)
    assert all(torch.equal(vit[key], tensor) for key, tensor in mae.items() if key in vit)
    assert all(torch.equal(tensor, clip[key]) for key, tensor in network.clip.state_dict().items())
    for prompt in network.prompt_learner.parameters():
        assert prompt.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("part", "key", "fault"),
    [
        ("mae", "blocks.3.mlp.fc1.weight", "missing"),
        ("mae", "decoder_embed.weight", "unexpected"),
        ("mae", "blocks.2.attn.rel_pos_h", "relative positions"),
        ("clip", "visual.proj", "missing"),
        ("clip", "visual.head.weight", "unexpected"),
    ],
)
def test_other_beginnings_are_refused_by_the_name_of_a_key(part, key, fault):
    beginnings = dict(zip(("mae", "clip"), published_beginnings(), strict=True))
    if fault == "missing":
        del beginnings[part][key]
    else:
        beginnings[part][key] = torch.zeros(1)

    with pytest.raises(DetectorError, match=fault) as failure:
        initialise(MaskClip(**ARGUMENTS["tiny256"]), beginnings["mae"], beginnings["clip"])

    assert key in str(failure.value)


def test_a_checkpoint_of_another_size_loads_only_when_its_tables_are_fitted(tiny):
    state = filled_weights("tiny512")

    with pytest.raises(DetectorError, match=r"8 of another shape.*rel_pos"):
        load_strictly(tiny, state, "maskclip.pth")
    fitted = fit_relative_positions(state, tiny)

    load_strictly(filled("tiny256"), fitted, "maskclip.pth")
    key = "aggregator.vit_model.blocks.2.attn.rel_pos_h"
    assert (len(state[key]), len(fitted[key])) == (63, 31)
    # Rows 30 to 32 stand at −1, 0 and 1: the middle of either table is the distance zero.
    assert torch.allclose(fitted[key][15], state[key][31], atol=1e-6)
    assert all(fitted[name] is tensor for name, tensor in state.items() if fitted[name].shape == tensor.shape)
