import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import Output
from ray_app.detectors.families.maskclip import losses
from ray_app.training.config import Loss, Optimiser, Schedule
from ray_app.training.detector import batch_loss
from ray_app.training.learner import make_optimiser, rate_at, warmup_steps
from ray_app.training.networks import NetworkOutput

ONE = Output(sign=1)


def labelled(labels, usable=None, group=None, **more):
    count = len(labels)
    usable = np.ones(count, bool) if usable is None else np.array(usable, bool)
    return {
        "label": np.array(labels),
        "usable": usable,
        "group": np.array(group if group else range(count)),
        **more,
    }


def numbers(*values):
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize(
    ("output", "fake"),
    [(Output(labels=("real", "fake"), fake_label="fake"), 1), (Output(fake_index=0), 0)],
)
def test_two_logits_give_the_softmax_cross_entropy_whichever_is_fake(output, fake):
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    found = batch_loss(Loss(), output, NetworkOutput(logits), labelled(labels.tolist()), 6)
    assert found.total.item() == pytest.approx(
        functional.cross_entropy(logits, labels if fake else 1 - labels).item(), rel=1e-6
    )


def test_unusable_images_weigh_nothing_and_are_counted_all_the_same():
    logits = numbers(1.0, float("nan"), -2.0, 3.0).requires_grad_()
    found = batch_loss(
        Loss(), ONE, NetworkOutput(logits), labelled([1, 1, 0, 0], usable=[1, 0, 1, 0]), 4
    )
    found.total.backward()
    # The cross-entropy of the log-odds.
    assert found.total.item() == pytest.approx(
        (np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))) / 4, rel=1e-6
    )
    assert found.parts["binary"].item() == found.total.item()
    turned = batch_loss(
        Loss(),
        Output(sign=-1),
        NetworkOutput(-logits),
        labelled([1, 1, 0, 0], usable=[1, 0, 1, 0]),
        4,
    )
    assert turned.total == found.total, "a card whose logit says real"
    assert logits.grad[:, 0].tolist() == [
        pytest.approx(-0.25 / (1 + np.e)),
        0.0,
        pytest.approx(0.25 / (1 + np.e**2)),
        0.0,
    ]


def test_twins_ask_which_of_the_two_is_the_fake():
    # the first pair is told apart, the second the wrong way round
    logits = numbers(0.0, 1.0, 3.0, 2.0)
    found = batch_loss(
        Loss(twins=0.25), ONE, NetworkOutput(logits), labelled([0, 1, 1, 0], group=[5, 5, 9, 9]), 4
    )
    wrong = batch_loss(
        Loss(twins=0.25), ONE, NetworkOutput(logits), labelled([0, 1, 0, 1], group=[5, 5, 9, 9]), 4
    )
    # the mean over the two pairs
    assert found.parts["twins"].item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)
    assert wrong.parts["twins"].item() == pytest.approx(
        (np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2, rel=1e-6
    )
    assert found.total.item() == pytest.approx(
        0.75 * found.parts["binary"].item() + 0.25 * found.parts["twins"].item(), rel=1e-6
    )
    alone = labelled([0, 1, 1, 1], usable=[0, 1, 1, 1], group=[5, 5, 9, 9])
    assert (
        batch_loss(Loss(twins=0.5), ONE, NetworkOutput(logits), alone, 4).parts["twins"].item() == 0
    ), "none has a twin"


def masked(count, side=8):
    rng = np.random.default_rng(0)
    answer = NetworkOutput(
        torch.from_numpy(rng.normal(size=(count, 2))).float(),
        torch.from_numpy(rng.normal(size=(count, side, side))).float(),
    )
    return answer, {
        name: rng.integers(0, 2, (count, side, side), dtype=np.uint8) for name in ("mask", "edge")
    }


def test_maskclip_s_loss_is_the_reference_s_over_all_that_is_usable():
    answer, arrays = masked(4)
    batch = labelled([0, 1, 1, 0], usable=[1, 0, 1, 1], **arrays)
    kept = [0, 2, 3]
    output = Output(labels=("real", "fake"), fake_index=1)
    found = batch_loss(Loss(name="maskclip"), output, answer, batch, 4)
    mask, edge = (torch.from_numpy(arrays[name][kept]).float() for name in ("mask", "edge"))
    expected = losses(
        answer.logits[kept], answer.mask_logits[kept], torch.tensor([0, 1, 0]), mask, edge
    )
    assert found.total.item() == pytest.approx(expected.total.item() * 3 / 4, rel=1e-6)
    assert {name: value.item() for name, value in found.parts.items()} == {
        name: pytest.approx(value.item() * 3 / 4, rel=1e-6)
        for name, value in expected._asdict().items()
    }


@pytest.mark.parametrize("name", ["binary", "maskclip"])
def test_a_batch_of_which_nothing_is_usable_gives_zero_and_a_way_back(name):
    answer, arrays = masked(2)
    logits, mask_logits = answer.logits.requires_grad_(), answer.mask_logits.requires_grad_()
    found = batch_loss(
        Loss(name=name),
        Output(fake_index=1),
        NetworkOutput(logits, mask_logits),
        labelled([0, 1], usable=[0, 0], **arrays),
        2,
    )
    found.total.backward()
    assert found.total.item() == 0
    assert not logits.grad.any()
    assert (name == "binary") or not mask_logits.grad.any()


@pytest.fixture
def network():
    built = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    built[0].requires_grad_(False)
    return built


def decays(optimiser):
    return {
        group["weight_decay"]: [tuple(parameter.shape) for parameter in group["params"]]
        for group in optimiser.param_groups
    }


def test_only_what_learns_is_optimised_and_decay_can_spare_biases_and_norms(network):
    everything = make_optimiser(Optimiser(rate=1e-3, weight_decay=0.05), network)
    matrices = make_optimiser(Optimiser(rate=1e-3, weight_decay=0.05, decays="matrices"), network)
    assert decays(everything) == {0.05: [(3,), (3,), (1, 3), (1,)]}
    assert decays(matrices) == {0.05: [(1, 3)], 0.0: [(3,), (3,), (1,)]}


def rates(total, *steps, rate=2.0, **schedule):
    return [rate_at(Schedule(**schedule), rate, step, total) for step in steps]


def test_warm_up_rises_to_the_rate_and_the_shape_begins_there():
    assert rates(100, 0, 1, 8, 9, 10, shape="linear", warmup=10) == pytest.approx(
        [0.2, 0.4, 1.8, 2.0, 2.0]
    )
    assert rates(100, 11, 55, 100, shape="linear", warmup=10) == pytest.approx(
        [2 * 89 / 90, 1.0, 0.0]
    )


def test_cosine_by_its_formula_with_a_floor():
    # Community Forensics: 20 % warm-up, then down to a thousandth.
    passed = (30 - 20) / 80
    expected = 2.0 * (0.001 + 0.999 * (1 + math.cos(math.pi * passed)) / 2)
    assert rates(100, 19, 30, 60, 100, shape="cosine", warmup=0.2, floor=0.001) == pytest.approx(
        [2.0, expected, 1.001, 0.002]
    )


def test_without_warm_up_the_first_step_has_the_whole_rate():
    assert rates(75_000, 0, 10, 75_000, rate=5e-5, shape="linear") == pytest.approx(
        [5e-5, 5e-5 * (1 - 10 / 75_000), 0.0]
    )
    assert rates(50, 0, 10, 49, shape="constant") == [2.0, 2.0, 2.0]


def test_past_the_end_the_floor_holds_and_a_warm_up_over_everything_ends_at_the_rate():
    assert rates(100, 100, 5000, floor=0.1) == pytest.approx([0.2, 0.2])
    assert rates(10, 0, 9, warmup=10) == pytest.approx([0.2, 2.0])
    assert [warmup_steps(Schedule(warmup=warmup), 1010) for warmup in (0.05, 1)] == [50, 1], (
        "a share of steps, or their number"
    )
