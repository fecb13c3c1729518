import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from ray_app import load_detector
from ray_app.errors import TouchstoneError
from ray_app.metrics import pixel_figures
from ray_app.reports.format import format_metric
from ray_app.training import checkpoints, loop
from ray_app.training.export import finish
from ray_app.training.networks import build_training_network, make_deployable, training_card
from ray_app.training.validate import build_detector, score_batches
from ray_app.training.worker import Worker
from tests.training.small_recipes import batch, recipe
from tests.training.trainings import config, job_here


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


def test_metrics_of_a_training_are_those_of_its_card(labelled, tmp_path):
    """The network calls every image fake before it is calibrated."""
    given = config(
        labelled, out=str(tmp_path), initial={"start": "card"}, card=None,
        augmentation={"policy": "none", "arguments": {}},
    )  # fmt: skip
    job, findings, claim = job_here(given)
    learner = loop.make_learner(job, Worker())
    *_, bias = (tensor for tensor in learner.network.parameters() if tensor.ndim == 1)
    with torch.no_grad():
        bias += 20
    learner.step_number = job.total_steps
    checkpoints.CheckpointWriter(job.out).save(learner, finished=True)
    facts = finish(job, findings, claim)

    rows = pq.read_table(tmp_path / "scores/test.parquet").to_pydict()
    detector = load_detector(tmp_path / "card.yaml")
    is_fake = np.array(rows["label"]) == "fake"
    probability = np.array([found.probability for found in detector.score(rows["uri"])])
    flagged = probability > 0.5
    expected = {
        "balanced_accuracy": balanced_accuracy_score(is_fake, flagged),
        "f1": f1_score(is_fake, flagged),
        "loss": log_loss(is_fake, probability),
    }
    assert expected["balanced_accuracy"] > 0.8
    assert {name: facts["test"][name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert np.min(rows["score"]) > 0, "they are stored before calibration"
    [card] = detector.cards.values()
    published = {
        entry.metric: entry.value
        for entry in card.published
        if entry.set.endswith((", test", ", test, real:noise")) and "at 0" in entry.metric
    }
    assert published == pytest.approx(
        {
            "balanced accuracy at 0": expected["balanced_accuracy"],
            "F1 at 0": expected["f1"],
            "TNR at 0": 1 - flagged[~is_fake].mean(),
        },
        abs=1e-4,
    )
    shown = format_metric("loss", facts["test"]["loss"])
    assert shown in (tmp_path / "report.html").read_text()
