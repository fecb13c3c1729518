"""Eight detectors in their published formats and preprocessing, with seeded weights and small
widths: an ensemble for whole runs.
"""

from pathlib import Path

import yaml

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import DetectorCard, load_card

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
