"""The shipped recipes: every file is one, and each learns on tiny widths with its own policy,
losses and schedule.
"""

import io
import math

import numpy as np
import pyarrow as pa
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
from ray_app.training.learner import rate_at
from ray_app.training.loader import BatchLoader, measure_real
from ray_app.training.networks import deployable, network_for, training_card
from ray_app.transforms.policy import make_policy
from tests.datasets.published import write_parquet
from tests.detectors.small_frozen import seeded_frozen, small_frozen
from tests.scoring.eight import TOWER
from tests.training.made import picture
from tests.training.small_recipes import TINY, VIT

FILES = named_configs("train")
HEADS = [
    name
    for name, path in FILES.items()
    if read_mapping(path).get("method") in ("linear-probe", "identify")
]
STEPS, MADE, BATCH = 20, 6, 8  # of a small training, and those that are made


def altered():
    mask = np.zeros((80, 96), np.uint8)
    mask[20:60, 30:70] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Labelled rows of 24 small pictures, and of 24 with masks in OpenSDI's own form."""
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
        return index_source(
            DatasetSource(at=(str(place),), layout=layout),
            Store.open(str(folder / f"index-{layout}")),
        )

    return {
        "plain": indexed(folder / "plain", "folders"),
        "masked": indexed(shard.parent, "opensdi"),
    }


def tiny(name):
    """The shipped recipe on a small network that begins from nothing, with small batches; all else
    as it is.
    """
    facts = read_mapping(FILES[name])
    loop = {
        key: value for key, value in facts["loop"].items() if key not in ("epochs", "micro_batch")
    }
    facts |= {
        "card": TINY[name],
        "initial": {"start": "random"},
        "loop": loop | {"batch": BATCH, "micro_batch": 4, "steps": STEPS},
    }
    return validate(facts, TrainConfig, where=name)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_foundation_model_s_head_begins_from_the_published_file_under_its_own_names(tmp_path):
    """The backbone's file holds timm's names; only the head learns, and what is trained loads into
    the card's network.
    """
    card = seeded_frozen("vfm-pe-l14", tmp_path)
    facts = read_mapping(FILES["vfm-linear"])
    shipped = load_card("vfm-pe-l14").backbone
    assert facts["initial"]["weights"]["backbone"]["uri"] == shipped.weights.uri
    facts["initial"]["weights"]["backbone"] = {
        "uri": card.backbone.weights.uri,
        "sha256": card.backbone.weights.sha256,
    }
    recipe = validate(facts, TrainConfig, where="vfm-linear")
    network = network_for(recipe, card)
    inner = network.backbone.network.state_dict()
    for key, tensor in load_file(card.backbone.weights.uri).items():
        assert torch.equal(inner[key], tensor)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        "fc.weight",
        "fc.bias",
    }
    assert deployable(network, card).feature == "pooled"


def as_sources(split):
    return split if isinstance(split, tuple) else ()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_a_recipe(name):
    recipe = load_yaml(FILES[name], TrainConfig)
    card = training_card(recipe)
    assert recipe.name == name
    assert recipe.source
    assert recipe.data.train
    assert recipe.data.validation
    for source in (
        *recipe.data.train,
        *as_sources(recipe.data.validation),
        *as_sources(recipe.data.test),
    ):
        assert source.layout in LAYOUTS
        make_layout(source.layout, source.arguments)
    # no recipe chooses on what its source tests on
    for source in as_sources(recipe.data.validation):
        assert "test" not in (source.split or "").lower()
        assert not any("test" in place.lower() or "eval" in place.lower() for place in source.at)
    assert card.masks == (recipe.loss.name == "maskclip")
    side = card.preprocessing.shape[0]
    if recipe.augmentation.policy != "openfake-v1":
        make_policy(recipe.augmentation, side=side)


@pytest.mark.parametrize("name", TINY)
def test_a_few_steps_on_tiny_widths(name, rows):
    recipe = tiny(name)
    card = training_card(recipe)
    masks = recipe.loss.name == "maskclip"
    table = rows["masked" if masks else "plain"]
    statistics = (
        measure_real(BatchLoader(table, card.preprocessing, policy=None, seed=0), 8, 0)
        if "v1" in recipe.augmentation.policy
        else None
    )
    policy = make_policy(
        recipe.augmentation, side=card.preprocessing.shape[0], statistics=statistics
    )
    loader = BatchLoader(
        table, card.preprocessing, policy=policy, seed=recipe.loop.seed, masks=masks
    )
    order = SampleOrder(table, recipe.sampling, recipe.loop.seed, recipe.loop.batch)
    learner = DetectorLearner(recipe, card, device="cpu", total_steps=STEPS)
    before = {key: value.detach().clone() for key, value in learner.network.named_parameters()}
    figures = [learner.step(loader.load_steps(order, [step])) for step in range(MADE)]
    assert [one.step for one in figures] == list(range(MADE))
    assert all(
        math.isfinite(one.loss) and one.gradient_norm > 0 and one.unusable == 0 for one in figures
    )
    assert figures[3].rate == rate_at(recipe.schedule, recipe.optimiser.rate, 3, STEPS)
    moved = {
        key: bool((value != before[key]).any()) for key, value in learner.network.named_parameters()
    }
    assert moved == {key: value.requires_grad for key, value in learner.network.named_parameters()}


@pytest.mark.parametrize("name", HEADS)
def test_head_recipe_fits_to_twenty_batches_of_images(name, rows, tmp_path):
    """Backbones of foundation models and of CLIP are small and seeded; the others are shipped."""
    recipe = load_yaml(FILES[name], TrainConfig)
    card = seeded_card(small_backbone(training_card(recipe)), tmp_path)
    policy = make_policy(recipe.augmentation, side=card.preprocessing.shape[0])
    table = pa.concat_tables([rows["plain"]] * 2)
    loader = BatchLoader(table, card.preprocessing, policy=policy, seed=recipe.loop.seed)
    detector = load_detector(card, precision="fp32", slots=2)
    detector.keep_embeddings()
    blocks = [embed(detector, loader, part) for part in np.split(np.arange(2 * STEPS), STEPS)]
    vectors = np.concatenate([block.vectors for block in blocks])
    labels = np.concatenate([block.labels for block in blocks])
    assert len(labels) == 2 * STEPS
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


def published(name, folder, network):
    """The files that a recipe begins from as their publishers write them, for a network of these
    sizes: {part: path}.
    """
    if name == "community-forensics":
        model = timm.create_model(
            VIT["architecture"]["name"], num_classes=1000, **VIT["architecture"]["arguments"]
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
        transformers.SiglipModel(
            transformers.SiglipConfig(
                text_config=text, vision_config=network.config.vision_config.to_dict()
            )
        ).save_pretrained(folder)
        (folder / "model.safetensors").rename(folder / "network.safetensors")
    elif name == "maskclip":
        encoder = {
            key: value
            for key, value in network.aggregator.vit_model.state_dict().items()
            if ".rel_pos_" not in key
        }
        others = {key: torch.zeros(2) for key in ("cls_token", "norm.weight", "norm.bias")}
        torch.save(
            {"model": {key: torch.randn(value.shape) for key, value in encoder.items()} | others},
            folder / "mae.pth",
        )
        save_file(
            {key: torch.randn(value.shape) for key, value in network.clip.state_dict().items()},
            folder / "clip.safetensors",
        )
    else:
        config = type(network.config).from_dict(
            network.config.to_dict() | {"id2label": None, "label2id": None, "num_labels": 1000}
        )
        transformers.Swinv2ForImageClassification(config).save_pretrained(folder)
        (folder / "model.safetensors").rename(folder / "network.safetensors")
    return {path.stem: path for path in folder.iterdir() if path.suffix in (".safetensors", ".pth")}


@pytest.mark.parametrize("name", TINY)
def test_what_a_recipe_begins_from_is_taken_and_what_is_fresh_is_not(name, tmp_path):
    recipe, small = load_yaml(FILES[name], TrainConfig), tiny(name)
    card = training_card(small)
    built = network_for(small, card)
    files = published(name, tmp_path, built)
    weights = {
        part: given.model_copy(
            update={"uri": str(files[part]), "sha256": None, "unverified": "of this test"}
        )
        for part, given in recipe.initial.weights.items()
    }
    network = network_for(
        small.model_copy(
            update={"initial": recipe.initial.model_copy(update={"weights": weights})}
        ),
        card,
    )
    state = network.state_dict()
    changed = {
        key for key, value in built.state_dict().items() if not torch.equal(value, state[key])
    }
    fresh = {
        key
        for key in state
        if key.startswith(
            recipe.initial.fresh
            or ("aggregator.fusion", "aggregator.mask_decoder", "cls_aggregator")
        )
    }
    assert fresh
    assert not changed & fresh
    if name != "maskclip":
        taken = load_file(files["network"])
        assert all(
            torch.equal(value, taken[key]) for key, value in state.items() if key not in fresh
        )
    else:
        clip = load_file(files["clip"])
        assert all(torch.equal(state[f"clip.{key}"], value) for key, value in clip.items())
        mae = torch.load(files["mae"], weights_only=True)["model"]
        assert torch.equal(
            state["aggregator.vit_model.blocks.3.attn.qkv.weight"], mae["blocks.3.attn.qkv.weight"]
        )
        assert not any(value.any() for key, value in state.items() if ".rel_pos_" in key)


def test_maskclip_learns_the_references_tensors_119_million_of_547_million_numbers():
    """specs/localization.md §1.6: by these parts of names; of the 778 tensors all but CLIP's 446."""
    with torch.device("meta"):
        network = build_network(load_card("maskclip"))
    learning = trainable_parameters(network)
    assert learning.keys() == {
        name for name, _ in network.named_parameters() if any(part in name for part in LEARNING)
    }
    assert learning.keys() == {
        name for name, _ in network.named_parameters() if not name.startswith("clip.")
    }
    parts = [
        sum(name.startswith(part) for name in learning)
        for part in ("aggregator.", "cls_aggregator.", "prompt_learner.ctx_")
    ]
    assert (len(learning), parts) == (332, [323, 7, 2])
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
def test_the_papers_numbers(name, numbers, schedule):
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
