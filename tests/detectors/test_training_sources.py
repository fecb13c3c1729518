"""Cards name the sources of real images that their weights learned from, as the list of photographs
divides them.
"""

import csv

import pytest

from ray_app.config import config_root
from ray_app.detectors import load_card


@pytest.mark.parametrize("card", ["touchstone-photo", "touchstone-photo-detail"])
def test_card_names_every_source_of_training_and_validation(card):
    wanted = sources("sources", "train") | sources("sources", "validation")
    assert set(load_card(card).training_data.sources) == wanted
    assert len(wanted) == 620


@pytest.mark.parametrize("card", ["touchstone-photo-permissive", "touchstone-crop-permissive"])
def test_permissive_card_names_its_sources(card):
    # The list ended there then.
    wanted = sources("sources-permissive", "train") | sources(
        "sources", "validation", last="xzxy_gpt2"
    )
    assert set(load_card(card).training_data.sources) == wanted
    assert len(wanted) == 28


def sources(name, split, last=None):
    with (config_root() / "photos" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    end = len(rows) if last is None else 1 + [row["source"] for row in rows].index(last)
    return {row["source"] for row in rows[:end] if row["split"] == split}
