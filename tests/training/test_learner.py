"""Two processes against one, DDP against FSDP2, and going on from a checkpoint: one start of two
processes does it all.
"""

import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from ray_app.detectors.detector import Normalise
from ray_app.training.detector import DetectorLearner, load_trained
from ray_app.training.networks import training_card
from tests.training.small_recipes import batch, recipe, share

pytestmark = pytest.mark.slow

STEPS, SAVED = 50, 40
FEW = 6  # steps that show whether chance depends on the step alone
UNSEEN = batch(STEPS, 16)["image"]
PLAIN = {"loop": {"micro_batch": 2, "clip": 1.0}, "schedule": {"shape": "cosine", "warmup": 5}}
DROPPING = {"drop_path_rate": 0.3, "proj_drop_rate": 0.2}
KINDS = ("maskclip", "residual")


def plain():
    return recipe("vit", **PLAIN)


def pixels():
    """Images of no step, as the network sees them."""
    return Normalise(training_card(plain()).preprocessing)(torch.from_numpy(UNSEEN))


def constant(kind):
    return recipe(kind, schedule={"shape": "constant"})


def dropping():
    """The same network with dropout and dropped paths."""
    made = plain()
    architecture = made.card["architecture"]
    arguments = architecture["arguments"] | DROPPING
    return made.model_copy(
        update={"card": made.card | {"architecture": architecture | {"arguments": arguments}}}
    )


def learner(made, strategy="ddp"):
    rank = dist.get_rank() if dist.is_initialized() else 0
    return DetectorLearner(
        made, training_card(made), device="cpu", total_steps=STEPS, rank=rank, strategy=strategy
    )


def some(step, masks=False):
    """Every tenth batch has a half that nobody could read: one of two processes then has nothing to
    learn from.
    """
    return batch(
        step, side=64 if masks else 32, masks=masks, unusable=(4, 5, 6, 7) if step % 10 == 3 else ()
    )


def run(one, until, masks=False):
    """Go on to a step; the loss of each."""
    return [
        one.step(share(some(step, masks), one.rank, one.world)).loss
        for step in range(one.step_number, until)
    ]


def saved(one, folder):
    folder.mkdir(exist_ok=True)
    one.save(folder)
    dist.barrier()


def continued(made, strategy, begun, folder, until=STEPS):
    one = learner(made, strategy)
    one.load(begun)
    run(one, until)
    saved(one, folder)


def process(rank, folder):
    """What each of the two does; rank 0's figures and the checkpoints are read by the tests."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    curves = {}
    for strategy in ("ddp", "fsdp2"):
        one = learner(plain(), strategy)
        curve = run(one, SAVED)
        saved(one, folder / f"{strategy}-begun")
        curves[strategy] = curve + run(one, STEPS)
        saved(one, folder / strategy)
    continued(plain(), "fsdp2", folder / "ddp-begun", folder / "ddp-then-fsdp2")
    continued(plain(), "ddp", folder / "fsdp2-begun", folder / "fsdp2-then-ddp")
    one = learner(dropping())
    run(one, FEW)
    saved(one, folder / "dropping-begun")
    run(one, 2 * FEW)
    saved(one, folder / "dropping")
    continued(dropping(), "ddp", folder / "dropping-begun", folder / "dropping-continued", 2 * FEW)
    for kind in KINDS:
        for strategy in ("ddp", "fsdp2"):
            one = learner(constant(kind), strategy)
            curves[f"{kind}-{strategy}"] = run(one, 2, masks=kind == "maskclip")
    if rank == 0:
        (folder / "curves.json").write_text(json.dumps(curves))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes left their checkpoints."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.set_forkserver_preload([__name__, "timm"])  # torch is imported once, for both
    multiprocessing.start_processes(process, (folder,), nprocs=2, start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def alone(two):
    """One process on the whole batches: its losses and its learner."""
    one = learner(plain())
    return run(one, STEPS), one


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_give_the_loss_curve_of_one(two, alone, strategy):
    curve, _ = alone
    assert json.loads((two / "curves.json").read_text())[strategy] == pytest.approx(curve, rel=0.01)
    assert curve[-1] < 0.5 * curve[0]


def test_frozen_parts_and_norms_learn_alike_and_dropout_goes_on_as_if_never_stopped(two):
    curves = json.loads((two / "curves.json").read_text())
    for kind in KINDS:
        assert curves[f"{kind}-ddp"] == pytest.approx(curves[f"{kind}-fsdp2"], rel=1e-3)
    expected, found = (
        load_file(two / name / "model.safetensors") for name in ("dropping", "dropping-continued")
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2-then-ddp", "ddp-then-fsdp2"])
def test_a_checkpoint_of_two_processes_is_the_plain_network(two, alone, name):
    """Also where one strategy went on from the other's checkpoint."""
    network = load_trained(plain(), training_card(plain()), two / name)
    with torch.inference_mode():
        expected = alone[1].network.eval()(pixels())
        assert torch.allclose(network(pixels()), expected, atol=1e-2)
    assert load_file(two / name / "model.safetensors").keys() == network.state_dict().keys()
    assert expected.std() > 0.5, "what was learned tells images apart"


def test_a_checkpoint_of_two_processes_goes_on_in_one(two, alone):
    one = learner(plain())
    one.load(two / "ddp-begun")
    assert one.step_number == SAVED
    assert run(one, STEPS) == pytest.approx(alone[0][SAVED:], rel=0.01)
