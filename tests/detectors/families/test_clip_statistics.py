"""The first blocks of CLIP's image tower, and statistics of their tokens."""

import pytest
import torch

from ray_app.detectors.families.clip_tower import VisionTower
from ray_app.detectors.families.frozen import StatisticsTower

SHAPE = {"image_size": 32, "patch_size": 8, "width": 64, "heads": 2, "quick_gelu": True}


@torch.inference_mode()
def test_statistics_are_those_of_the_whole_tower_s_tokens():
    torch.manual_seed(0)
    whole = VisionTower(layers=4, embed_dim=None, **SHAPE)
    first = StatisticsTower(depths=[1, 3], **SHAPE)
    state = whole.state_dict()
    first.load_state_dict({name: state[name] for name in first.state_dict()})
    pixels = torch.randn(2, 3, 32, 32)

    expected, tokens = [], whole.embed(pixels)
    for depth, block in enumerate(whole.transformer.resblocks, start=1):
        tokens, _ = block(tokens)
        if depth in (1, 3):
            patches = tokens[:, 1:].numpy()
            expected += [tokens[:, 0].numpy(), patches.mean(1), patches.std(1, ddof=1)]

    statistics = first(pixels).statistics
    assert statistics.shape == (2, first.widths["statistics"])
    for part, numbers in zip(statistics.chunk(6, dim=1), expected, strict=True):
        assert part.numpy() == pytest.approx(numbers, abs=1e-5)
