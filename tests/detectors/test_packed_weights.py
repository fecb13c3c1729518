"""Weights of 6 bits come back within half of a step, in the file's own form."""

import pytest
import torch
from safetensors.torch import save_file

from ray_app.detectors.card import Weights
from ray_app.detectors.checkpoints import read_state_dict
from ray_app.detectors.packed_weights import GROUP, pack, unpack


def test_values_come_back_within_half_of_a_step(tmp_path):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 3 * GROUP, generator=generator)
    matrix[2] = 0
    matrix[3, 0] = 40  # One large value makes only its own group coarse.
    state = {
        "block.weight": matrix,
        "block.bias": torch.randn(5, generator=generator),
        "narrow.weight": torch.randn(4, GROUP // 2, generator=generator),
    }
    save_file(pack(state), tmp_path / "tower.safetensors")

    weights = Weights(uri="tower.safetensors", format="safetensors-6bit", sha256="0" * 64)
    read = read_state_dict(tmp_path / "tower.safetensors", weights)

    assert read.keys() == state.keys()
    steps = matrix.reshape(5, 3, GROUP).abs().amax(dim=2) / 31
    error = (read["block.weight"] - matrix).abs().reshape(5, 3, GROUP).amax(dim=2)
    assert (error <= steps * 0.51 + 1e-6).all()
    assert (read["block.weight"][2] == 0).all()
    torch.testing.assert_close(
        read["narrow.weight"].float(), state["narrow.weight"], rtol=1e-3, atol=1e-4
    )


def test_every_integer_survives():
    scale = torch.full((1, 1), 0.5)
    matrix = torch.arange(-32, 32).clamp(-31).float()[None] * scale
    assert torch.equal(unpack(pack({"weight": matrix}))["weight"], matrix)


def test_a_matrix_takes_less_than_seven_bits_a_value():
    packed = pack({"weight": torch.randn(768, 3072)})
    assert (
        sum(each.numel() * each.element_size() for each in packed.values()) * 8 < 6.5 * 768 * 3072
    )


def test_scales_that_do_not_fit_are_left_for_the_loader_to_report():
    packed = pack({"weight": torch.randn(4, 2 * GROUP)})
    packed["weight.scales"] = packed["weight.scales"][:, :1]
    assert "weight.packed" in unpack(packed)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        pack({"weight": torch.full((1, GROUP), float("nan"))})
