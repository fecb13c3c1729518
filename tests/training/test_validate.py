import numpy as np
import pytest
import torch

from ray_app.errors import TouchstoneError
from ray_app.metrics import pixel_figures
from ray_app.training.networks import build_training_network, make_deployable, training_card
from ray_app.training.validate import build_detector, score_batches
from tests.training.small_recipes import batch, recipe


def deployed(kind):
    given = recipe(kind)
    card = training_card(given)
    return make_deployable(build_training_network(given, card), card), card


def judged(network, card, batches):
    return score_batches(build_detector(card, network, device="cpu", precision="fp32"), batches)


def answers(network, card, batches):
    """The answer of the network to each usable image."""
    images = np.concatenate([one["image"][one["usable"]] for one in batches])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = (
        torch.tensor(getattr(card.preprocessing, name))[:, None, None] for name in ("mean", "std")
    )
    with torch.inference_mode():
        return network((pixels - mean) / std)


def test_judge_scores_every_readable_image_in_order():
    network, card = deployed("vit")
    batches = [batch(0, 6), batch(1, 3, unusable=(1,)), batch(2, 2, unusable=(0, 1))]
    found = judged(network, card, iter(batches))
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5, 3, 5]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert found.unreadable.tolist() == [4, 4, 5]
    assert found.scores.dtype == np.float64
    assert found.pixels is None
    expected = answers(network, card, batches)[:, 0].numpy()
    assert found.scores == pytest.approx(expected, abs=1e-5)
    assert [len(values) for values in judged(network, card, [])[:4]] == [0, 0, 0, 0]


def test_judge_compares_masks_of_all_batches_as_one():
    network, card = deployed("maskclip")
    batches = [batch(0, 6, 64, masks=True), batch(1, 3, 64, masks=True, unusable=(1,))]
    found = judged(network, card, batches)
    masks = answers(network, card, batches).masks.numpy()
    truths = [mask for one in batches for mask in one["mask"][one["usable"]]]
    expected = pixel_figures(list(masks), truths)
    for name in ("pixel_f1", "pixel_iou"):
        assert found.pixels[name] == pytest.approx(expected[name], abs=0.01)
    assert found.pixels["n"] == expected["n"] == 3
    assert len(found.scores) == 8
    unaltered = judged(network, card, [batch(0, 2, 64, masks=True, unusable=(1,))])
    assert unaltered.pixels == {"pixel_f1": None, "pixel_iou": None, "n": 0}


def test_judge_rejects_a_network_without_finite_scores():
    network, card = deployed("vit")
    torch.nn.init.constant_(network.head.bias, float("nan"))
    with pytest.raises(TouchstoneError, match="scores of 4 images are not finite") as caught:
        judged(network, card, [batch(0, 4)])
    assert "rate" in caught.value.hint
