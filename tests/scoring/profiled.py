"""A profile with seeded weights: two heads on one CLIP tower, a localizer, an identifier and
describers, all small, as cards on disk.
"""

import numpy as np
import yaml

from benchmarks.seeded import seeded_card, write_card
from ray_app.detectors import load_card
from ray_app.detectors.linear_head import embedding_facts
from ray_app.identification.cards import load_describer
from tests.make.cards import small_cards
from tests.make.networks.tiny_speakers import card_of
from tests.make.profiles import make_identifier, make_retrieval

CLASSES = ("sd-1.5", "sdxl", "midjourney-6", "flux.1-dev")
PROMPTS = (
    "a red fox in the snow",
    "an old harbour at dawn",
    "a bowl of plums",
    "two chairs by a window",
)
BACKBONE = "openai-clip-vit-l14"


def write_profile(
    folder, describer="retrieval", *, describe="flagged", localizer=True, fake_above=0.0, **changes
):
    """FOLDER/profile.yaml: an ensemble with a profile; `changes` are of the describer's card."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {card.name: card for card in small_cards()}
    unifd = seeded_card(small["unifd"], folder / "weights", seed=1)
    other = seeded_card(small["own-head"], folder / "own", seed=2).model_copy(
        update={"backbone": unifd.backbone}
    )
    cards = [unifd, other]
    if localizer:
        cards.append(seeded_card(small["maskclip"], folder / "weights", seed=3))
    paths = [write_card(card, folder / f"{card.name}.yaml") for card in cards]
    facts = embedding_facts(load_card(paths[0]), precision="fp32", resize="exact")
    rng, width = np.random.default_rng(0), facts["width"]
    weight = rng.normal(size=(len(CLASSES), width))
    make_identifier(folder / "identifier", CLASSES, weight, "unifd", facts)
    if describer == "retrieval":
        vectors = rng.normal(size=(len(PROMPTS), width))
        make_retrieval(folder / "words", vectors, PROMPTS, "unifd", facts, **changes)
    else:
        (folder / "words").mkdir(exist_ok=True)
        card_of(folder / "words", "git", beams=1, **changes)
    assert load_describer(folder / "words" / "describer.yaml").tier == describer
    told = {
        "name": "profile", "title": "Seeded", "members": [{"detector": path.name} for path in paths],
        "thresholds": {"real_below": fake_above, "fake_above": fake_above},
        "profile": {"identifier": "identifier/identifier.yaml", "describer": "words/describer.yaml", "describe": describe},
    }  # fmt: skip
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(told))
    return path
