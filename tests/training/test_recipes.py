"""Every shipped recipe loads, and learns on tiny widths with its own policy, losses, and schedule."""

import math
import re

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from benchmarks.seeded import seeded_card
from ray_app.config import load_yaml, named_configs, read_mapping, validate
from ray_app.datasets import DatasetSource, index_source
from ray_app.datasets.layouts import LAYOUTS, make_layout
from ray_app.datasets.sampling import SampleOrder
from ray_app.detectors import load_card, load_detector
from ray_app.detectors.detector import build_network
from ray_app.detectors.families.maskclip import LEARNING, trainable_parameters
from ray_app.storage import Store
from ray_app.training.config import TrainConfig
from ray_app.training.detector import DetectorLearner
from ray_app.training.embeddings import embed
from ray_app.training.head import cross_validate_auc, fit_head
from ray_app.training.identifier import fit
from ray_app.training.learner import compute_rate
from ray_app.training.loader import BatchLoader, measure_real_images
from ray_app.training.networks import build_training_network, make_deployable, training_card
from ray_app.transforms.policy import make_policy
from tests.make.cards import TOWER
from tests.make.networks.small_frozen import seeded_frozen, small_frozen
from tests.make.published import write_parquet
from tests.training.labelled_rows import png
from tests.training.made import picture
from tests.training.small_recipes import TINY, VIT

FILES = named_configs("train")
HEADS = [
    name
    for name, path in FILES.items()
    if read_mapping(path).get("method") in ("linear-probe", "identify")
]
STEPS, BATCH = 20, 8  # of a small training
RUN = 6  # steps of it


def altered():
    mask = np.zeros((80, 96), np.uint8)
    mask[20:60, 30:70] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Labelled rows of 24 small images, and of 24 with masks in the form of OpenSDI."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        path = folder / "plain" / ("camera/real", "sdxl/fake")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 96, 80).save(path)
    keys = [
        f"{('partial', 'entire')[number % 2]}/sd15/{label}/{number:09}.jpg"
        for label in ("fake", "real")
        for number in range(12)
    ]
    images = [png(picture(number, 96, 80)) for number in range(24)]
    masks = [png(altered()) if "partial" in key and "fake" in key else None for key in keys]
    columns = {"key": keys, "image": images, "mask": masks, "label": [1] * 12 + [0] * 12}
    shard = folder / "OpenSDI_train" / "data" / "sd15-00000-of-00001.parquet"
    write_parquet(shard, columns, images=("image", "mask"), labels=["real", "fake"])

    def indexed(place, layout):
        source = DatasetSource(at=(str(place),), layout=layout)
        return index_source(source, Store.open(str(folder / f"index-{layout}")))

    return {
        "plain": indexed(folder / "plain", "folders"),
        "masked": indexed(shard.parent, "opensdi"),
    }


def tiny(name):
    """The shipped recipe on a small network that begins from nothing, with small batches."""
    facts = read_mapping(FILES[name])
    for key in ("epochs", "micro_batch"):
        facts["loop"].pop(key, None)
    facts["loop"] |= {"batch": BATCH, "micro_batch": 4, "steps": STEPS}
    facts |= {"card": TINY[name], "initial": {"start": "random"}}
    return validate(facts, TrainConfig, where=name)


def test_foundation_head_starts_from_the_published_backbone(tmp_path):
    """The file has the names of timm, only the head learns, and the card's network takes it."""
    card = seeded_frozen("vfm-pe-l14", tmp_path)
    facts, weights = read_mapping(FILES["vfm-linear"]), card.backbone.weights
    initial = facts["initial"]["weights"]
    assert initial["backbone"]["uri"] == load_card("vfm-pe-l14").backbone.weights.uri
    initial["backbone"] = {"uri": weights.uri, "sha256": weights.sha256}
    network = build_training_network(validate(facts, TrainConfig, where="vfm-linear"), card)
    inner = network.backbone.network.state_dict()
    for key, tensor in load_file(weights.uri).items():
        assert torch.equal(inner[key], tensor)
    named = network.named_parameters()
    assert {name for name, one in named if one.requires_grad} == {"fc.weight", "fc.bias"}
    assert make_deployable(network, card).feature == "pooled"


@pytest.mark.parametrize("name", FILES)
def test_every_shipped_file_is_a_recipe(name):
    recipe = load_yaml(FILES[name], TrainConfig)
    card, data = training_card(recipe), recipe.data
    assert recipe.name == name
    assert recipe.source
    train, validation, test = (
        split if isinstance(split, tuple) else ()
        for split in (data.train, data.validation, data.test)
    )
    assert train
    assert data.validation
    for source in (*train, *validation, *test):
        assert source.layout in LAYOUTS
        make_layout(source.layout, source.arguments)
    for source in validation:  # No recipe chooses on what its source tests on.
        for word in (source.split or "", *source.at):
            assert not re.search("test|eval", word.lower()), word
    assert card.masks == (recipe.loss.name == "maskclip")
    if recipe.augmentation.policy != "openfake-v1":
        make_policy(recipe.augmentation, side=card.preprocessing.shape[0])


@pytest.mark.parametrize("name", TINY)
def test_recipe_learns_for_a_few_steps_at_tiny_width(name, rows):
    recipe = tiny(name)
    card = training_card(recipe)
    preprocessing, masks, seed = card.preprocessing, card.masks, recipe.loop.seed
    table, statistics = rows["masked" if masks else "plain"], None
    if "v1" in recipe.augmentation.policy:
        plain = BatchLoader(table, preprocessing, policy=None, seed=0)
        statistics = measure_real_images(plain, 8, 0)
    side = preprocessing.shape[0]
    policy = make_policy(recipe.augmentation, side=side, statistics=statistics)
    loader = BatchLoader(table, preprocessing, policy=policy, seed=seed, masks=masks)
    order = SampleOrder(table, recipe.sampling, seed, recipe.loop.batch)
    learner = DetectorLearner(recipe, card, device="cpu", total_steps=STEPS)
    before = {key: value.detach().clone() for key, value in learner.network.named_parameters()}
    steps = [learner.step(loader.load_steps(order, [step])) for step in range(RUN)]
    assert [one.step for one in steps] == list(range(RUN))
    for one in steps:
        assert math.isfinite(one.loss)
        assert one.gradient_norm > 0
        assert one.unusable == 0
    assert steps[3].rate == compute_rate(recipe.schedule, recipe.optimiser.rate, 3, STEPS)
    for key, value in learner.network.named_parameters():
        assert bool((value != before[key]).any()) == value.requires_grad, key


@pytest.mark.parametrize("name", HEADS)
def test_head_recipe_fits_to_a_few_batches(name, rows, tmp_path):
    """Backbones of foundation models and of CLIP are small and seeded; the others are shipped."""
    recipe = load_yaml(FILES[name], TrainConfig)
    card = seeded_card(small_backbone(training_card(recipe)), tmp_path)
    policy = make_policy(recipe.augmentation, side=card.preprocessing.shape[0])
    loader = BatchLoader(rows["plain"], card.preprocessing, policy=policy, seed=recipe.loop.seed)
    detector = load_detector(card, precision="fp32", slots=2)
    detector.keep_embeddings()
    blocks = [embed(detector, loader, part) for part in np.split(np.arange(24), 12)]
    vectors = np.concatenate([block.vectors for block in blocks])
    labels = np.concatenate([block.labels for block in blocks])
    assert len(labels) == 24
    if recipe.method == "identify":
        codes = np.arange(len(labels)) % 3
        fitted = fit(vectors, codes, [str(row) for row in range(len(codes))], recipe.identify)
        assert fitted.tensors["weight"].shape == (3, vectors.shape[1])
        assert all(np.isfinite(tensor).all() for tensor in fitted.tensors.values())
    else:
        head = fit_head(vectors, labels).as_log_odds()
        assert len(cross_validate_auc(vectors, labels)) == 5
        assert roc_auc_score(labels, head.score(vectors)) > 0.5


def small_backbone(card):
    """The card with a small backbone, if the shipped files do not have its own."""
    if card.name.startswith("vfm-"):
        return small_frozen(card)
    if card.family != "clip-linear":
        return card
    tower = card.backbone.architecture
    small = tower.model_copy(update={"arguments": {**tower.arguments, **TOWER}})
    backbone = card.backbone.model_copy(update={"architecture": small})
    return card.model_copy(update={"backbone": backbone})


def save_hub_model(model, folder):
    model.save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "network.safetensors")


def write_published(name, folder, network):
    """Write the files that a recipe begins from as their publishers do; return them by part."""
    if name == "community-forensics":
        architecture = VIT["architecture"]
        model = timm.create_model(
            architecture["name"], num_classes=1000, **architecture["arguments"]
        )
        save_file(model.state_dict(), folder / "network.safetensors")
    elif name == "siglip2":
        text = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 50,
        }
        vision = network.config.vision_config.to_dict()
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        save_hub_model(transformers.SiglipModel(config), folder)
    elif name == "maskclip":
        encoder = network.aggregator.vit_model.state_dict().items()
        mae = {key: torch.randn(value.shape) for key, value in encoder if ".rel_pos_" not in key}
        others = {key: torch.zeros(2) for key in ("cls_token", "norm.weight", "norm.bias")}
        torch.save({"model": mae | others}, folder / "mae.pth")
        clip = network.clip.state_dict().items()
        clip = {key: torch.randn(value.shape) for key, value in clip}
        save_file(clip, folder / "clip.safetensors")
    else:
        changes = {"id2label": None, "label2id": None, "num_labels": 1000}
        config = type(network.config).from_dict(network.config.to_dict() | changes)
        save_hub_model(transformers.Swinv2ForImageClassification(config), folder)
    return {path.stem: path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth")}


@pytest.mark.parametrize("name", TINY)
def test_recipe_takes_published_weights_except_fresh_ones(name, tmp_path):
    recipe, small = load_yaml(FILES[name], TrainConfig), tiny(name)
    card = training_card(small)
    built = build_training_network(small, card)
    files = write_published(name, tmp_path, built)
    weights = {}
    for part, given in recipe.initial.weights.items():
        update = {"uri": str(files[part]), "sha256": None, "unverified": "of this test"}
        weights[part] = given.model_copy(update=update)
    initial = recipe.initial.model_copy(update={"weights": weights})
    state = build_training_network(small.model_copy(update={"initial": initial}), card).state_dict()
    before = built.state_dict()
    changed = {key for key in before if not torch.equal(before[key], state[key])}
    of_maskclip = ("aggregator.fusion", "aggregator.mask_decoder", "cls_aggregator")
    fresh = {key for key in state if key.startswith(recipe.initial.fresh or of_maskclip)}
    assert fresh
    assert not changed & fresh
    if name != "maskclip":
        taken = load_file(files["network"])
        assert all(torch.equal(state[key], taken[key]) for key in state.keys() - fresh)
        return
    clip = load_file(files["clip"])
    assert all(torch.equal(state[f"clip.{key}"], value) for key, value in clip.items())
    mae = torch.load(files["mae"], weights_only=True)["model"]
    key = "blocks.3.attn.qkv.weight"
    assert torch.equal(state[f"aggregator.vit_model.{key}"], mae[key])
    assert not any(value.any() for key, value in state.items() if ".rel_pos_" in key)


def test_maskclip_learns_the_tensors_of_the_reference():
    """specs/localization.md §1.6: of the 778 tensors all but CLIP's 446, by parts of their names."""
    with torch.device("meta"):
        network = build_network(load_card("maskclip"))
    learning = trainable_parameters(network)
    names = [name for name, _ in network.named_parameters()]
    assert set(learning) == {name for name in names if any(part in name for part in LEARNING)}
    assert set(learning) == {name for name in names if not name.startswith("clip.")}
    counts = [
        sum(name.startswith(part) for name in learning)
        for part in ("aggregator.", "cls_aggregator.", "prompt_learner.ctx_")
    ]
    assert (len(learning), counts) == (332, [323, 7, 2])
    assert sum(parameter.numel() for parameter in learning.values()) == 119_212_225
    assert sum(parameter.numel() for parameter in network.parameters()) == 546_828_738
    assert len(network.state_dict()) == 778


@pytest.mark.parametrize(
    ("name", "numbers", "schedule"),
    [
        (
            "community-forensics",
            ("adamw", 2e-5, 0.01, "all", 512, 52_000, 1.0, 2000),
            ("cosine", 0.2, 0.001),
        ),
        (
            "openfake-swinv2",
            ("adamw", 5e-5, 0.0, "all", 32, 600_000 // 32 * 4, 1.0, 500),
            ("linear", 0, 0),
        ),
        (
            "openfake-swinv2-v2",
            ("adamw", 5e-5, 0.01, "matrices", 32, 5, 1.0, 1000),
            ("linear", 0.05, 0),
        ),
        ("siglip2", ("adamw", 2e-5, 0.02, "matrices", 32, 5, 1.0, None), ("cosine", 0.05, 0)),
        ("maskclip", ("adamw", 1e-4, 0.05, "matrices", 16, 50, None, None), ("cosine", 0, 0)),
    ],
)
def test_recipe_has_the_numbers_of_its_paper(name, numbers, schedule):
    """What §1b, §1c and §7a of specs/detectors.md and §1.8 of specs/localization.md say."""
    recipe = load_yaml(FILES[name], TrainConfig)
    one, loop = recipe.optimiser, recipe.loop
    found = (
        one.name,
        one.rate,
        one.weight_decay,
        one.decays,
        loop.batch,
        loop.steps or loop.epochs,
        loop.clip,
        recipe.validation.every,
    )
    assert found == numbers
    assert (recipe.schedule.shape, recipe.schedule.warmup, recipe.schedule.floor) == schedule
