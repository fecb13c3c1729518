"""Cards of detectors and ensembles over small networks."""

import shutil
from pathlib import Path

import yaml

from benchmarks.seeded import seeded_card, write_card
from ray_app.config import config_root
from ray_app.detectors import DetectorCard, load_card

# What a card must say, of a network with one logit that nobody published.
UNPUBLISHED = {
    "weights": {"uri": "absent.safetensors", "unverified": "written by the test"},
    "output": {"sign": 1},
    "licence": "MIT",
    "citation": "none",
    "source": "this test",
    "training_data": {"name": "none", "licence": "none"},
}
TOWER = {"width": 64, "layers": 2, "heads": 2, "embed_dim": 32}
TEXT = {"vocabulary": 49408, "width": 32, "layers": 2, "heads": 2, "embed_dim": 32}
MASKCLIP = {
    "image_size": 256,
    "vision": {
        "image_size": 224,
        "patch_size": 14,
        "width": 64,
        "layers": 24,
        "heads": 2,
        "embed_dim": 32,
    },
    "text": TEXT,
    "mae_width": 96,
    "mae_heads": 12,
    "decoder_width": 32,
    "prompts": 10,
}
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 3, 4]}


def write_ensemble(path, detectors=("touchstone-tiny",), **facts):
    """Write an ensemble card with these members and `facts`, named as its file; return its path."""
    members = [{"detector": str(detector)} for detector in detectors]
    path.write_text(
        yaml.safe_dump({"name": path.stem, "title": path.stem, "members": members, **facts})
    )
    return path


def write_tiny(path, **changes):
    """Write a copy of the card of `touchstone-tiny` with these changes; return its path."""
    shipped = config_root() / "detectors" / "touchstone-tiny.yaml"
    card = yaml.safe_load(shipped.read_text())
    card["weights"]["uri"] = str(shipped.with_name(card["weights"]["uri"]))
    path.write_text(yaml.safe_dump(card | changes))
    return path


def write_points(path):
    """Write an ensemble card whose thresholds state 1 %, and whose operating point for 10 % flags
    everything; return its path.
    """
    point = {"rate": 0.1, "threshold": -50.0, "false_positive_rate": 0.09}
    point |= {"upper_bound": 0.12, "recall": 0.9}
    return write_ensemble(
        path,
        thresholds={"real_below": -1.43, "fake_above": 50.0, "target_fpr": 0.01},
        operating_points=[point],
    )


def write_two(folder, *, own_pool=False):
    """Write two detector cards: `cheap`, and `slow`, which scores the centre 96 pixels, with
    `own_pool` in a process of its own; return their paths.
    """
    shipped = config_root() / "detectors"
    shutil.copy(shipped / "touchstone-tiny.safetensors", folder)
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    closer = {**card["preprocessing"], "center_crop": 96}
    (folder / "cheap.yaml").write_text(yaml.safe_dump({**card, "name": "cheap"}))
    (folder / "slow.yaml").write_text(
        yaml.safe_dump({**card, "name": "slow", "own_pool": own_pool, "preprocessing": closer})
    )
    return str(folder / "cheap.yaml"), str(folder / "slow.yaml")


def small_cards() -> list[DetectorCard]:
    """The eight, without weights; the second UnivFD head stands for one that a user fitted on the
    same backbone.
    """
    unifd = _tower(load_card("unifd"))
    swin = load_card("openfake-swinv2-small")
    maskclip = load_card("maskclip")
    resize = maskclip.preprocessing.resize.model_copy(update={"size": 256})
    preprocessing = maskclip.preprocessing.model_copy(update={"resize": resize})
    vit = load_card("community-forensics-vits384")
    return [
        _built(vit, name="test_vit", arguments={"img_size": 384}),
        _built(swin, arguments=dict(swin.architecture.arguments) | SWIN),
        _tower(load_card("clip-d-10k-plus")),
        unifd,
        unifd.model_copy(update={"name": "own-head"}),
        _built(
            load_card("corvi2023"), arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
        ),
        _built(load_card("tiny-ladeda")),
        _built(maskclip, arguments=MASKCLIP).model_copy(update={"preprocessing": preprocessing}),
    ]


def write_eight(folder: Path) -> Path:
    """Write cards, weights and the ensemble; returns the ensemble card."""
    members = []
    for seed, card in enumerate(small_cards()):
        seeded = seeded_card(card, folder / "weights", seed=3 if card.name == "own-head" else seed)
        own = seeded_card(card, folder / "own", seed=99) if card.name == "own-head" else seeded
        write_card(seeded.model_copy(update={"weights": own.weights}), folder / f"{card.name}.yaml")
        members.append({"detector": f"{card.name}.yaml"})
    path = folder / "ensemble.yaml"
    told = {"name": "eight", "title": "Eight small detectors, seeded", "rule": "mean-logit"}
    path.write_text(yaml.safe_dump(told | {"members": members}))
    return path


def _built(card: DetectorCard, **architecture: object) -> DetectorCard:
    built = card.architecture.model_copy(update=architecture)
    plain = {"size": None, "variants": {}, "golden": (), "terms": "permissive"}
    return card.model_copy(update={"architecture": built} | plain)


def _tower(card: DetectorCard) -> DetectorCard:
    built = card.backbone.architecture
    small = built.model_copy(update={"arguments": dict(built.arguments) | TOWER})
    backbone = card.backbone.model_copy(update={"architecture": small})
    return _built(card).model_copy(update={"backbone": backbone})
