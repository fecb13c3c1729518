"""A detector of one's own: a recipe, a head and a card, each verified; scored with, and calibrated
so that its false alarms are bounded.
"""

import csv
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.photographs import write_photographs
from tests.simulation.archive import DECODERS, repaint

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

TUTORIAL, DETECTORS, TRUST = (
    "docs/tutorials/your-own-detector.md",
    "docs/detectors.md",
    "docs/trust.md",
)
# a bound of 1 % takes 299 independent photographs in the part that chooses the threshold
REALS, FAKES = 700, 120


def labelled(folder):
    """Photographs, and some of them repainted by three decoders; `labels.csv` beside them."""
    rows = [(path.name, "real", "") for path in write_photographs(folder, REALS, size=(256, 256))]
    for number, (name, _, _) in enumerate(rows[:FAKES]):
        decoder, painted = sorted(DECODERS)[number % 3], f"painted-{number}.png"
        with Image.open(folder / name) as photograph:
            Image.fromarray(
                repaint(decoder, np.array(photograph), np.random.default_rng(number))
            ).save(folder / painted)
        rows.append((painted, "fake", decoder))
    with (folder.parent / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows(
            [
                ("uri", "label", "generator"),
                *((f"{folder.name}/{name}", *rest) for name, *rest in rows),
            ]
        )


def test_a_recipe_a_head_and_a_card_become_detectors_with_a_bounded_rate(with_sample):
    engineer = with_sample
    recipe = engineer.types(
        engineer.asks("touchstone recipes show --help"), "touchstone recipes show quick"
    ).stdout
    assert "name: quick" in recipe
    (engineer.folder / "my-network.yaml").write_text(
        recipe.replace("name: quick", "name: my-network")
    )
    planned = engineer.types(
        TUTORIAL, "touchstone train my-network.yaml --out my-network --dry-run"
    )
    assert "40 images: 24 real, 16 fake" in planned.stdout, planned.stdout
    engineer.types(TUTORIAL, "touchstone train my-network.yaml --out my-network")
    assert (
        json.loads((engineer.folder / "my-network" / "metrics.json").read_text())["test"]["auc"]
        > 0.5
    )

    fitted = engineer.types(
        TUTORIAL, "touchstone detectors fit touchstone-photo", {"train.csv": "archive-labels.csv"}
    )
    assert "fitted to 46 real and 37 fake images" in fitted.stdout, fitted.stdout

    card = yaml.safe_load(
        engineer.types(
            DETECTORS, "touchstone detectors show NAME", {"NAME": "touchstone-tiny"}
        ).stdout
    )
    (engineer.folder / "own.yaml").write_text(yaml.safe_dump(card | {"name": "own"}))
    mine = ("my-network/card.yaml", "my-head/card.yaml", "own.yaml")
    verified = engineer.types(
        DETECTORS, "touchstone detectors verify", {"touchstone-tiny": " ".join(mine)}
    )
    assert re.findall(r"^(\S+) +loads +ok", verified.stdout, re.MULTILINE) == [
        "my-network",
        "my-head",
        "own",
    ]

    labelled(engineer.folder / "photos")
    scored = engineer.types(
        DETECTORS,
        "touchstone score photos --detector my-head/card.yaml",
        {"my-head": "my-network", "run-of-my-head": "run"},
    )
    assert (
        f"{REALS + FAKES:,} files:" in scored.stdout or f"{REALS + FAKES} files:" in scored.stdout
    )
    engineer.types(TRUST, "touchstone detectors calibrate run --labels labels.csv --out mine.yaml")
    promise = yaml.safe_load((engineer.folder / "mine.yaml").read_text())["guarantee"]
    assert promise["n_real"] > 298
    assert promise["upper_bound"] <= promise["target_fpr"] == 0.01
    engineer.types(TRUST, "touchstone score archive/ --ensemble mine.yaml --out archive-run")
    summary = json.loads((engineer.folder / "archive-run" / "summary.json").read_text())
    assert (summary["members"], summary["verdicts"]["abstain"], summary["guarantee"]["holds"]) == (
        86,
        83,
        False,
    )  # larger pictures: not promised
    listed = engineer.types(TRUST, "touchstone results archive-run --verdict fake")
    assert "does not hold for this archive: images differ in" in listed.stdout + listed.stderr
