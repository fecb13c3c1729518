"""Every shipped card with a network that is quick to build: as it is, or with small widths; under the keys of the published sizes."""

from ray_app.detectors import list_cards, variants_of
from tests.detectors.small_frozen import BACKBONES, small_frozen
from tests.scoring.eight import TOWER, small_cards

# Another engine's network has no parameters of ours.
CARDS = {card.name: card for base in list_cards() for card in (base, *variants_of(base)) if not card.name.endswith(":vllm")}
NARROW = {
    "cnndetection": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "iml-vit": {"width": 24, "heads": 12, "pyramid_width": 8, "head_width": 8},
    "ladeda9": {"layers": [1, 1, 1, 1], "width": 8},
    "siglip2-open-deepfake": {
        "vision_config": {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    },
    "trufor": {"widths": [8, 8, 8, 8], "heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1], "decoder_width": 8},
}
NARROW_BACKBONES = {"clip-linear": TOWER, "aeroblade": {"widths": [8, 8, 8, 8], "layers": 1, "groups": 4}}


def small(name):
    """The card with a network that is quick to write: as it is, or with small widths."""
    card, eight = CARDS[name], {card.name: card for card in small_cards()}
    if name in eight:
        return eight[name]
    if name in BACKBONES:
        return small_frozen(card)
    if card.family in NARROW_BACKBONES:
        tower = card.backbone.architecture
        narrow = tower.model_copy(update={"arguments": {**tower.arguments, **NARROW_BACKBONES[card.family]}})
        return card.model_copy(update={"backbone": card.backbone.model_copy(update={"architecture": narrow})})
    if name not in NARROW:
        return card
    return card.model_copy(update={"architecture": card.architecture.model_copy(update={"arguments": NARROW[name]})})
