import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_app.detectors.detector import build_network, load_network
from ray_app.errors import ConfigError, DetectorError
from ray_app.training.config import LoraSettings, Recipe
from ray_app.training.detector import DetectorLearner, load_trained
from ray_app.training.networks import (
    TrainingModule,
    build_training_network,
    build_untrained_network,
    make_deployable,
    merge_adapters,
    training_card,
)
from tests.training.small_recipes import DETECTORS, batch, recipe

TARGETS = {"vit": (["qkv", "mlp.fc1"], ["head"]), "siglip": (["q_proj", "v_proj"], ["classifier"])}


def built(given):
    return build_training_network(given, training_card(given))


def donor(kind="vit"):
    """A network of other values."""
    return built(recipe(kind, loop={"seed": 9}))


def pixels(side=32, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(4))


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def pretrained(**initial):
    return {"start": "pretrained", **initial}


def weights_file(path, state, **facts):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return {"uri": str(path), "unverified": "made by this test", **facts}


def assert_values(found, expected, without="-"):
    """The tensors in `found` have the values of `expected`, except those with a prefix."""
    names = [name for name in expected if not name.startswith(without)]
    assert [name for name in names if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize(
    ("detector", "card", "said"),
    [
        ("internvl-prompt", {}, "answers in text"),
        ("corvi2023", {}, "keeps the size of every image"),
        ("touchstone-tiny", {"familly": "residual"}, "did you mean 'family'"),
    ],
)
def test_card_that_no_recipe_can_train_is_rejected(detector, card, said):
    facts = {"name": "no", "detector": detector, "card": card, "data": {}}
    given = Recipe.model_validate(facts | {"loop": {"batch": 2, "steps": 1}})
    with pytest.raises(ConfigError, match=said):
        training_card(given)


@pytest.mark.parametrize("kind", ["vit", "residual", "siglip"])
def test_seed_decides_initial_values_and_is_local(kind):
    before = torch.get_rng_state()
    one, same = (built(recipe(kind, loop={"seed": 3})).state_dict() for _ in range(2))
    other = built(recipe(kind, loop={"seed": 4})).state_dict()
    assert_values(same, one)
    assert any(not torch.equal(other[name], tensor) for name, tensor in one.items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", DETECTORS)
def test_learning_network_gets_gradients_and_is_deployable(kind):
    card, network = training_card(recipe(kind)), built(recipe(kind))
    side = 64 if kind == "maskclip" else 32
    assert network.training
    answer = TrainingModule(network)(pixels(side))
    masks = 0 if answer.mask_logits is None else answer.mask_logits.square().mean()
    (answer.log_odds(card.output).square().sum() + masks).backward()
    parameters = dict(network.named_parameters())
    assert all(parameters[name].grad is not None for name in learning(network))
    if kind == "siglip":  # Its pooling head is unused, and in the checkpoint nevertheless.
        frozen = parameters.keys() - learning(network)
        assert frozen
        assert all(name.startswith("vision_model.head.") for name in frozen)
    deployed = make_deployable(network, card)
    assert deployed.state_dict().keys() == build_network(card).state_dict().keys()
    assert not deployed.training
    assert not learning(deployed)
    assert all(module.training for module in network.modules()), "the original stays as it is"
    with torch.inference_mode():
        expected = TrainingModule(network.eval())(pixels(side)).logits
        assert torch.allclose(TrainingModule(deployed)(pixels(side)).logits, expected, atol=2e-4)


def test_residual_has_norms_only_from_random_weights():
    card = training_card(recipe("residual"))
    begun = built(recipe("residual"))
    continued = built(recipe("residual", initial={"start": "card"}))
    assert continued.norms is None
    begun.norms[0].running_mean.fill_(0.5)
    begun.norms[1].weight.data.fill_(3.0)
    deployed = make_deployable(begun, card)
    with torch.inference_mode():
        assert torch.allclose(deployed(64 * pixels()), begun.eval()(64 * pixels()), atol=1e-4)
        assert torch.equal(continued.eval()(pixels()), load_network(card)(pixels()))


def test_pretrained_weights_are_taken_except_a_fresh_head(tmp_path):
    head = {"head.weight": torch.zeros(1000, 32), "head.bias": torch.zeros(1000)}
    state = donor().state_dict() | head
    prefixed = {f"vit.{name}": tensor for name, tensor in state.items()}
    weights = weights_file(tmp_path / "backbone.safetensors", prefixed, strip_prefixes=["vit."])
    initial = pretrained(weights={"network": weights}, fresh=["head."])
    network = built(recipe("vit", initial=initial))
    assert_values(network.state_dict(), state, without="head.")
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
    ids=["network", "part", "lora"],
)
def test_file_with_names_of_transformers_4_is_taken(part, lora, tmp_path):
    other = donor("hf-vit")
    other.save_pretrained(tmp_path)  # It writes ViT's tensors under the names of version 4.
    file = tmp_path / "model.safetensors"
    assert len(load_file(file).keys() - other.state_dict().keys()) > 30
    weights = {"uri": str(file), "unverified": "of this test"}
    initial = pretrained(weights={part: weights})
    if part == "vit":
        weights |= {"select": "vit.", "strip_prefixes": ["vit."]}
    else:
        initial["fresh"] = ["classifier."]
    found = merge_adapters(built(recipe("hf-vit", initial=initial, lora=lora)))
    assert_values(found, other.state_dict(), without="classifier.")
    assert torch.equal(found["classifier.weight"], built(recipe("hf-vit")).classifier.weight)


def test_part_of_a_network_comes_from_its_own_file(tmp_path):
    state = donor().blocks.state_dict()
    weights = weights_file(tmp_path / "blocks.safetensors", state)
    network = built(recipe("vit", initial=pretrained(weights={"blocks": weights})))
    assert_values(network.blocks.state_dict(), state)
    with pytest.raises(ConfigError, match="no part 'trunk'"):
        built(recipe("vit", initial=pretrained(weights={"trunk": weights})))
    with pytest.raises(ConfigError, match="but lacks clip"):
        built(recipe("maskclip", initial=pretrained(weights={"mae": weights})))


def test_missing_weights_name_the_key_of_the_recipe():
    weights = {"uri": "nowhere.safetensors", "unverified": "none", "obtain": "Ask for it."}
    given = recipe("vit", initial=pretrained(weights={"network": weights}))
    with pytest.raises(DetectorError, match=r"initial\.weights\.network: .*nowhere") as caught:
        built(given)
    assert caught.value.hint == "Ask for it."
    form = build_untrained_network(given, training_card(given))  # A checkpoint needs none of them.
    assert form.state_dict().keys() == built(recipe("vit")).state_dict().keys()


def test_only_the_head_of_a_linear_clip_learns():
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
        "weights": {"uri": "none.safetensors", "unverified": "none"},
    }
    facts = {
        "name": "head",
        "detector": "unifd",
        "card": {"backbone": backbone, "preprocessing": {"center_crop": 28}},
        "initial": {"start": "random"},
        "data": {},
        "loop": {"batch": 2, "steps": 1},
    }
    given = Recipe.model_validate(facts)
    assert learning(built(given)) == {"fc.weight", "fc.bias"}
    with pytest.raises(ConfigError, match="lora: the backbone small cannot learn"):
        built(given.model_copy(update={"lora": LoraSettings(targets=("c_fc",))}))


def adapted(kind="vit", **lora):
    targets, whole = TARGETS[kind]
    return recipe(kind, lora={"rank": 4, "alpha": 8.0, "targets": targets, "whole": whole} | lora)


def test_adapters_learn_and_change_nothing_at_first():
    network = built(adapted())
    names = learning(network)
    assert {name for name in names if ".lora_" not in name} == {"head.weight", "head.bias"}
    assert len(names) == 2 + 2 * 2 * 2  # Two blocks, two modules in each, A and B of each.
    with torch.inference_mode():
        expected = built(recipe("vit")).eval()(pixels())
        assert torch.equal(network.eval()(pixels()), expected)


@pytest.mark.parametrize("kind", TARGETS)
def test_merged_adapters_give_the_learned_output(kind, tmp_path):
    given = adapted(kind)
    card = training_card(given)
    learner = DetectorLearner(given, card, device="cpu", total_steps=50)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for step in range(5):
        learner.step(batch(step))
    after = learner.network.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == learning(learner.network)
    learner.save(tmp_path)
    loaded = load_trained(given, card, tmp_path)
    assert loaded.state_dict().keys() == build_network(card).state_dict().keys()
    with torch.inference_mode():
        expected = learner.network.eval()(pixels())
        for network in (make_deployable(learner.network, card), loaded):
            assert torch.allclose(network(pixels()), expected, atol=1e-5)
        assert not torch.allclose(built(given).eval()(pixels()), expected, atol=1e-3)


def test_adapters_start_from_pretrained_weights(tmp_path):
    other = donor()
    weights = weights_file(tmp_path / "all.safetensors", other.state_dict())
    initial = pretrained(weights={"network": weights}, fresh=["head."])
    network = built(recipe("vit", initial=initial, lora={"targets": ["qkv"], "whole": ["head"]}))
    layer = network.blocks[0].attn.qkv.base_layer
    assert torch.equal(layer.weight, other.blocks[0].attn.qkv.weight)
    assert not torch.equal(network.head.weight, other.head.weight)


@pytest.mark.parametrize("lora", [{"targets": ["attention"]}, {"whole": ["tail"]}])
def test_adapters_reject_names_that_no_module_has(lora):
    with pytest.raises(ConfigError, match=r"attention|tail"):
        built(adapted(**lora))
