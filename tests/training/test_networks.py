from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_app.detectors.detector import build_network, load_network
from ray_app.errors import ConfigError, DetectorError
from ray_app.training.config import LoraSettings, Recipe
from ray_app.training.detector import DetectorLearner, load_trained
from ray_app.training.learner import blocks, distribute, world_size
from ray_app.training.networks import (
    Learning,
    deployable,
    merged_state,
    network_for,
    training_card,
    training_form,
)
from tests.training.small_recipes import DETECTORS, batch, recipe

TARGETS = {"vit": (["qkv", "mlp.fc1"], ["head"]), "siglip": (["q_proj", "v_proj"], ["classifier"])}


def built(made):
    return network_for(made, training_card(made))


def pixels(side=32, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(4))


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def weights_file(path, state, **facts):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return {"uri": str(path), "unverified": "made by this test", **facts}


@pytest.mark.parametrize(
    ("detector", "card", "said"),
    [
        ("internvl-prompt", {}, "answers in words"),
        ("corvi2023", {}, "keeps the size of every image"),
        ("touchstone-tiny", {"familly": "residual"}, "did you mean 'family'"),
    ],
)
def test_what_no_recipe_can_train_is_refused(detector, card, said):
    made = Recipe.model_validate(
        {
            "name": "no",
            "detector": detector,
            "card": card,
            "data": {},
            "loop": {"batch": 2, "steps": 1},
        }
    )
    with pytest.raises(ConfigError, match=said):
        training_card(made)


@pytest.mark.parametrize("kind", ["vit", "residual", "siglip"])
def test_the_seed_decides_initial_values_and_nothing_outside_is_touched(kind):
    before = torch.get_rng_state()
    one, same = (built(recipe(kind, loop={"seed": 3})).state_dict() for _ in range(2))
    other = built(recipe(kind, loop={"seed": 4})).state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in one.items())
    assert any(not torch.equal(other[name], tensor) for name, tensor in one.items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", DETECTORS)
def test_all_that_learns_hears_a_gradient_and_the_deployed_network_is_the_card_s(kind):
    made = recipe(kind)
    card = training_card(made)
    network = built(made)
    side = 64 if kind == "maskclip" else 32
    assert network.training
    answer = Learning(network)(pixels(side))
    (
        answer.log_odds(card.output).square().sum()
        + (0 if answer.mask_logits is None else answer.mask_logits.square().mean())
    ).backward()
    deaf = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert learning(network).isdisjoint(deaf)
    still = dict(network.named_parameters()).keys() - learning(network)
    if kind == "siglip":  # of which the pooling head is unused, and in the checkpoint all the same
        assert still
        assert all(name.startswith("vision_model.head.") for name in still)
    deployed, plain = deployable(network, card), build_network(card)
    assert deployed.state_dict().keys() == plain.state_dict().keys()
    assert not deployed.training
    assert not learning(deployed)
    assert network.training, "the network that learns stays as it is"
    assert all(module.training for module in network.modules())
    with torch.inference_mode():
        expected = Learning(network.eval())(pixels(side)).logits
        assert torch.allclose(Learning(deployed)(pixels(side)).logits, expected, atol=2e-4)


def test_the_residual_family_learns_with_norms_from_nothing_and_without_from_weights():
    begun = built(recipe("residual"))
    continued = built(recipe("residual", initial={"start": "card"}))
    assert begun.norms is not None
    assert continued.norms is None
    begun.norms[0].running_mean.fill_(0.5)
    begun.norms[1].weight.data.fill_(3.0)
    deployed = deployable(begun, training_card(recipe("residual")))
    with torch.inference_mode():
        assert torch.allclose(deployed(64 * pixels()), begun.eval()(64 * pixels()), atol=1e-4)
        assert torch.equal(
            continued.eval()(pixels()), load_network(training_card(recipe("residual")))(pixels())
        ), "the card's own function"


def test_pretrained_weights_are_taken_and_a_fresh_head_is_not(tmp_path):
    donor = recipe("vit", loop={"seed": 9})
    state = built(donor).state_dict() | {
        "head.weight": torch.zeros(1000, 32),
        "head.bias": torch.zeros(1000),
    }
    prefixed = {f"vit.{name}": tensor for name, tensor in state.items()}
    weights = weights_file(tmp_path / "backbone.safetensors", prefixed, strip_prefixes=["vit."])
    initial = {"start": "pretrained", "weights": {"network": weights}, "fresh": ["head."]}
    network = built(recipe("vit", initial=initial))
    found = network.state_dict()
    assert all(
        torch.equal(found[name], tensor)
        for name, tensor in state.items()
        if not name.startswith("head.")
    )
    assert torch.equal(network.head.weight, built(recipe("vit")).head.weight)
    with pytest.raises(DetectorError, match="of another shape"):
        built(recipe("vit", initial=initial | {"fresh": []}))


@pytest.mark.parametrize(
    ("part", "lora"),
    [
        ("network", None),
        ("vit", None),
        ("vit", {"rank": 2, "targets": ["q_proj"], "whole": ["classifier"]}),
    ],
)
def test_a_file_of_transformers_that_keeps_the_names_of_earlier_versions_is_taken(
    part, lora, tmp_path
):
    donor = built(recipe("hf-vit", loop={"seed": 9}))
    donor.save_pretrained(tmp_path)  # which writes ViT's tensors under the names of version 4
    file = tmp_path / "model.safetensors"
    renamed = load_file(file).keys() - donor.state_dict().keys()
    assert len(renamed) > 30
    within = {"select": "vit.", "strip_prefixes": ["vit."]} if part == "vit" else {}
    initial = {
        "start": "pretrained",
        "weights": {part: {"uri": str(file), "unverified": "of this test"} | within},
    }
    initial |= {"fresh": ["classifier."]} if part == "network" else {}
    network = built(recipe("hf-vit", initial=initial, lora=lora))
    found = merged_state(network)
    assert all(
        torch.equal(found[name], tensor)
        for name, tensor in donor.state_dict().items()
        if not name.startswith("classifier.")
    )
    assert torch.equal(found["classifier.weight"], built(recipe("hf-vit")).classifier.weight)


def test_a_part_of_the_network_can_come_from_a_file_of_its_own(tmp_path):
    blocks = built(recipe("vit", loop={"seed": 9})).blocks.state_dict()
    weights = weights_file(tmp_path / "blocks.safetensors", blocks)
    network = built(recipe("vit", initial={"start": "pretrained", "weights": {"blocks": weights}}))
    assert all(
        torch.equal(network.blocks.state_dict()[name], tensor) for name, tensor in blocks.items()
    )
    with pytest.raises(ConfigError, match="no part 'trunk'"):
        built(recipe("vit", initial={"start": "pretrained", "weights": {"trunk": weights}}))
    with pytest.raises(ConfigError, match="missing: clip"):
        built(recipe("maskclip", initial={"start": "pretrained", "weights": {"mae": weights}}))


def test_weights_that_are_not_there_name_the_key_of_the_recipe():
    weights = {"uri": "nowhere.safetensors", "unverified": "none", "obtain": "Ask for it."}
    with pytest.raises(DetectorError, match=r"initial\.weights\.network: .*nowhere") as caught:
        built(recipe("vit", initial={"start": "pretrained", "weights": {"network": weights}}))
    assert caught.value.hint == "Ask for it."
    made = recipe("vit", initial={"start": "pretrained", "weights": {"network": weights}})
    form = training_form(made, training_card(made))  # of a checkpoint, which needs none of them
    assert form.state_dict().keys() == built(recipe("vit")).state_dict().keys()


def test_of_clip_with_a_linear_head_the_head_alone_learns(tmp_path):
    tower = {
        "image_size": 28,
        "patch_size": 14,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "embed_dim": 16,
        "quick_gelu": True,
    }
    backbone = {
        "name": "small",
        "title": "Small",
        "architecture": {"arguments": tower},
        "licence": "MIT",
        "source": "a test",
    }
    backbone |= {"weights": {"uri": "none.safetensors", "unverified": "none"}}
    made = Recipe.model_validate(
        {
            "name": "head",
            "detector": "unifd",
            "card": {"backbone": backbone, "preprocessing": {"center_crop": 28}},
        }
        | {"initial": {"start": "random"}, "data": {}, "loop": {"batch": 2, "steps": 1}}
    )
    assert learning(built(made)) == {"fc.weight", "fc.bias"}
    with pytest.raises(ConfigError, match="lora: small is a file of its own"):
        built(made.model_copy(update={"lora": LoraSettings(targets=("c_fc",))}))


def test_blocks_to_shard_are_the_layers_of_every_stack_inner_ones_first_and_one_process_shards_none():
    def kinds(kind):
        return [type(block).__name__ for block in blocks(built(recipe(kind)))]

    assert kinds("vit") == ["Block"] * 2
    assert kinds("siglip") == ["SiglipEncoderLayer"] * 2
    assert kinds("residual") == []
    assert kinds("swin") == [*["Swinv2Layer"] * 2, "Swinv2Stage"] * 2
    assert Counter(kinds("maskclip")) == {"ClipBlock": 24, "MaeBlock": 12}
    network = torch.nn.Linear(2, 1)
    assert distribute(network, "fsdp2", "cpu") is network
    assert world_size() == 1


def adapted(kind="vit", **lora):
    targets, whole = TARGETS[kind]
    return recipe(kind, lora={"rank": 4, "alpha": 8.0, "targets": targets, "whole": whole} | lora)


def test_adapters_and_the_whole_modules_learn_and_nothing_else_and_at_first_they_change_nothing():
    network = network_for(adapted(), training_card(adapted()))
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in names if ".lora_" not in name} == {"head.weight", "head.bias"}
    assert len(names) == 2 + 2 * 2 * 2  # two blocks, two modules in each, A and B of each
    with torch.inference_mode():
        assert torch.equal(
            network.eval()(pixels()),
            network_for(recipe("vit"), training_card(recipe("vit"))).eval()(pixels()),
        )


@pytest.mark.parametrize("kind", TARGETS)
def test_learning_moves_only_them_and_merging_keeps_the_output(kind, tmp_path):
    made = adapted(kind)
    card = training_card(made)
    learner = DetectorLearner(made, card, device="cpu", total_steps=50)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for step in range(5):
        learner.step(batch(step))
    moved = {
        name
        for name, tensor in learner.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {
        name for name, parameter in learner.network.named_parameters() if parameter.requires_grad
    }
    learner.save(tmp_path)
    assert (
        load_trained(made, card, tmp_path).state_dict().keys()
        == build_network(card).state_dict().keys()
    )
    with torch.inference_mode():
        expected = learner.network.eval()(pixels())
        assert torch.allclose(deployable(learner.network, card)(pixels()), expected, atol=1e-5)
        assert torch.allclose(load_trained(made, card, tmp_path)(pixels()), expected, atol=1e-5)
        assert not torch.allclose(network_for(made, card).eval()(pixels()), expected, atol=1e-3)


def test_adapters_stand_on_weights_that_exist(tmp_path):
    donor = network_for(recipe("vit", loop={"seed": 9}), training_card(recipe("vit")))
    save_file(donor.state_dict(), tmp_path / "all.safetensors")
    weights = {
        "network": {"uri": str(tmp_path / "all.safetensors"), "unverified": "made by this test"}
    }
    made = recipe(
        "vit",
        initial={"start": "pretrained", "weights": weights, "fresh": ["head."]},
        lora={"targets": ["qkv"], "whole": ["head"]},
    )
    network = network_for(made, training_card(made))
    assert torch.equal(
        network.blocks[0].attn.qkv.base_layer.weight, donor.blocks[0].attn.qkv.weight
    )
    assert not torch.equal(network.head.weight, donor.head.weight)


@pytest.mark.parametrize("lora", [{"targets": ["attention"]}, {"whole": ["tail"]}])
def test_names_that_no_module_has_are_refused(lora):
    with pytest.raises(ConfigError, match=r"attention|tail"):
        network_for(adapted(**lora), training_card(adapted()))
