import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ray_app.detectors.detector import Normalise
from ray_app.errors import ConfigError, DetectorError, StorageError, TouchstoneError
from ray_app.training.detector import DetectorLearner, load_trained
from ray_app.training.learner import rate_at
from ray_app.training.networks import training_card
from tests.training.small_recipes import VIT, batch, recipe


def learner(made, total=50):
    return DetectorLearner(made, training_card(made), device="cpu", total_steps=total)


def run(one, until, **drawn):
    return [one.step(batch(step, **drawn)) for step in range(one.step_number, until)]


def gradients(made, drawn):
    one = learner(made)
    one.step(drawn)
    return {
        name: parameter.grad
        for name, parameter in one.network.named_parameters()
        if parameter.grad is not None
    }


def test_it_learns_and_says_what_every_step_did():
    made = recipe(schedule={"shape": "cosine", "warmup": 0.2, "floor": 0.1})
    one = learner(made, total=40)
    figures = run(one, 40)
    assert [one.step for one in figures] == list(range(40))
    assert [one.rate for one in figures] == [
        rate_at(made.schedule, 1e-3, step, 40) for step in range(40)
    ]
    assert figures[-1].loss < 0.3 < 0.6 < figures[0].loss
    assert all(
        one.parts == {"binary": one.loss} and one.gradient_norm > 0 and one.unusable == 0
        for one in figures
    )
    assert one.step_number == 40


@pytest.mark.parametrize(
    ("precision", "kind", "side"),
    [
        ("fp32", "swin", 32),
        ("bf16", "siglip", 32),
        ("bf16", "residual", 32),
        ("bf16", "maskclip", 64),
    ],
)
def test_every_family_learns_and_its_parameters_stay_fp32(precision, kind, side):
    one = learner(recipe(kind, precision=precision, schedule={"shape": "constant"}))
    same = batch(0, side=side, masks=kind == "maskclip")
    losses = [one.step(same).loss for _ in range(3)]
    assert min(losses[1:]) < losses[0]
    assert {parameter.dtype for parameter in one.network.parameters()} == {torch.float32}


def test_bf16_computes_in_bf16_and_stays_near_fp32():
    seen = []
    one = learner(recipe(precision="bf16"))
    one.network.blocks[0].mlp.fc1.register_forward_hook(
        lambda module, given, output: seen.append(output.dtype)
    )
    found = run(one, 10)
    assert set(seen) == {torch.bfloat16}
    expected = run(learner(recipe()), 10)
    assert [one.loss for one in found] == pytest.approx([one.loss for one in expected], rel=0.05)
    assert [one.loss for one in found] != [one.loss for one in expected]


@pytest.mark.parametrize(
    ("kind", "sections"),
    [("vit", {}), ("siglip", {"loss": {"twins": 0.3}, "sampling": {"twins": True}})],
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(kind, sections):
    drawn = batch(1, unusable=(2, 7))
    whole = gradients(recipe(kind, **sections), drawn)
    parts = gradients(recipe(kind, loop={"micro_batch": 2}, **sections), drawn)
    assert whole.keys() == parts.keys()
    assert all(
        torch.allclose(parts[name], gradient, atol=1e-6, rtol=1e-4)
        for name, gradient in whole.items()
    )


def test_a_gradient_is_clipped_to_its_norm_and_the_norm_before_is_told():
    free = learner(recipe(optimiser={"name": "sgd", "rate": 1.0}, schedule={"shape": "constant"}))
    held = learner(
        recipe(
            optimiser={"name": "sgd", "rate": 1.0},
            schedule={"shape": "constant"},
            loop={"clip": 0.01},
        )
    )
    before = {name: tensor.clone() for name, tensor in held.network.state_dict().items()}
    norm = free.step(batch(0)).gradient_norm
    assert held.step(batch(0)).gradient_norm == pytest.approx(norm)
    moved = [
        (tensor - before[name]).norm().item() for name, tensor in held.network.state_dict().items()
    ]
    assert np.hypot.reduce(moved) == pytest.approx(0.01, rel=1e-3)
    assert norm > 0.1


@pytest.mark.filterwarnings("error")
def test_unusable_images_leave_no_trace_but_a_count():
    drawn = batch(0, unusable=(1, 4))
    other = {name: values.copy() for name, values in drawn.items()}
    other["image"][[1, 4]] = 200
    for values in other.values():
        values.flags.writeable = False  # as those from an object store
    one, same = learner(recipe()), learner(recipe())
    found = one.step(drawn)
    assert found == same.step(other)
    assert found.unusable == 2
    assert all(
        torch.equal(same.network.state_dict()[name], tensor)
        for name, tensor in one.network.state_dict().items()
    )


def test_auto_is_bf16_only_where_the_card_allows_it(monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_CPU_PRECISION", raising=False)
    monkeypatch.setattr("ray_app.detectors.precision.has_bf16", lambda device: True)
    made = recipe(precision="auto")
    card = training_card(made)
    learners = [
        DetectorLearner(made, one, device="cpu", total_steps=50)
        for one in (card, card.model_copy(update={"precision": "fp32"}))
    ]
    assert [one.precision for one in learners] == ["bf16", "fp32"]


@pytest.mark.parametrize(
    ("kind", "optimiser"),
    [
        ("vit", {"rate": 1e-3, "weight_decay": 0.1, "decays": "matrices"}),
        ("residual", {"rate": 1e-3}),
        ("vit", {"name": "sgd", "rate": 0.01, "momentum": 0.9}),
        ("vit", {"name": "adam", "rate": 0.01}),
    ],
)
def test_going_on_from_a_checkpoint_is_never_having_stopped(kind, optimiser, tmp_path):
    made = recipe(kind, precision="bf16", schedule={"warmup": 0.5}, optimiser=optimiser)
    unbroken = learner(made)
    run(unbroken, 3)
    unbroken.save(tmp_path)
    expected = run(unbroken, 6)
    continued = learner(made)
    run(continued, 1)  # what it was before does not matter
    continued.load(tmp_path)
    assert json.loads((tmp_path / "position.json").read_text()) == {"step": 3}
    assert run(continued, 6) == expected
    found = continued.network.state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in unbroken.network.state_dict().items()
    )


def test_dropout_depends_on_seed_and_step_alone():
    made = recipe("swin")
    one, other = learner(made), learner(made)
    run(one, 1)
    torch.manual_seed(99)
    run(other, 1)
    seeded = learner(recipe("swin", loop={"seed": 1}))
    seeded.network.load_state_dict(learner(made).network.state_dict())
    first = one.step(batch(1))
    torch.rand(7)
    assert other.step(batch(1)) == first
    seeded.step(batch(0))
    assert seeded.step(batch(1)) != first


def test_the_trained_network_of_a_checkpoint_gives_what_the_learner_s_gives(tmp_path):
    for kind in ("vit", "residual", "maskclip"):
        made = recipe(kind)
        one = learner(made)
        run(
            one,
            1 if kind == "maskclip" else 3,
            side=64 if kind == "maskclip" else 32,
            masks=kind == "maskclip",
        )
        one.save(tmp_path)
        network = load_trained(made, one.card, tmp_path)
        images = torch.from_numpy(batch(9, side=64)["image"])
        pixels = Normalise(one.card.preprocessing)(
            images if kind == "maskclip" else images[:, :32, :32].contiguous()
        )
        with torch.inference_mode():
            found, expected = (
                given[0] if isinstance(given := net(pixels), tuple) else given
                for net in (network, one.network.eval())
            )
        assert torch.allclose(found, expected, atol=1e-4), kind
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == one.network.state_dict().keys(), "MaskCLIP's too, with CLIP as it was"
    clip = learner(recipe("maskclip")).network.clip.state_dict()
    assert all(torch.equal(saved[f"clip.{name}"], tensor) for name, tensor in clip.items())


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched():
    one = learner(recipe())
    run(one, 2)
    with torch.no_grad():
        one.network.head.bias.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in one.network.state_dict().items()}
    with pytest.raises(
        TouchstoneError, match=r"step 2: training diverged: loss nan \(binary nan\)"
    ) as caught:
        one.step(batch(2))
    assert "optimiser.rate" in caught.value.hint
    assert one.step_number == 2
    assert all(
        torch.equal(one.network.state_dict()[name], tensor)
        for name, tensor in before.items()
        if name != "head.bias"
    )


def test_a_checkpoint_of_another_network_and_a_folder_that_is_not_there_are_said(tmp_path):
    one = learner(recipe())
    with pytest.raises(StorageError, match="cannot be written"):
        one.save(tmp_path / "missing")
    one.save(tmp_path)
    with pytest.raises(DetectorError, match="do not fit"):
        load_trained(recipe("residual"), training_card(recipe("residual")), tmp_path)
    with pytest.raises(DetectorError, match="of another network"):
        learner(recipe("residual")).load(tmp_path)
    wider = VIT["architecture"] | {
        "arguments": VIT["architecture"]["arguments"] | {"embed_dim": 64}
    }
    with pytest.raises(DetectorError, match="of another network"):
        learner(recipe(card=VIT | {"architecture": wider})).load(tmp_path)


def test_recipes_that_contradict_themselves_are_refused():
    with pytest.raises(ConfigError, match="does not say where"):
        learner(recipe("vit", loss={"name": "maskclip"}))
    with pytest.raises(ConfigError, match="which says where"):
        learner(recipe("maskclip", loss={"name": "binary"}))
    for sections, said in [
        ({"loss": {"twins": 0.5}}, r"only sampling\.twins: true"),
        (
            {"loss": {"twins": 0.5}, "sampling": {"twins": True}, "loop": {"micro_batch": 3}},
            "cuts pairs of twins apart",
        ),
        ({"loop": {"seed": -1}}, "greater than or equal to 0"),
    ]:
        with pytest.raises(ValueError, match=said):
            recipe(**sections)
