"""The shipped heads on foundation models with backbones of a few thousand parameters under the
published keys.
"""

from benchmarks.seeded import seeded_card
from ray_app.detectors import DetectorCard, load_card

_VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}
# What makes each backbone small; the position tables and all names stay those of the published
# sizes.
BACKBONES = {
    "vfm-pe-l14": {**_VIT, "num_classes": 16},
    "vfm-dinov3-l16": {**_VIT, "num_classes": 0},
    "vfm-dinov3-convnext": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
    "vfm-metaclip2-h14": {
        "hidden_size": 32, "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    },
    "vfm-siglip2-so400m": {**_VIT, "num_classes": 0},
}  # fmt: skip


def small_frozen(card: DetectorCard) -> DetectorCard:
    """A shipped card (or a variant) with a small backbone, without weights; it needs no consent."""
    assert card.backbone is not None
    built = card.backbone.architecture
    small = built.model_copy(
        update={"arguments": dict(built.arguments) | BACKBONES[card.name.partition(":")[0]]}
    )
    backbone = card.backbone.model_copy(update={"architecture": small})
    return card.model_copy(
        update={"backbone": backbone, "size": None, "variants": {}, "terms": "permissive"}
    )


def seeded_frozen(name: str, folder, seed: int = 0) -> DetectorCard:
    """The same with seeded weights of backbone and head in the published format."""
    return seeded_card(small_frozen(load_card(name)), folder, seed)
