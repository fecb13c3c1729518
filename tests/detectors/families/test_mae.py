"""The MAE encoder on its own: attention in bf16 and dropped branches. Its numbers are checked with
MaskCLIP's.
"""

import pytest
import torch

from ray_app.detectors.families.mae import MaeBlock, MaeVit, headwise_attention


def drawn(dtype=torch.bfloat16, heads=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, heads, 16, 8, generator=generator).to(dtype) for _ in range(3)]


def fused(query, key, value):
    return torch.nn.functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float()
    ).transpose(1, 2)


@pytest.mark.parametrize(
    "learning", [None, 0, 2], ids=["scoring", "the query learns", "the value learns"]
)
def test_bf16_attention_is_that_of_the_fused_kernel(learning):
    given = drawn()
    if learning is not None:
        given[learning].requires_grad_(True)
    found, _ = headwise_attention(None, *given, None)
    assert (found.float() - fused(*given)).abs().max() < 0.02
    dropped, _ = headwise_attention(None, *given, None, dropout=0.9)
    assert (dropped.float() - fused(*given)).abs().max() > 0.2
    if learning is not None:
        found.float().square().sum().backward()
        assert given[learning].grad.abs().max() > 0


def test_branches_are_dropped_per_image_in_training_only():
    torch.manual_seed(0)
    rates = [block.drop_path for block in MaeVit(image_size=64, width=24, heads=2).blocks]
    assert rates == pytest.approx([0.1 * layer / 11 for layer in range(12)])

    block = MaeBlock(24, 2, 4, drop_path=0.5)
    branch = torch.ones(400, 4, 4, 24)
    assert torch.equal(block.eval()._drop_branch(branch), branch)
    dropped = block.train()._drop_branch(branch)
    assert set(dropped.flatten(1).std(1).tolist()) == {0.0}
    assert set(dropped[:, 0, 0, 0].tolist()) == {0.0, 2.0}
    assert dropped.mean().item() == pytest.approx(1, abs=0.15)
