"""Learning to say words: a step, a saved training that goes on as if never stopped, the card that
comes of it, and its figures.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_app.errors import ConfigError, DetectorError
from ray_app.identification.captioners import body_state, build_describer
from ray_app.identification.cards import load_describer
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.training.captioner import CaptionLearner, caption_network, decoder_inputs, make_plan
from ray_app.training.config import Recipe
from ray_app.training.describe import (
    CARD,
    WEIGHTS,
    add_published,
    draw_prompts,
    measure_prompts,
    write_describer,
    write_index,
    write_network,
)
from tests.identification.tiny_speakers import ARCHITECTURES, PIXELS, SIDE, WIDTH

PROMPTS = [
    "a red circle on the left",
    "a blue square above",
    "a green triangle",
    "an orange cross in the rain",
]
KINDS = list(ARCHITECTURES)
TRUTH = ["a red circle, upper left", "a blue square, lower right", "a green cross, lower left"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bare(told):
    """An architecture without what a tokenizer decides."""
    decided = (
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "n_positions",
        "max_position_embeddings",
    )
    return {
        name: bare(one) if isinstance(one, dict) else one
        for name, one in told.items()
        if name not in (*decided, "width")
    }


def recipe(kind, **loop):
    tier = (
        {"tier": "prefix", "prefix": 3}
        if kind == "prefix"
        else {"tier": "captioner", "preprocessing": PIXELS}
    )
    told = {"name": "words", "method": "describe", "detector": "touchstone-tiny", "data": {}, "optimiser": {"rate": 3e-3},
            "describe": {**tier, "architecture": bare(ARCHITECTURES[kind]), "vocabulary": 300, "most_tokens": 20},
            "loop": {"steps": 20, "batch": 4, "precision": "fp32", **loop}}  # fmt: skip
    return Recipe.model_validate(told)


def learner_of(kind, **loop):
    told = recipe(kind, **loop)
    plan = make_plan(told.name, told.describe, width=WIDTH, prompts=PROMPTS)
    pixels = None if kind == "prefix" else told.describe.preprocessing
    network = caption_network(told.name, told.describe, plan, told.loop.seed)
    return plan, CaptionLearner(
        told,
        network,
        plan.tokenizer,
        plan.tokenizer.encode_targets(PROMPTS, 20),
        preprocessing=pixels,
        device="cpu",
        total_steps=told.loop.steps,
    )


def without_dropout(learner):
    for module in learner.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def batch_of(kind, usable=(True,) * 4):
    rng = np.random.default_rng(4)
    given = {
        "embedding": rng.normal(size=(4, WIDTH)).astype(np.float32),
        "image": rng.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8),
    }
    return {"row": np.arange(4), "usable": np.array(usable), **given}


def test_the_first_loss_is_the_cross_entropy_of_the_tokens():
    plan, learner = learner_of("prefix")
    batch = batch_of("prefix")
    without_dropout(learner)
    targets = torch.from_numpy(plan.tokenizer.encode_targets(PROMPTS, 20).astype(np.int64))
    with torch.no_grad():
        chances = learner.network.eval()(
            torch.from_numpy(batch["embedding"]), decoder_inputs(targets, plan.tokenizer)
        ).log_softmax(2)
    expected = (
        -chances.gather(2, targets.clamp(min=0)[..., None])[..., 0][targets != -100].mean().item()
    )
    learner.network.train()
    assert learner.step(batch).loss == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_by_heart_is_said_word_for_word_by_a_card_with_one_file(tmp_path, kind):
    told, (plan, learner) = recipe(kind, steps=120), learner_of(kind, steps=120)
    without_dropout(learner)
    for _ in range(120):
        learner.step(batch_of(kind))
    sees = (
        {"detector": "touchstone-tiny", "embedding": {"width": WIDTH}}
        if kind == "prefix"
        else {"preprocessing": PIXELS}
    )
    card = write_network(tmp_path, told, plan, sees, body_state(learner.network))
    given = batch_of(kind)["embedding" if kind == "prefix" else "image"]
    said = build_describer(card).describe(given)
    assert [one.text for one in said] == PROMPTS
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "describer.safetensors",
        "describer.yaml",
    ]
    figures = {"exact": {"value": 0.5, "n": 4}}
    (tmp_path / CARD).write_bytes(add_published((tmp_path / CARD).read_bytes(), told, figures))
    again = load_describer(tmp_path / CARD)
    assert [one.metric for one in again.published] == ["share of prompts predicted word for word"]
    assert build_describer(again).describe(given) == said
    started = told.describe.model_copy(update={"start": str(tmp_path / CARD), "architecture": {}})
    network = caption_network(told.name, started, make_plan(told.name, started, width=WIDTH), 99)
    for one, other in zip(
        body_state(network).values(), body_state(learner.network).values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["prefix", "vision-encoder-decoder"])
def test_a_saved_training_goes_on_as_if_it_had_never_stopped(tmp_path, kind):
    _, straight = learner_of(kind)
    _, before = learner_of(kind)
    for number in range(6):
        straight.step(batch_of(kind))
        if number < 3:
            before.step(batch_of(kind))
    before.save(tmp_path)
    _, after = learner_of(kind)
    after.load(tmp_path)
    assert after.step_number == 3
    for _ in range(3):
        after.step(batch_of(kind))
    for one, other in zip(
        body_state(straight.network).values(), body_state(after.network).values(), strict=True
    ):
        assert torch.equal(one, other)


def test_micro_batches_give_the_gradients_of_the_whole():
    norms = []
    for micro in (None, 3):
        _, learner = learner_of("prefix", micro_batch=micro)
        without_dropout(learner)
        norms.append(learner.step(batch_of("prefix")).gradient_norm)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_images_that_could_not_be_read_teach_nothing():
    part = batch_of("prefix", (True, True, False, False))
    changed = {**part, "embedding": part["embedding"].copy()}
    changed["embedding"][2:] = 9
    told = []
    for batch in (part, changed):
        _, learner = learner_of("prefix")
        figures = learner.step(batch)
        told.append((figures.loss, figures.unusable))
    assert told[0] == told[1]
    assert told[0][1] == 2
    _, learner = learner_of("prefix")
    assert learner.step(batch_of("prefix", (False,) * 4)).loss == 0


@pytest.mark.parametrize(
    ("data", "licence"), [("CC BY-NC 4.0", "CC BY-NC 4.0"), ("CC0-1.0", "BSD-3-Clause")]
)
def test_what_began_from_other_weights_has_the_stricter_licence(tmp_path, data, licence):
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    told = recipe("git").model_dump() | {
        "describe": {"tier": "captioner", "start": "blip-base"},
        "data": {"licence": data},
    }
    card = write_describer(
        tmp_path,
        Recipe.model_validate(told),
        {"tier": "captioner", "preprocessing": PIXELS},
        load_describer("blip-base"),
    )
    assert card.licence == licence


def test_recipes_that_do_not_fit_are_refused(tmp_path):
    told = recipe("prefix")
    card = write_index(
        tmp_path,
        told,
        {"detector": "touchstone-tiny", "embedding": {}},
        np.eye(3, WIDTH, dtype=np.float32),
        PROMPTS[:3],
    )
    assert build_describer(card).describe(np.eye(3, WIDTH, dtype=np.float32))[1].text == PROMPTS[1]
    started = told.describe.model_copy(update={"start": str(tmp_path / CARD), "architecture": {}})
    with pytest.raises(ConfigError, match="of the tier retrieval, not prefix"):
        make_plan("words", started, width=WIDTH)
    with pytest.raises(ConfigError, match="must be git, blip, or vision-encoder-decoder, got gti"):
        make_plan(
            "words",
            recipe("git").describe.model_copy(update={"architecture": {"model": "gti"}}),
            width=None,
            prompts=PROMPTS,
        )
    plan, learner = learner_of("prefix")
    learner.save(tmp_path)
    network = caption_network("words", told.describe, replace(plan, prefix=5), 0)
    targets = plan.tokenizer.encode_targets(PROMPTS, 20)
    other = CaptionLearner(
        told, network, plan.tokenizer, targets, preprocessing=None, device="cpu", total_steps=20
    )
    with pytest.raises(DetectorError, match="of another shape"):
        other.load(tmp_path)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"tier": "prefix"}, "one of architecture and start"),
        (
            {"tier": "captioner", "start": "blip-base", "architecture": {"model": "git"}},
            "one of architecture and start",
        ),
        ({"tier": "retrieval", "start": "blip-base"}, "retrieval has no network"),
    ],
)
def test_a_section_says_what_is_trained(section, told):
    with pytest.raises(ValueError, match=told):
        Recipe.model_validate(
            {
                "name": "x",
                "method": "describe",
                "detector": "d",
                "data": {},
                "loop": {"steps": 1, "batch": 1},
                "describe": section,
            }
        )


def test_each_system_has_the_figure_of_its_texts():
    said = ["A red circle upper left.", "a blue circle, lower right", "nothing"]
    exact = measure_prompts(TRUTH, said)["exact"]
    assert exact["value"] == pytest.approx(1 / 3)
    assert (exact["low"], exact["high"]) == pytest.approx(proportion_interval(1, 3))
    unknown = measure_prompts(TRUTH, "no embeddings")["exact"]
    assert (unknown["value"], unknown["why"]) == (None, "no embeddings")
    assert measure_prompts(["Кот_и ПЁС, 猫!"], ["кот и пёс 猫"])["exact"]["value"] == 1


def test_chance_knows_training_prompts_alone_and_is_the_same_again():
    train = ["b", "a", "a", "b", "c"]
    found = draw_prompts(train, 500, seed=3)
    assert found == draw_prompts(train, 500, seed=3)
    assert found["most_frequent"] == ["a"] * 500
    assert set(found["random"]) == {"a", "b", "c"}
    assert found["random"].count("a") == pytest.approx(200, abs=60)
