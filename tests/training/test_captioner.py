"""Training a captioner: its steps, a resumed training, its card, and its metrics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_app.errors import ConfigError, DetectorError
from ray_app.identification.captioners import body_state, build_describer
from ray_app.identification.cards import load_describer
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.training.captioner import (
    CaptionLearner,
    build_caption_network,
    make_decoder_inputs,
    make_plan,
)
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
from tests.make.networks.tiny_speakers import ARCHITECTURES, PIXELS, SIDE, WIDTH

PROMPTS = [
    "a red circle on the left",
    "a blue square above",
    "a green triangle",
    "an orange cross in the rain",
]
KINDS = list(ARCHITECTURES)
FAST = {"rate": 8e-3, "steps": 60}
TRUTH = ["a red circle, upper left", "a blue square, lower right", "a green cross, lower left"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bare(architecture):
    """An architecture without what a tokenizer decides."""
    decided = {
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "n_positions",
        "max_position_embeddings",
        "width",
    }
    return {
        name: bare(value) if isinstance(value, dict) else value
        for name, value in architecture.items()
        if name not in decided
    }


def recipe(kind, *, rate=3e-3, **loop):
    tier = {"tier": "captioner", "preprocessing": PIXELS}
    if kind == "prefix":
        tier = {"tier": "prefix", "prefix": 3}
    architecture = {"architecture": bare(ARCHITECTURES[kind])}
    facts = {
        "name": "words",
        "method": "describe",
        "detector": "touchstone-tiny",
        "data": {},
        "optimiser": {"rate": rate},
        "describe": tier | architecture | {"vocabulary": 300, "most_tokens": 20},
        "loop": {"steps": 20, "batch": 4, "precision": "fp32", **loop},
    }
    return Recipe.model_validate(facts)


def learner_of(kind, *, dropout=True, **options):
    given = recipe(kind, **options)
    plan = make_plan(given.name, given.describe, width=WIDTH, prompts=PROMPTS)
    network = build_caption_network(given.name, given.describe, plan, given.loop.seed)
    learner = CaptionLearner(
        given,
        network,
        plan.tokenizer,
        plan.tokenizer.encode_targets(PROMPTS, 20),
        preprocessing=None if kind == "prefix" else given.describe.preprocessing,
        device="cpu",
        total_steps=given.loop.steps,
    )
    if not dropout:
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return plan, learner


def batch_of(usable=(True,) * 4):
    rng = np.random.default_rng(4)
    return {
        "row": np.arange(4),
        "usable": np.array(usable),
        "embedding": rng.normal(size=(4, WIDTH)).astype(np.float32),
        "image": rng.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8),
    }


def assert_same_network(network, other):
    expected = body_state(other)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in body_state(network).items())


def test_first_loss_is_the_cross_entropy_of_the_tokens():
    plan, learner = learner_of("prefix", dropout=False)
    batch = batch_of()
    targets = torch.from_numpy(plan.tokenizer.encode_targets(PROMPTS, 20).astype(np.int64))
    embeddings, inputs = (
        torch.from_numpy(batch["embedding"]),
        make_decoder_inputs(targets, plan.tokenizer),
    )
    with torch.no_grad():
        odds = learner.network.eval()(embeddings, inputs).log_softmax(2)
    picked = odds.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    expected = -picked[targets != -100].mean().item()
    learner.network.train()
    assert learner.step(batch).loss == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_card_says_what_its_network_learned_by_heart(tmp_path, kind):
    plan, learner = learner_of(kind, dropout=False, **FAST)
    given, batch = recipe(kind, **FAST), batch_of()
    for _ in range(FAST["steps"]):
        learner.step(batch)
    sees = {"preprocessing": PIXELS}
    if kind == "prefix":
        sees = {"detector": "touchstone-tiny", "embedding": {"width": WIDTH}}
    card = write_network(tmp_path, given, plan, sees, body_state(learner.network))
    seen = batch["embedding" if kind == "prefix" else "image"]
    said = build_describer(card).describe(seen)
    assert [one.text for one in said] == PROMPTS
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["describer.safetensors", "describer.yaml"]

    path, figures = tmp_path / CARD, {"exact": {"value": 0.5, "n": 4}}
    path.write_bytes(add_published(path.read_bytes(), given, figures))
    again = load_describer(path)
    assert [one.metric for one in again.published] == ["share of prompts predicted word for word"]
    assert build_describer(again).describe(seen) == said
    started = given.describe.model_copy(update={"start": str(path), "architecture": {}})
    plan = make_plan(given.name, started, width=WIDTH)
    assert_same_network(build_caption_network(given.name, started, plan, 99), learner.network)


@pytest.mark.parametrize("kind", ["prefix", "vision-encoder-decoder"])
def test_saved_training_resumes_as_if_never_stopped(tmp_path, kind):
    _, straight = learner_of(kind)
    for number in range(4):
        if number == 2:
            straight.save(tmp_path)
        straight.step(batch_of())
    _, resumed = learner_of(kind)
    resumed.load(tmp_path)
    assert resumed.step_number == 2
    for _ in range(2):
        resumed.step(batch_of())
    assert_same_network(resumed.network, straight.network)


def test_micro_batches_give_the_gradient_of_the_batch():
    norms = [
        learner_of("prefix", dropout=False, micro_batch=micro)[1].step(batch_of()).gradient_norm
        for micro in (None, 3)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_unreadable_images_teach_nothing():
    part = batch_of((True, True, False, False))
    changed = {**part, "embedding": part["embedding"].copy()}
    changed["embedding"][2:] = 9
    first, second = (learner_of("prefix")[1].step(batch) for batch in (part, changed))
    assert (first.loss, first.unusable) == (second.loss, second.unusable)
    assert first.unusable == 2
    assert learner_of("prefix")[1].step(batch_of((False,) * 4)).loss == 0


@pytest.mark.parametrize(
    ("data", "licence"), [("CC BY-NC 4.0", "CC BY-NC 4.0"), ("CC0-1.0", "BSD-3-Clause")]
)
def test_card_has_the_stricter_licence_of_data_and_start(tmp_path, data, licence):
    (tmp_path / WEIGHTS).write_bytes(b"weights")
    describe = {"tier": "captioner", "start": "blip-base"}
    given = recipe("git").model_dump() | {"describe": describe, "data": {"licence": data}}
    card = write_describer(
        tmp_path,
        Recipe.model_validate(given),
        {"tier": "captioner", "preprocessing": PIXELS},
        load_describer("blip-base"),
    )
    assert card.licence == licence


def test_plan_rejects_a_start_or_a_model_that_does_not_fit(tmp_path):
    given, vectors = recipe("prefix"), np.eye(3, WIDTH, dtype=np.float32)
    sees = {"detector": "touchstone-tiny", "embedding": {}}
    card = write_index(tmp_path, given, sees, vectors, PROMPTS[:3])
    assert build_describer(card).describe(vectors)[1].text == PROMPTS[1]
    update = {"start": str(tmp_path / CARD), "architecture": {}}
    with pytest.raises(ConfigError, match="has the tier retrieval, must be prefix"):
        make_plan("words", given.describe.model_copy(update=update), width=WIDTH)
    other = recipe("git").describe.model_copy(update={"architecture": {"model": "gti"}})
    with pytest.raises(ConfigError, match="must be git, blip, or vision-encoder-decoder, got gti"):
        make_plan("words", other, width=None, prompts=PROMPTS)


def test_checkpoint_of_another_shape_is_rejected(tmp_path):
    given, (plan, learner) = recipe("prefix"), learner_of("prefix")
    learner.save(tmp_path)
    other = CaptionLearner(
        given,
        build_caption_network("words", given.describe, replace(plan, prefix=5), 0),
        plan.tokenizer,
        plan.tokenizer.encode_targets(PROMPTS, 20),
        preprocessing=None,
        device="cpu",
        total_steps=20,
    )
    with pytest.raises(DetectorError, match="of another shape"):
        other.load(tmp_path)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"tier": "prefix"}, "one of `architecture` and `start`"),
        (
            {"tier": "captioner", "start": "blip-base", "architecture": {"model": "git"}},
            "one of `architecture` and `start`",
        ),
        ({"tier": "retrieval", "start": "blip-base"}, "retrieval has no network"),
    ],
)
def test_describe_section_must_name_one_network(section, said):
    facts = recipe("git").model_dump(exclude={"describe"}) | {"describe": section}
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(facts)


def test_exact_prompts_are_counted_with_an_interval():
    said = ["A red circle upper left.", "a blue circle, lower right", "nothing"]
    exact = measure_prompts(TRUTH, said)["exact"]
    assert exact["value"] == pytest.approx(1 / 3)
    assert (exact["low"], exact["high"]) == pytest.approx(proportion_interval(1, 3))
    unknown = measure_prompts(TRUTH, "no embeddings")["exact"]
    assert (unknown["value"], unknown["why"]) == (None, "no embeddings")
    assert measure_prompts(["Кот_и ПЁС, 猫!"], ["кот и пёс 猫"])["exact"]["value"] == 1


def test_drawn_prompts_are_those_of_training():
    train = ["b", "a", "a", "b", "c"]
    found = draw_prompts(train, 500, seed=3)
    assert found == draw_prompts(train, 500, seed=3)
    assert found["most_frequent"] == ["a"] * 500
    assert set(found["random"]) == {"a", "b", "c"}
    assert found["random"].count("a") == pytest.approx(200, abs=60)
