"""A step of learning stays on `cuda`, as far as that can be seen without one: every kind of
network, in fp32 and bf16.

The way back is not run: torch's engine wants a device for it. Every parameter that learns gets a
gradient of its own shape instead.
"""

import pytest
import torch

from ray_app.training import detector
from ray_app.training.networks import network_for, training_card
from tests.detectors.fake_cuda import devices_of, fake_cuda
from tests.training.small_recipes import batch, recipe


def step_on_cuda(made, monkeypatch, side=32):
    """The learner after one step."""
    card = training_card(made)
    network = network_for(made, card)
    monkeypatch.setattr(detector, "network_for", lambda recipe, card: network)
    seen = []
    with fake_cuda():
        one = detector.DetectorLearner(made, card, device="cuda", total_steps=3)

        def backward(total):
            seen.append(total)
            for parameter in one.network.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        # What a step reports are numbers, which nothing here has.
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [1.0] * len(tensor))
        monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
        one.step(batch(0, side=side, masks=made.loss.name == "maskclip"))
        assert {(total.device.type, total.requires_grad) for total in seen} == {("cuda", True)}
        assert devices_of(one.network) == {"cuda"}
        assert {parameter.grad.device.type for parameter in one._learning()} == {"cuda"}
        states = [
            value
            for state in one.optimiser.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        assert {value.device.type for value in states if value.ndim} == {"cuda"}
    return one


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("vit", "fp32"),
        ("vit", "bf16"),
        ("residual", "bf16"),
        ("swin", "fp32"),
        ("siglip", "bf16"),
        ("hf-vit", "fp32"),
        ("maskclip", "bf16"),
    ],
)
def test_a_step_stays_on_the_gpu(kind, precision, monkeypatch):
    one = step_on_cuda(
        recipe(kind, precision=precision, loop={"clip": 1.0}),
        monkeypatch,
        side=64 if kind == "maskclip" else 32,
    )
    assert one.precision == precision


def test_twins_and_micro_batches_stay_on_the_gpu(monkeypatch):
    step_on_cuda(
        recipe(
            "vit",
            loss={"name": "binary", "twins": 0.5},
            sampling={"twins": True},
            loop={"micro_batch": 4},
        ),
        monkeypatch,
    )
