import pytest
import torch
from safetensors.torch import save_file

from ray_app.detectors.detector import build_network
from ray_app.errors import ConfigError
from ray_app.training.detector import DetectorLearner, load_trained
from ray_app.training.networks import deployable, network_for, training_card
from tests.training.small_recipes import batch, recipe

TARGETS = {"vit": (["qkv", "mlp.fc1"], ["head"]), "siglip": (["q_proj", "v_proj"], ["classifier"])}


def adapted(kind="vit", **lora):
    targets, whole = TARGETS[kind]
    return recipe(kind, lora={"rank": 4, "alpha": 8.0, "targets": targets, "whole": whole} | lora)


def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def test_adapters_and_the_whole_modules_learn_and_nothing_else_and_at_first_they_change_nothing():
    network = network_for(adapted(), training_card(adapted()))
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in names if ".lora_" not in name} == {"head.weight", "head.bias"}
    assert len(names) == 2 + 2 * 2 * 2  # two blocks, two modules in each, A and B of each
    with torch.inference_mode():
        assert torch.equal(network.eval()(pixels()), network_for(recipe("vit"), training_card(recipe("vit"))).eval()(pixels()))


@pytest.mark.parametrize("kind", TARGETS)
def test_learning_moves_only_them_and_merging_keeps_the_output(kind, tmp_path):
    made = adapted(kind)
    card = training_card(made)
    learner = DetectorLearner(made, card, device="cpu", total_steps=50)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for step in range(5):
        learner.step(batch(step))
    moved = {name for name, tensor in learner.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, parameter in learner.network.named_parameters() if parameter.requires_grad}
    learner.save(tmp_path)
    assert load_trained(made, card, tmp_path).state_dict().keys() == build_network(card).state_dict().keys()
    with torch.inference_mode():
        expected = learner.network.eval()(pixels())
        assert torch.allclose(deployable(learner.network, card)(pixels()), expected, atol=1e-5)
        assert torch.allclose(load_trained(made, card, tmp_path)(pixels()), expected, atol=1e-5)
        assert not torch.allclose(network_for(made, card).eval()(pixels()), expected, atol=1e-3)


def test_adapters_stand_on_weights_that_exist(tmp_path):
    donor = network_for(recipe("vit", loop={"seed": 9}), training_card(recipe("vit")))
    save_file(donor.state_dict(), tmp_path / "all.safetensors")
    weights = {"network": {"uri": str(tmp_path / "all.safetensors"), "unverified": "made by this test"}}
    made = recipe(
        "vit", initial={"start": "pretrained", "weights": weights, "fresh": ["head."]}, lora={"targets": ["qkv"], "whole": ["head"]}
    )
    network = network_for(made, training_card(made))
    assert torch.equal(network.blocks[0].attn.qkv.base_layer.weight, donor.blocks[0].attn.qkv.weight)
    assert not torch.equal(network.head.weight, donor.head.weight)


@pytest.mark.parametrize("lora", [{"targets": ["attention"]}, {"whole": ["tail"]}])
def test_names_that_no_module_has_are_refused(lora):
    with pytest.raises(ConfigError, match=r"attention|tail"):
        network_for(adapted(**lora), training_card(adapted()))
