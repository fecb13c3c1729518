"""A training step keeps every tensor on `cuda`, as far as a machine without a GPU can show it.

The backward pass does not run, since the engine of torch needs a device. Every parameter that
learns gets a gradient of its own shape instead.
"""

import pytest
import torch

from ray_app.training import detector
from ray_app.training.networks import build_training_network, training_card
from tests.make.fake_cuda import devices_of, fake_cuda
from tests.training.small_recipes import batch, recipe


def step_on_cuda(given, monkeypatch, side=32):
    """Return the learner after one step."""
    card = training_card(given)
    network = build_training_network(given, card)
    monkeypatch.setattr(detector, "build_training_network", lambda recipe, card: network)
    totals = []
    with fake_cuda():
        learner = detector.DetectorLearner(given, card, device="cuda", total_steps=3)
        learning = [one for one in learner.network.parameters() if one.requires_grad]

        def backward(total):
            totals.append(total)
            for parameter in learning:
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        # A step reports numbers, which tensors without values do not have.
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: [1.0] * len(tensor))
        monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
        learner.step(batch(0, side=side, masks=given.loss.name == "maskclip"))
        states = learner.optimiser.state.values()
        moments = [value for state in states for value in state.values()]
        tensors = [one for one in moments if isinstance(one, torch.Tensor) and one.ndim]
        gradients = [one.grad for one in learning]
        devices = {one.device.type for one in (*totals, *gradients, *tensors)}
    assert all(total.requires_grad for total in totals)
    assert devices | devices_of(learner.network) == {"cuda"}
    return learner


@pytest.mark.parametrize(
    ("kind", "precision", "side"),
    [
        ("vit", "bf16", 32),
        ("residual", "bf16", 32),
        ("swin", "fp32", 32),
        ("siglip", "bf16", 32),
        ("hf-vit", "fp32", 32),
        pytest.param("maskclip", "bf16", 64, marks=pytest.mark.slow),
    ],
)
def test_step_stays_on_the_gpu(kind, precision, side, monkeypatch):
    given = recipe(kind, precision=precision, loop={"clip": 1.0})
    assert step_on_cuda(given, monkeypatch, side).precision == precision


def test_step_with_twins_and_micro_batches_stays_on_gpu(monkeypatch):
    loss = {"name": "binary", "twins": 0.5}
    given = recipe("vit", loss=loss, sampling={"twins": True}, loop={"micro_batch": 4})
    step_on_cuda(given, monkeypatch)
