"""The MAE encoder on its own: padded windows and dropped branches. Its numbers are checked with MaskCLIP's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.mae import Block, MaeVit


def test_windows_pad_as_if_zeros_had_been_projected():
    attention = MaeVit(image_size=256, width=24, heads=2).blocks[0].attn
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(2, 16, 16, 24)

    # A map of whole windows is not padded by the layer itself: zeros put there by hand go through the projection.
    whole = attention(functional.pad(tokens, (0, 0, 0, 12, 0, 12)))

    assert torch.allclose(attention(tokens), whole[:, :16, :16], atol=1e-5)


def test_branches_are_dropped_per_image_in_training_only():
    torch.manual_seed(0)
    rates = [block.drop_path for block in MaeVit(image_size=64, width=24, heads=2).blocks]
    assert rates == pytest.approx([0.1 * layer / 11 for layer in range(12)])

    block = Block(24, 2, 4, drop_path=0.5)
    branch = torch.ones(400, 4, 4, 24)
    assert torch.equal(block.eval()._dropped(branch), branch)
    dropped = block.train()._dropped(branch)
    assert set(dropped.flatten(1).std(1).tolist()) == {0.0}
    assert set(dropped[:, 0, 0, 0].tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.15)
