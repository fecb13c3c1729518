"""Steps of learning; and two processes against one, DDP against FSDP2, and resumed checkpoints.

One start of two processes serves all tests of several processes.
"""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from ray_app.detectors.detector import Normalise
from ray_app.errors import ConfigError, DetectorError, StorageError, TouchstoneError
from ray_app.training.detector import DetectorLearner, load_trained
from ray_app.training.learner import compute_rate
from ray_app.training.networks import training_card
from tests.training.small_recipes import VIT, batch, recipe, share

SGD = {"name": "sgd", "rate": 1.0}
CONSTANT = {"shape": "constant"}


def learner_of(given, total=50, **options):
    return DetectorLearner(given, training_card(given), device="cpu", total_steps=total, **options)


def run(learner, until, **drawn):
    """Learn to a step; return the figures of each."""
    return [learner.step(batch(step, **drawn)) for step in range(learner.step_number, until)]


def values(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(network, expected):
    found = network.state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_learning_lowers_the_loss_and_reports_each_step():
    given = recipe(schedule={"shape": "cosine", "warmup": 0.2, "floor": 0.1})
    learner = learner_of(given, total=40)
    steps = run(learner, 40)
    assert [step.step for step in steps] == list(range(40))
    rates = [compute_rate(given.schedule, 1e-3, step, 40) for step in range(40)]
    assert [step.rate for step in steps] == rates
    assert steps[-1].loss < 0.3 < 0.6 < steps[0].loss
    for step in steps:
        assert step.parts == {"binary": step.loss}
        assert step.gradient_norm > 0
        assert step.unusable == 0
    assert learner.step_number == 40


@pytest.mark.parametrize(
    ("kind", "precision", "side"),
    [
        ("swin", "fp32", 32),
        ("siglip", "bf16", 32),
        ("residual", "bf16", 32),
        ("maskclip", "bf16", 64),
    ],
)
def test_every_family_learns_with_fp32_parameters(kind, precision, side):
    learner = learner_of(recipe(kind, precision=precision, schedule=CONSTANT))
    same = batch(0, side=side, masks=kind == "maskclip")
    losses = [learner.step(same).loss for _ in range(3)]
    assert min(losses[1:]) < losses[0]
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}


def test_bf16_computes_in_bf16_and_stays_near_fp32():
    seen = []
    learner = learner_of(recipe(precision="bf16"))
    learner.network.blocks[0].mlp.fc1.register_forward_hook(
        lambda module, given, output: seen.append(output.dtype)
    )
    found = [step.loss for step in run(learner, 10)]
    assert set(seen) == {torch.bfloat16}
    expected = [step.loss for step in run(learner_of(recipe()), 10)]
    assert found == pytest.approx(expected, rel=0.05)
    assert found != expected


@pytest.mark.parametrize(
    ("kind", "sections"),
    [("vit", {}), ("siglip", {"loss": {"twins": 0.3}, "sampling": {"twins": True}})],
)
def test_micro_batches_give_the_gradient_of_the_batch(kind, sections):
    def gradients(**loop):
        learner = learner_of(recipe(kind, loop=loop, **sections))
        learner.step(batch(1, unusable=(2, 7)))
        named = learner.network.named_parameters()
        return {name: one.grad for name, one in named if one.grad is not None}

    whole, parts = gradients(), gradients(micro_batch=2)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


def test_gradient_is_clipped_and_its_norm_before_reported():
    free = learner_of(recipe(optimiser=SGD, schedule=CONSTANT))
    held = learner_of(recipe(optimiser=SGD, schedule=CONSTANT, loop={"clip": 0.01}))
    before = values(held.network)
    norm = free.step(batch(0)).gradient_norm
    assert norm > 0.1
    assert held.step(batch(0)).gradient_norm == pytest.approx(norm)
    after = held.network.state_dict()
    moved = [(after[name] - tensor).norm().item() for name, tensor in before.items()]
    assert np.hypot.reduce(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.filterwarnings("error")
def test_unusable_images_are_counted_and_not_learned():
    drawn = batch(0, unusable=(1, 4))
    other = {name: array.copy() for name, array in drawn.items()}
    other["image"][[1, 4]] = 200
    for array in other.values():
        array.flags.writeable = False  # as those from an object store
    learner, same = learner_of(recipe()), learner_of(recipe())
    found = learner.step(drawn)
    assert found == same.step(other)
    assert found.unusable == 2
    assert_same(same.network, values(learner.network))


def test_auto_is_bf16_only_if_the_card_allows_it(monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_CPU_PRECISION", raising=False)
    monkeypatch.setattr("ray_app.detectors.precision.has_bf16", lambda device: True)
    given = recipe(precision="auto")
    card = training_card(given)
    for one, precision in ((card, "bf16"), (card.model_copy(update={"precision": "fp32"}), "fp32")):
        learner = DetectorLearner(given, one, device="cpu", total_steps=50)
        assert learner.precision == precision


@pytest.mark.parametrize(
    ("kind", "optimiser"),
    [
        ("vit", {"rate": 1e-3, "weight_decay": 0.1, "decays": "matrices"}),
        ("residual", {"rate": 1e-3}),
        ("vit", {"name": "sgd", "rate": 0.01, "momentum": 0.9}),
        ("vit", {"name": "adam", "rate": 0.01}),
    ],
    ids=["adamw", "residual", "sgd", "adam"],
)
def test_resumed_training_is_as_if_never_stopped(kind, optimiser, tmp_path):
    given = recipe(kind, precision="bf16", schedule={"warmup": 0.5}, optimiser=optimiser)
    unbroken = learner_of(given)
    run(unbroken, 3)
    unbroken.save(tmp_path)
    expected = run(unbroken, 6)
    resumed = learner_of(given)
    run(resumed, 1)  # Its own steps before do not matter.
    resumed.load(tmp_path)
    assert json.loads((tmp_path / "position.json").read_text()) == {"step": 3}
    assert run(resumed, 6) == expected
    assert_same(resumed.network, values(unbroken.network))


def test_dropout_depends_on_seed_and_step_alone():
    learner, other = learner_of(recipe("swin")), learner_of(recipe("swin"))
    seeded = learner_of(recipe("swin", loop={"seed": 1}))
    seeded.network.load_state_dict(learner.network.state_dict())
    run(learner, 1)
    torch.manual_seed(99)
    run(other, 1)
    first = learner.step(batch(1))
    torch.rand(7)
    assert other.step(batch(1)) == first
    seeded.step(batch(0))
    assert seeded.step(batch(1)) != first


@pytest.mark.parametrize("kind", ["vit", "residual", "maskclip"])
def test_trained_network_of_a_checkpoint_answers_alike(kind, tmp_path):
    has_masks = kind == "maskclip"
    side = 64 if has_masks else 32
    given = recipe(kind)
    learner = learner_of(given)
    run(learner, 1 if has_masks else 3, side=side, masks=has_masks)
    learner.save(tmp_path)
    network = load_trained(given, learner.card, tmp_path)
    images = torch.from_numpy(batch(9, side=side)["image"])
    pixels = Normalise(learner.card.preprocessing)(images)
    with torch.inference_mode():
        found, expected = (one(pixels) for one in (network, learner.network.eval()))
    if has_masks:
        found, expected = found[0], expected[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == learner.network.state_dict().keys()
    if has_masks:
        clip = learner_of(given).network.clip.state_dict()
        assert all(torch.equal(saved[f"clip.{name}"], tensor) for name, tensor in clip.items())


def test_loss_that_is_not_a_number_stops_before_the_update():
    learner = learner_of(recipe())
    run(learner, 2)
    with torch.no_grad():
        learner.network.head.bias.fill_(float("nan"))
    before = values(learner.network)
    with pytest.raises(TouchstoneError, match="step 2: training diverged: loss nan") as caught:
        learner.step(batch(2))
    assert "optimiser.rate" in caught.value.hint
    assert learner.step_number == 2
    before.pop("head.bias")
    assert_same(learner.network, before)


def test_checkpoint_of_another_network_is_rejected(tmp_path):
    learner, residual = learner_of(recipe()), recipe("residual")
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        learner.save(tmp_path / "missing")
    learner.save(tmp_path)
    with pytest.raises(DetectorError, match="do not fit"):
        load_trained(residual, training_card(residual), tmp_path)
    arguments = VIT["architecture"]["arguments"] | {"embed_dim": 64}
    wider = VIT | {"architecture": VIT["architecture"] | {"arguments": arguments}}
    for other in (residual, recipe(card=wider)):
        with pytest.raises(DetectorError, match="does not fit the network"):
            learner_of(other).load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "loss", "said"),
    [("vit", "maskclip", "does not predict masks"), ("maskclip", "binary", "which predicts masks")],
)
def test_learner_rejects_the_loss_of_another_family(kind, loss, said):
    with pytest.raises(ConfigError, match=said):
        learner_of(recipe(kind, loss={"name": loss}))


TWINS = {"loss": {"twins": 0.5}, "sampling": {"twins": True}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"loss": {"twins": 0.5}}, r"needs sampling\.twins: true"),
        (TWINS | {"loop": {"micro_batch": 3}}, "micro_batch must be even"),
        ({"loop": {"seed": -1}}, "greater than or equal to 0"),
    ],
)
def test_recipe_that_contradicts_itself_is_rejected(sections, said):
    with pytest.raises(ValueError, match=said):
        recipe(**sections)


# Two processes.

STEPS, SAVED = 50, 40
FEW = 6  # Steps that show whether chance depends on the step alone.
KINDS = ("maskclip", "residual")


def plain():
    schedule = {"shape": "cosine", "warmup": 5}
    return recipe("vit", loop={"micro_batch": 2, "clip": 1.0}, schedule=schedule)


def dropping():
    """The same network with dropout and dropped paths."""
    given = plain()
    architecture = given.card["architecture"]
    arguments = architecture["arguments"] | {"drop_path_rate": 0.3, "proj_drop_rate": 0.2}
    card = given.card | {"architecture": architecture | {"arguments": arguments}}
    return given.model_copy(update={"card": card})


def pixels():
    """Images of no step, as the network sees them."""
    unseen = torch.from_numpy(batch(STEPS, 16)["image"])
    return Normalise(training_card(plain()).preprocessing)(unseen)


def learner_of_rank(given, strategy="ddp"):
    rank = dist.get_rank() if dist.is_initialized() else 0
    return learner_of(given, STEPS, rank=rank, strategy=strategy)


def run_share(learner, until, masks=False):
    """Learn the share of this process to a step; return the losses.

    In every tenth batch, one of two processes has no readable image.
    """
    losses = []
    for step in range(learner.step_number, until):
        unusable = (4, 5, 6, 7) if step % 10 == 3 else ()
        drawn = batch(step, side=64 if masks else 32, masks=masks, unusable=unusable)
        losses.append(learner.step(share(drawn, learner.rank, learner.world)).loss)
    return losses


def save(learner, folder):
    folder.mkdir(exist_ok=True)
    learner.save(folder)
    dist.barrier()


def resume(given, strategy, saved, folder, until=STEPS):
    learner = learner_of_rank(given, strategy)
    learner.load(saved)
    run_share(learner, until)
    save(learner, folder)


def learn_in_process(rank, folder):
    """Rank 0 writes its losses; the tests read them, and the checkpoints."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    curves = {}
    for strategy in ("ddp", "fsdp2"):
        learner = learner_of_rank(plain(), strategy)
        curve = run_share(learner, SAVED)
        save(learner, folder / f"{strategy}-begun")
        curves[strategy] = curve + run_share(learner, STEPS)
        save(learner, folder / strategy)
    resume(plain(), "fsdp2", folder / "ddp-begun", folder / "ddp-then-fsdp2")
    resume(plain(), "ddp", folder / "fsdp2-begun", folder / "fsdp2-then-ddp")
    learner = learner_of_rank(dropping())
    run_share(learner, FEW)
    save(learner, folder / "dropping-begun")
    run_share(learner, 2 * FEW)
    save(learner, folder / "dropping")
    resume(dropping(), "ddp", folder / "dropping-begun", folder / "dropping-resumed", 2 * FEW)
    for kind in KINDS:
        for strategy in ("ddp", "fsdp2"):
            learner = learner_of_rank(recipe(kind, schedule=CONSTANT), strategy)
            curves[f"{kind}-{strategy}"] = run_share(learner, 2, masks=kind == "maskclip")
    if rank == 0:
        (folder / "curves.json").write_text(json.dumps(curves))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder with the checkpoints of two processes."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.set_forkserver_preload([__name__, "timm"])  # One import of torch for both.
    multiprocessing.start_processes(
        learn_in_process, (folder,), nprocs=2, start_method="forkserver"
    )
    return folder


@pytest.fixture(scope="module")
def alone():
    """The losses and the learner of one process on the whole batches."""
    learner = learner_of_rank(plain())
    return run_share(learner, STEPS), learner


def curves_of(folder):
    return json.loads((folder / "curves.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_have_the_losses_of_one(two, alone, strategy):
    curve, _ = alone
    assert curves_of(two)[strategy] == pytest.approx(curve, rel=0.01)
    assert curve[-1] < 0.5 * curve[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_and_norms_learn_alike(two, kind):
    curves = curves_of(two)
    assert curves[f"{kind}-ddp"] == pytest.approx(curves[f"{kind}-fsdp2"], rel=1e-3)


@pytest.mark.slow
def test_dropout_of_two_processes_resumes_as_if_never_stopped(two):
    expected, found = (
        load_file(two / name / "model.safetensors") for name in ("dropping", "dropping-resumed")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2-then-ddp", "ddp-then-fsdp2"])
def test_checkpoint_of_two_processes_is_the_plain_network(two, alone, name):
    network = load_trained(plain(), training_card(plain()), two / name)
    with torch.inference_mode():
        expected = alone[1].network.eval()(pixels())
        assert torch.allclose(network(pixels()), expected, atol=1e-2)
    assert load_file(two / name / "model.safetensors").keys() == network.state_dict().keys()
    assert expected.std() > 0.5, "it learned to tell images apart"


@pytest.mark.slow
def test_checkpoint_of_two_processes_resumes_in_one(two, alone):
    learner = learner_of_rank(plain())
    learner.load(two / "ddp-begun")
    assert learner.step_number == SAVED
    assert run_share(learner, STEPS) == pytest.approx(alone[0][SAVED:], rel=0.01)
