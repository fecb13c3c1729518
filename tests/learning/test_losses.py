import numpy as np
import pytest
import torch
from torch.nn import functional

from ray_app.detectors.cards import Output
from ray_app.detectors.maskclip_losses import losses
from ray_app.learning.config import Loss
from ray_app.learning.losses import batch_loss
from ray_app.learning.networks import Answer

ONE = Output(sign=1)


def labelled(labels, usable=None, group=None, **more):
    count = len(labels)
    usable = np.ones(count, bool) if usable is None else np.array(usable, bool)
    return {"label": np.array(labels), "usable": usable, "group": np.array(group if group else range(count)), **more}


def numbers(*values):
    return torch.tensor(values)[:, None]


def test_binary_is_cross_entropy_of_the_log_odds():
    found = batch_loss(Loss(), ONE, Answer(numbers(2.0, -1.0, 0.5)), labelled([1, 0, 0]), 3)

    expected = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0)), np.log1p(np.exp(0.5))])
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    assert found.parts == {"binary": pytest.approx(expected)}


@pytest.mark.parametrize(("output", "fake"), [(Output(labels=("real", "fake"), fake_label="fake"), 1), (Output(fake_index=0), 0)])
def test_two_logits_give_the_softmax_cross_entropy_whichever_is_fake(output, fake):
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])

    found = batch_loss(Loss(), output, Answer(logits), labelled(labels.tolist()), 6)

    assert found.total.item() == pytest.approx(functional.cross_entropy(logits, labels if fake else 1 - labels).item(), rel=1e-6)


def test_a_card_whose_logit_says_real_is_turned_round():
    upright = batch_loss(Loss(), ONE, Answer(numbers(2.0, -1.0)), labelled([1, 0]), 2)
    turned = batch_loss(Loss(), Output(sign=-1), Answer(numbers(-2.0, 1.0)), labelled([1, 0]), 2)

    assert upright.total == turned.total


@pytest.mark.parametrize("loss", [Loss(), Loss(twins=0.4)])
def test_parts_of_a_batch_add_up_to_the_whole(loss):
    logits = torch.randn(8, 1, generator=torch.Generator().manual_seed(1))
    batch = labelled([0, 1] * 4, usable=[1, 1, 1, 0, 1, 1, 0, 0], group=[0, 0, 1, 1, 2, 2, 3, 3])

    whole = batch_loss(loss, ONE, Answer(logits), batch, 8)
    parts = [
        batch_loss(loss, ONE, Answer(logits[start : start + 2]), {name: values[start : start + 2] for name, values in batch.items()}, 8)
        for start in range(0, 8, 2)
    ]

    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-6)


def test_unusable_images_weigh_nothing_and_are_counted_all_the_same():
    logits = numbers(1.0, float("nan"), -2.0, 3.0).requires_grad_()

    found = batch_loss(Loss(), ONE, Answer(logits), labelled([1, 1, 0, 0], usable=[1, 0, 1, 0]), 4)
    found.total.backward()

    assert found.total.item() == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))) / 4, rel=1e-6)
    assert logits.grad[:, 0].tolist() == [pytest.approx(-0.25 / (1 + np.e)), 0.0, pytest.approx(0.25 / (1 + np.e**2)), 0.0]


def test_twins_ask_which_of_the_two_is_the_fake():
    logits = numbers(0.0, 1.0, 3.0, 2.0)  # the first pair is told apart, the second the wrong way round

    found = batch_loss(Loss(twins=0.25), ONE, Answer(logits), labelled([0, 1, 1, 0], group=[5, 5, 9, 9]), 4)
    wrong = batch_loss(Loss(twins=0.25), ONE, Answer(logits), labelled([0, 1, 0, 1], group=[5, 5, 9, 9]), 4)

    assert found.parts["twins"].item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)  # the mean over the two pairs
    assert wrong.parts["twins"].item() == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2, rel=1e-6)
    assert found.total.item() == pytest.approx(0.75 * found.parts["binary"].item() + 0.25 * found.parts["twins"].item(), rel=1e-6)


def test_images_without_a_twin_add_nothing_to_that_term():
    logits = numbers(0.0, 1.0, 3.0, 2.0)

    found = batch_loss(Loss(twins=0.5), ONE, Answer(logits), labelled([0, 1, 1, 1], usable=[0, 1, 1, 1], group=[5, 5, 9, 9]), 4)

    assert found.parts["twins"].item() == 0


def masked(count, side=8):
    rng = np.random.default_rng(0)
    answer = Answer(torch.from_numpy(rng.normal(size=(count, 2))).float(), torch.from_numpy(rng.normal(size=(count, side, side))).float())
    return answer, {name: rng.integers(0, 2, (count, side, side), dtype=np.uint8) for name in ("mask", "edge")}


def test_maskclip_s_loss_is_the_reference_s_over_all_that_is_usable():
    answer, arrays = masked(4)
    batch = labelled([0, 1, 1, 0], usable=[1, 0, 1, 1], **arrays)
    kept = [0, 2, 3]
    output = Output(labels=("real", "fake"), fake_index=1)

    found = batch_loss(Loss(name="maskclip"), output, answer, batch, 4)

    mask, edge = (torch.from_numpy(arrays[name][kept]).float() for name in ("mask", "edge"))
    expected = losses(answer.logits[kept], answer.mask_logits[kept], torch.tensor([0, 1, 0]), mask, edge)
    assert found.total.item() == pytest.approx(expected.total.item() * 3 / 4, rel=1e-6)
    assert {name: value.item() for name, value in found.parts.items()} == {
        name: pytest.approx(value.item() * 3 / 4, rel=1e-6) for name, value in expected._asdict().items()
    }


@pytest.mark.parametrize("name", ["binary", "maskclip"])
def test_a_batch_of_which_nothing_is_usable_gives_zero_and_a_way_back(name):
    answer, arrays = masked(2)
    logits, mask_logits = answer.logits.requires_grad_(), answer.mask_logits.requires_grad_()

    found = batch_loss(Loss(name=name), Output(fake_index=1), Answer(logits, mask_logits), labelled([0, 1], usable=[0, 0], **arrays), 2)
    found.total.backward()

    assert found.total.item() == 0
    assert not logits.grad.any()
    assert (name == "binary") or not mask_logits.grad.any()
