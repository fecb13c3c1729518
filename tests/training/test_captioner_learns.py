"""A captioner that is trained on 500 pictures of shapes says of combinations that it never saw what stands where in which colour."""

import numpy as np
import pytest
import torch

from ray_app.attribution.captioners.networks import body_state
from ray_app.attribution.captioners.registry import load_describing
from ray_app.training.captioner.learner import CaptionLearner, caption_network, describer_facts, make_plan, tokenizer_json
from ray_app.training.captioner.run import chance_prompts, compared, write_index, write_network
from ray_app.training.config import Recipe
from tests.datasets.simulation.shapes import divided_shapes, draw_shapes

SIDE, PAIRS, EPOCHS, BATCH = 32, 500, 60, 10
PIXELS = {"resize": {"mode": "squash", "size": SIDE}, "mean": [0.5] * 3, "std": [0.5] * 3}
SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
ARCHITECTURE = {
    "model": "vision-encoder-decoder",
    "config": {
        "encoder": {"model_type": "vit", "image_size": SIDE, "patch_size": 8, "hidden_dropout_prob": 0.0, **SIZE},
        "decoder": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    },
}
RECIPE = Recipe.model_validate(
    {
        "name": "shapes", "method": "describe", "detector": "touchstone-tiny", "data": {},
        "describe": {"tier": "captioner", "architecture": ARCHITECTURE, "preprocessing": PIXELS, "vocabulary": 400, "most_tokens": 16},
        "optimiser": {"rate": 1.0e-3, "weight_decay": 0.01}, "schedule": {"warmup": 0.1},
        "loop": {"epochs": EPOCHS, "batch": BATCH, "clip": 1.0, "precision": "fp32"},
    }
)  # fmt: skip


def pictures(several, first):
    return np.stack([np.asarray(draw_shapes(one, first + number, SIDE)) for number, one in enumerate(several)])


def trained(images, prompts):
    plan = make_plan(RECIPE.name, RECIPE.describe, width=None, prompts=prompts)
    steps = EPOCHS * len(images) // BATCH
    learner = CaptionLearner(
        RECIPE,
        caption_network(RECIPE.name, RECIPE.describe, plan, 0),
        plan.words,
        plan.words.targets(prompts, 16),
        preprocessing=RECIPE.describe.preprocessing,
        device="cpu",
        total_steps=steps,
    )
    for step in range(steps):
        epoch, place = divmod(step * BATCH, len(images))
        rows = np.random.default_rng(epoch).permutation(len(images))[place : place + BATCH]
        learner.step({"row": rows, "usable": np.ones(BATCH, bool), "image": images[rows]})
    return plan, learner


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_captioner_of_500_pairs_says_what_no_training_image_had(tmp_path):
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    train, held = divided_shapes(PAIRS, held_out=0.2, seed=0)
    prompts, truth = [one.prompt for one in train], [one.prompt for one in held]
    assert len(train) == PAIRS
    assert not set(prompts) & set(truth)
    images, unseen = pictures(train, 0), pictures(held, 10**6)
    plan, learner = trained(images, prompts)
    facts = describer_facts(RECIPE.describe, plan, {"preprocessing": PIXELS})
    describer = load_describing(write_network(tmp_path, RECIPE, facts, body_state(learner.network), tokenizer_json(plan)))
    said = [one.text for one in describer.describe(unseen)]
    known, asked = (part[:, ::2, ::2].reshape(len(part), -1) - np.float32(127) for part in (images, unseen))
    sees = {"detector": "touchstone-tiny", "embedding": {}}
    (tmp_path / "nearest").mkdir()
    nearest = load_describing(write_index(tmp_path / "nearest", RECIPE, sees, known, prompts))
    systems = {"captioner": said, "nearest by pixels": [one.text for one in nearest.describe(asked)]}
    found = compared(truth, systems | chance_prompts(prompts, len(truth), 0))
    for name, figures in found.items():
        print(name, {figure: (row["value"], row["interval"]) for figure, row in figures.items()})
    others = [figures for name, figures in found.items() if name != "captioner"]
    for figure in ("token_f1", "rouge_l", "exact"):
        assert found["captioner"][figure]["interval"][0] > max(one[figure]["interval"][1] for one in others), figure
    assert found["captioner"]["exact"]["value"] > 0.5
