import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.card import Output
from ray_app.detectors.families.maskclip import losses
from ray_app.training.config import Loss, Optimiser, Schedule
from ray_app.training.detector import compute_batch_loss
from ray_app.training.learner import compute_rate, count_warmup_steps, make_optimiser
from ray_app.training.networks import NetworkOutput

ONE = Output(sign=1)


def labelled(labels, usable=None, group=None, **more):
    count = len(labels)
    return {
        "label": np.array(labels),
        "usable": np.ones(count, bool) if usable is None else np.array(usable, bool),
        "group": np.array(group if group else range(count)),
        **more,
    }


def numbers(*values):
    return torch.tensor(values)[:, None]


def loss_of(logits, drawn, loss=None, output=ONE):
    return compute_batch_loss(
        loss or Loss(), output, NetworkOutput(logits), drawn, len(drawn["label"])
    )


@pytest.mark.parametrize(
    ("output", "fake"),
    [(Output(labels=("real", "fake"), fake_label="fake"), 1), (Output(fake_index=0), 0)],
)
def test_two_logits_give_softmax_cross_entropy(output, fake):
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    found = loss_of(logits, labelled(labels.tolist()), output=output)
    expected = functional.cross_entropy(logits, labels if fake else 1 - labels)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_unusable_images_have_no_weight_and_are_counted():
    logits = numbers(1.0, float("nan"), -2.0, 3.0).requires_grad_()
    drawn = labelled([1, 1, 0, 0], usable=[1, 0, 1, 0])
    found = loss_of(logits, drawn)
    found.total.backward()
    expected = (np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))) / 4  # cross-entropy of the log-odds
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    assert found.parts["binary"].item() == found.total.item()
    slopes = [-0.25 / (1 + np.e), 0.0, 0.25 / (1 + np.e**2), 0.0]
    assert logits.grad[:, 0].tolist() == pytest.approx(slopes)
    turned = loss_of(-logits, drawn, output=Output(sign=-1))
    assert turned.total == found.total, "a card whose logit says real"


def test_twins_loss_asks_which_of_two_is_the_fake():
    # The first pair is told apart, the second pair the wrong way round.
    logits, group, loss = numbers(0.0, 1.0, 3.0, 2.0), [5, 5, 9, 9], Loss(twins=0.25)
    found = loss_of(logits, labelled([0, 1, 1, 0], group=group), loss)
    wrong = loss_of(logits, labelled([0, 1, 0, 1], group=group), loss)
    right, mistaken = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert found.parts["twins"].item() == pytest.approx(right, rel=1e-6)
    assert wrong.parts["twins"].item() == pytest.approx((right + mistaken) / 2, rel=1e-6)
    parts = {name: value.item() for name, value in found.parts.items()}
    expected = 0.75 * parts["binary"] + 0.25 * parts["twins"]
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    alone = labelled([0, 1, 1, 1], usable=[0, 1, 1, 1], group=group)
    assert loss_of(logits, alone, loss).parts["twins"].item() == 0, "none has a twin"


def masked(count, side=8):
    rng = np.random.default_rng(0)
    answer = NetworkOutput(
        torch.from_numpy(rng.normal(size=(count, 2))).float(),
        torch.from_numpy(rng.normal(size=(count, side, side))).float(),
    )
    return answer, {
        name: rng.integers(0, 2, (count, side, side), dtype=np.uint8) for name in ("mask", "edge")
    }


def test_maskclip_loss_is_that_of_the_reference():
    answer, arrays = masked(4)
    drawn = labelled([0, 1, 1, 0], usable=[1, 0, 1, 1], **arrays)
    kept = [0, 2, 3]
    output = Output(labels=("real", "fake"), fake_index=1)
    found = compute_batch_loss(Loss(name="maskclip"), output, answer, drawn, 4)
    mask, edge = (torch.from_numpy(arrays[name][kept]).float() for name in ("mask", "edge"))
    logits, mask_logits = answer.logits[kept], answer.mask_logits[kept]
    expected = losses(logits, mask_logits, torch.tensor([0, 1, 0]), mask, edge)
    assert found.total.item() == pytest.approx(expected.total.item() * 3 / 4, rel=1e-6)
    assert found.parts.keys() == expected._asdict().keys()
    for name, value in expected._asdict().items():
        assert found.parts[name].item() == pytest.approx(value.item() * 3 / 4, rel=1e-6), name


@pytest.mark.parametrize("name", ["binary", "maskclip"])
def test_batch_without_usable_images_has_zero_gradients(name):
    answer, arrays = masked(2)
    logits, mask_logits = answer.logits.requires_grad_(), answer.mask_logits.requires_grad_()
    drawn = labelled([0, 1], usable=[0, 0], **arrays)
    answer = NetworkOutput(logits, mask_logits)
    found = compute_batch_loss(Loss(name=name), Output(fake_index=1), answer, drawn, 2)
    found.total.backward()
    assert found.total.item() == 0
    assert not logits.grad.any()
    assert name == "binary" or not mask_logits.grad.any()


@pytest.mark.parametrize(
    ("decays", "expected"),
    [
        ("all", {0.05: [(3,), (3,), (1, 3), (1,)]}),
        ("matrices", {0.05: [(1, 3)], 0.0: [(3,), (3,), (1,)]}),
    ],
)
def test_optimiser_has_learning_parameters_alone(decays, expected):
    network = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    settings = Optimiser(rate=1e-3, weight_decay=0.05, decays=decays)
    groups = make_optimiser(settings, network).param_groups
    found = {
        group["weight_decay"]: [tuple(one.shape) for one in group["params"]] for group in groups
    }
    assert found == expected


# Community Forensics: 20 % warm-up, then a cosine to a thousandth.
COSINE = {"shape": "cosine", "warmup": 0.2, "floor": 0.001}
AT_30 = 2.0 * (0.001 + 0.999 * (1 + math.cos(math.pi * (30 - 20) / 80)) / 2)


@pytest.mark.parametrize(
    ("schedule", "total", "expected"),
    [
        ({"shape": "linear", "warmup": 10}, 100, {0: 0.2, 1: 0.4, 8: 1.8, 9: 2.0, 10: 2.0}),
        ({"shape": "linear", "warmup": 10}, 100, {11: 2 * 89 / 90, 55: 1.0, 100: 0.0}),
        (COSINE, 100, {19: 2.0, 30: AT_30, 60: 1.001, 100: 0.002}),
        ({"shape": "linear"}, 75_000, {0: 2.0, 10: 2 * (1 - 10 / 75_000), 75_000: 0.0}),
        ({"shape": "constant"}, 50, {0: 2.0, 10: 2.0, 49: 2.0}),
        ({"floor": 0.1}, 100, {100: 0.2, 5000: 0.2}),
        ({"warmup": 10}, 10, {0: 0.2, 9: 2.0}),
    ],
    ids=["warmup", "linear", "cosine", "no-warmup", "constant", "past-the-end", "all-warmup"],
)
def test_rate_follows_the_schedule(schedule, total, expected):
    found = {step: compute_rate(Schedule(**schedule), 2.0, step, total) for step in expected}
    assert found == pytest.approx(expected)


def test_warmup_is_a_fraction_or_a_number_of_steps():
    assert [count_warmup_steps(Schedule(warmup=warmup), 1010) for warmup in (0.05, 1)] == [50, 1]
