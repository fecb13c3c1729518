"""FatFormer: the authors' own logits on narrow towers, the published file's doubles, and the
wavelet.
"""

import itertools

import pytest
import torch

from benchmarks.seeded import card_with_weights, write_weights
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.detector import build_network
from ray_app.detectors.families import fatformer
from ray_app.errors import DetectorError
from tests.detectors.golden import check_scores
from tests.make.networks.fill import fill, with_arguments

NARROW = {
    "adapters": 2,
    "bottleneck": 16,
    "tower": {"width": 256, "layers": 2, "heads": 4, "embed_dim": 48, "quick_gelu": True},
    "text": {"width": 48, "layers": 1, "heads": 4, "embed_dim": 48},
}


def louder(key, tensor):
    """What lets the adapters count: published ones begin at zero."""
    if key.endswith("freq_scale"):
        return torch.full_like(tensor, 0.7)
    return tensor * (3 if key.endswith("forgery_aware_adapter.second_conv_layer.weight") else 1)


def narrow():
    return with_arguments(load_card("fatformer"), NARROW)


@pytest.fixture(scope="module")
def published():
    """The file's tensors: those of the network, the doubles, the filters, and the words that
    nothing reads.
    """
    state = fill(build_network(narrow()).state_dict())
    own = {key: louder(key, tensor) for key, tensor in state.items()}
    visual = {key: own[key] for key in own if key.startswith("clip_model.visual.")}
    text = own.keys() - visual.keys() - {"clip_model.logit_scale"}
    state = own | {
        key.replace("clip_model.visual.", "image_encoder."): visual[key] for key in visual
    }
    state |= {
        key.replace("clip_model.", "text_encoder."): own[key]
        for key in text
        if key.startswith("clip_model.")
    }
    for key in [key for key in state if key.endswith("freq_scale")]:
        for name, sign in itertools.product(("dwt_transform.h", "idwt_transform.g"), (1, -1)):
            filter = key.replace("freq_scale", f"{name}{int(sign < 0)}_")
            values = 0.5**0.5 * torch.tensor([1.0, sign])
            state |= {
                f"{filter}col": values.view(1, 1, 2, 1),
                f"{filter}row": values.view(1, 1, 1, 2),
            }
    return state | {
        "logit_scale": own["clip_model.logit_scale"],
        "clip_model.token_embedding.weight": torch.ones(9, 48),
    }


def test_the_scores_are_the_authors(published, tmp_path):
    assert len(published) == 258  # as many as the authors' own state dict of this size has
    card = card_with_weights(
        narrow(), write_weights(tmp_path / "published.pth", published, wrapper="model")
    )
    detector = load_detector(card, precision="fp32", slots=1)
    check_scores(detector, "fatformer narrow")


FILTER = "clip_model.visual.transformer.resblocks.0.forgery_aware_adapter.dwt_transform.h1_col"


@pytest.mark.parametrize("key", ["image_encoder.ln_post.bias", "logit_scale", FILTER])
def test_second_copy_that_differs_is_named(published, key):
    network = build_network(narrow())
    state = {**published, key: published[key] + 1}
    with pytest.raises(DetectorError, match=key.replace(".", r"\.")):
        load_strictly(network, fatformer.published_keys(state, network), "fatformer")
