import pytest
import torch

from ray_app.detectors.attention import headwise_attention


def drawn(dtype=torch.bfloat16, heads=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, heads, 16, 8, generator=generator).to(dtype) for _ in range(3)]


def fused(query, key, value):
    return torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float()).transpose(1, 2)


@pytest.mark.parametrize("learning", [None, 0, 2], ids=["scoring", "the query learns", "the value learns"])
def test_in_bf16_it_is_the_fused_kernel_s_attention_also_where_something_learns(learning):
    given = drawn()
    if learning is not None:
        given[learning].requires_grad_(True)
    found, _ = headwise_attention(None, *given, None)
    assert (found.float() - fused(*given)).abs().max() < 0.02
    if learning is not None:
        found.float().square().sum().backward()
        assert given[learning].grad.abs().max() > 0


def test_what_a_training_drops_is_dropped():
    torch.manual_seed(0)
    found, _ = headwise_attention(None, *drawn(), None, dropout=0.9)
    assert (found.float() - fused(*drawn())).abs().max() > 0.2
