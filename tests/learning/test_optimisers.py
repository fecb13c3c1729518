import pytest
import torch
from torch import nn

from ray_app.learning.config import Optimiser
from ray_app.learning.optimisers import make_optimiser


@pytest.fixture
def network():
    built = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    built[0].requires_grad_(False)
    return built


def decays(optimiser):
    return {group["weight_decay"]: [tuple(parameter.shape) for parameter in group["params"]] for group in optimiser.param_groups}


def test_only_what_learns_is_optimised_and_decay_can_spare_biases_and_norms(network):
    everything = make_optimiser(Optimiser(rate=1e-3, weight_decay=0.05), network)
    matrices = make_optimiser(Optimiser(rate=1e-3, weight_decay=0.05, decays="matrices"), network)

    assert decays(everything) == {0.05: [(3,), (3,), (1, 3), (1,)]}
    assert decays(matrices) == {0.05: [(1, 3)], 0.0: [(3,), (3,), (1,)]}


@pytest.mark.parametrize(
    ("config", "kind", "values"),
    [
        ({"name": "adamw", "betas": (0.8, 0.9), "eps": 1e-6}, torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ({"name": "adam", "weight_decay": 0.1}, torch.optim.Adam, {"betas": (0.9, 0.999), "weight_decay": 0.1}),
        ({"name": "sgd", "momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    ],
)
def test_each_by_its_own_numbers(network, config, kind, values):
    optimiser = make_optimiser(Optimiser(rate=0.25, **config), network)

    assert type(optimiser) is kind
    assert {name: optimiser.param_groups[0][name] for name in values} == values
    assert optimiser.param_groups[0]["lr"] == 0.25


def test_decay_shrinks_what_no_gradient_moves(network):
    optimiser = make_optimiser(Optimiser(name="sgd", rate=0.5, weight_decay=0.1, decays="matrices"), network)
    weight, bias = (parameter.detach().clone() for parameter in network[2].parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    optimiser.step()

    assert torch.allclose(network[2].weight, weight * 0.95)
    assert torch.equal(network[2].bias, bias)
