import numpy as np
import pytest
import torch

from ray_app.errors import TouchstoneError
from ray_app.metrics import pixel_figures
from ray_app.training.networks import deployable, network_for, training_card
from ray_app.training.validate import detector_for, judge
from tests.training.small_recipes import batch, recipe


def judged(kind, batches):
    made = recipe(kind)
    card = training_card(made)
    network = deployable(network_for(made, card), card)
    return (
        judge(detector_for(card, network, device="cpu", precision="fp32"), batches),
        network,
        card,
    )


def test_every_readable_image_has_the_score_of_the_network_in_the_order_given():
    batches = [batch(0, 6), batch(1, 3, unusable=(1,)), batch(2, 2, unusable=(0, 1))]
    found, network, card = judged("vit", iter(batches))
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5, 3, 5]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 0]
    assert found.unreadable.tolist() == [4, 4, 5]
    assert found.scores.dtype == np.float64
    assert found.pixels is None
    images = np.concatenate([one["image"][one["usable"]] for one in batches])
    scale = (
        torch.tensor(card.preprocessing.std)[:, None, None],
        torch.tensor(card.preprocessing.mean)[:, None, None],
    )
    with torch.inference_mode():
        expected = network(
            (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - scale[1]) / scale[0]
        )[:, 0]
    assert found.scores == pytest.approx(expected.numpy(), abs=1e-5)
    nothing, *_ = judged("siglip", [])
    assert [len(values) for values in nothing[:4]] == [0, 0, 0, 0]


def test_masks_of_all_batches_are_compared_as_one():
    batches = [batch(0, 6, 64, masks=True), batch(1, 3, 64, masks=True, unusable=(1,))]
    found, network, card = judged("maskclip", batches)
    masks, truths = [], []
    for one in batches:
        pixels = (
            torch.from_numpy(one["image"]).permute(0, 3, 1, 2) / 255
            - torch.tensor(card.preprocessing.mean)[:, None, None]
        ) / (torch.tensor(card.preprocessing.std)[:, None, None])
        with torch.inference_mode():
            masks += network(pixels).masks.numpy()[one["usable"]].tolist()
        truths += list(one["mask"][one["usable"]])
    expected = pixel_figures([np.array(mask) for mask in masks], truths)
    assert found.pixels == {**expected, "pixel_f1": pytest.approx(expected["pixel_f1"], abs=0.01),
                            "pixel_iou": pytest.approx(expected["pixel_iou"], abs=0.01)}  # fmt: skip
    assert found.pixels["n"] == 3
    assert len(found.scores) == 8
    unaltered, *_ = judged("maskclip", [batch(0, 2, 64, masks=True, unusable=(1,))])
    assert unaltered.pixels == {"pixel_f1": None, "pixel_iou": None, "n": 0}


def test_a_network_that_gives_no_number_is_said():
    made = recipe()
    card = training_card(made)
    network = deployable(network_for(made, card), card)
    torch.nn.init.constant_(network.head.bias, float("nan"))
    with pytest.raises(TouchstoneError, match="no finite score for 4 images") as caught:
        judge(detector_for(card, network, device="cpu", precision="fp32"), [batch(0, 4)])
    assert "rate" in caught.value.hint
