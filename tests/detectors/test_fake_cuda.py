"""Every shipped detector reads a batch on `cuda`, in fp32 and bf16, as far as that can be seen
without one: see fake_cuda.py.
"""

import pytest
import torch
from torch import nn

from ray_app.detectors.families.internvl import DialogueTokens, Interrogator
from tests.make.fake_cuda import bare, detector_on_cuda, devices_of, fake_cuda
from tests.make.networks.small_zoo import CARDS, small

# Each network once per way in which its images come; a reply in words is read on the CPU, token by
# token, and has no shape beforehand.
DISTINCT = {
    (repr(card.architecture_facts), card.output.logits, card.preprocessing.shape is None): name
    for name, card in reversed(CARDS.items())
    if not card.replies
}.values()
# One card of each family, of the frozen backbones one of each library and of ours; Tiny-LaDeDa is
# a network of its own.
QUICK = {card.family: name for name, card in reversed(CARDS.items()) if card.family != "internvl"}
QUICK = [*QUICK.values(), "vfm-metaclip2-h14", "vfm-pe-l14", "tiny-ladeda"]


def read_on_cuda(card, *precisions):
    """The card's network reads two images on `cuda`, in each precision."""
    height, width = card.preprocessing.shape or (200, 300)
    network = bare(card)
    if isinstance(network, Interrogator):
        image = [network.chat.config.image_token_id] * network.chat.config.image_seq_length
        # a list of indices has values
        network._tokens = DialogueTokens(None, [1, 2, *image, 3], 4, slice(5, 6), slice(6, 8))
    for precision in precisions:
        with fake_cuda():
            detector = detector_on_cuda(card, network, precision)
            assert devices_of(detector.network) == {"cuda"}
            given = detector.read(
                detector.normalise(torch.empty(2, height, width, 3, dtype=torch.uint8))
            )
        assert (given.scores.device.type, given.scores.dtype, given.scores.shape) == (
            "cuda",
            torch.float32,
            (2,),
        )
        if card.masks:
            assert (given.masks.device.type, given.masks.dtype) == ("cuda", torch.uint8)


@pytest.mark.parametrize("name", QUICK)
def test_batch_stays_on_the_gpu(name):
    # fp32 does the same with fewer casts.
    read_on_cuda(small(name), "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_batch_stays_on_the_gpu_at_full_size(name, monkeypatch):
    # It counts the image's tokens by value, which no tensor here has.
    monkeypatch.setattr(
        "transformers.models.internvl.modeling_internvl.torch_compilable_check", lambda *_: None
    )
    read_on_cuda(CARDS[name], "fp32", "bf16")


class Forgetful(nn.Module):
    """A network with a tensor that is neither parameter nor buffer, and so stays behind when the
    network moves.
    """

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 1)
        self.weights = torch.tensor([0.3, 0.6, 0.1])

    def forward(self, pixels):
        return self.fc(pixels.mean((2, 3)) * self.weights)


def test_network_that_mixes_devices_is_found(small_card):
    with fake_cuda():
        detector = detector_on_cuda(small_card, Forgetful(), "fp32")
        with pytest.raises(RuntimeError, match=r"cuda:0 and cpu|cpu and cuda:0"):
            detector.read(detector.normalise(torch.empty(2, 64, 64, 3, dtype=torch.uint8)))
