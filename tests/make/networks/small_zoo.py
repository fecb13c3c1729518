"""Every shipped card with a network that is quick to build: as it is, or with small widths; under
the keys of the published sizes.
"""

from ray_app.detectors import list_cards, list_variants
from tests.make.cards import TOWER, small_cards
from tests.make.networks.fill import with_arguments, with_tower
from tests.make.networks.small_frozen import BACKBONES, small_frozen

# Another engine's network has no parameters of ours.
CARDS = {card.name: card for base in list_cards() for card in (base, *list_variants(base))}
# ResNets, ConvNeXts, ViTs, and CLIP's image towers.
_RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
_VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}
_CLIP = {"quick_gelu": True, **TOWER}
_BARE_CLIP = {**_CLIP, "embed_dim": None}
_TEXT = {"width": 24, "layers": 1, "heads": 2, "embed_dim": 24}
_SIGLIP = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
NARROW = {
    "aide": {**_RESNET, **_CONVNEXT},
    "aligned-forensics": _RESNET,
    "b-free": {"img_size": 504, **_VIT},
    "c2p-clip": {"feature": "projected", "normalise": True, "tower": _CLIP},
    "cnndetection": _RESNET,
    "corvi2023": _RESNET,
    "dda": {"img_size": 336, "alpha": 1, **_VIT},
    "drct-convnext-b": {"width": 32, **_CONVNEXT},
    "effort": {"feature": "class-token", "normalise": False, "tower": _BARE_CLIP},
    "fatformer": {
        "adapters": 1,
        "tower": {"quick_gelu": True, **_TEXT, "width": 128},
        "text": _TEXT,
    },
    "gapl": {"tower": _BARE_CLIP, "prototypes": 4, "width": 16, "heads": 2, "alpha": 32},
    "iml-vit": {"width": 24, "heads": 2, "pyramid_width": 8, "head_width": 8},
    "ladeda9": {"layers": [1, 1, 1, 1], "width": 8},
    "siglip2-open-deepfake": {"vision_config": {**_SIGLIP, "intermediate_size": 32}},
    "trufor": {
        "widths": [8, 8, 8, 8],
        "heads": [1, 1, 1, 1],
        "depths": [1, 1, 1, 1],
        "decoder_width": 8,
    },
}
NARROW_BACKBONES = {
    "clip-linear": TOWER,
    "rine": TOWER,
    "aeroblade": {"widths": [8, 8, 8, 8], "layers": 1, "groups": 4},
}


def small(name):
    """The card with a network that is quick to write: as it is, or with small widths."""
    card, eight = CARDS[name], {card.name: card for card in small_cards()}
    if name in eight:
        return eight[name]
    if name in BACKBONES:
        return small_frozen(card)
    if card.family in NARROW_BACKBONES:
        return with_tower(card, **NARROW_BACKBONES[card.family])
    base = name.partition(":")[0]
    return with_arguments(card, NARROW[base]) if base in NARROW else card
