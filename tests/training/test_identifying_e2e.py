"""An identifier of eight simulated generators, and the same training on Ray, interrupted."""

import json

import pytest

from ray_app.storage import Store
from ray_app.training.run import train
from tests.simulation.makers import MAKERS, build_made_set
from tests.training.makers import HELD_OUT, config, trained_here
from tests.training.trainings import facts_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

FIT = {"c": 100.0, "abstains": 0.2, "fewest": 5}
ASKED = 0.1


def test_identifier_abstains_on_two_held_out_generators(tmp_path):
    """Chance is 17 % of six classes. docs/profile.md quotes the printed metrics."""
    assert len(MAKERS) == 8
    labels = build_made_set(tmp_path / "set", prompts=150)
    facts = trained_here(config(labels, tmp_path / "out", identify={"abstains": ASKED}))
    figures = facts["test"]["figures"]
    for name, row in figures.items():
        print(f"{name:20} {row['value']}  {row['low']} to {row['high']}")
    print(f"abstention {ASKED:.3f}, threshold from {facts['open_set']['n']} images")
    print(f"c {facts['c']:g}, temperature {facts['temperature']:.2f}")
    for name in ("accuracy", "macro_f1", "open_set_auroc"):
        assert figures[name]["low"] > 0.6, name
    assert figures["unknown_abstained"]["value"] > 2 * figures["abstained"]["value"]
    # The threshold has an error of its own, from the validation images.
    assert figures["abstained"]["low"] <= ASKED + 0.05
    assert figures["abstained"]["high"] >= ASKED - 0.05
    assert {row["name"] for row in facts["test"]["unknown"]} == set(HELD_OUT)


@pytest.mark.ray
def test_identifier_on_ray_is_the_same_and_resumes(tmp_path, ray_cluster):
    labels = build_made_set(tmp_path / "set", prompts=24, side=64)
    # `touchstone train` decides earlier what `auto` means.
    settings = {"identify": FIT, "loop": {"batch": 32, "epochs": 1, "precision": "fp32"}}
    here = trained_here(config(labels, tmp_path / "here", **settings))
    out = tmp_path / "out"
    given = config(labels, out, workers={"count": 2, "cpus": 0.5}, **settings)
    facts = train(given).facts
    assert facts == facts_of(out)
    assert facts["environment"]["workers"] == 2
    changed = {"seconds", "out", "environment"}
    assert facts.keys() - changed == here.keys() - changed
    for key in facts.keys() - changed:
        assert facts[key] == here[key], key

    lost, *kept = sorted((out / "features").rglob("*.npz"))
    times = {path: path.stat().st_mtime_ns for path in kept}
    lost.unlink()
    Store.open(str(out)).delete("metrics.json")
    again = train(given)
    assert not again.was_complete
    assert {path: path.stat().st_mtime_ns for path in kept} == times
    assert again.facts["test"] == facts["test"]
    assert train(given).was_complete
    recipe = json.loads((out / "train.json").read_text())["identity"]["recipe"]
    assert recipe["method"] == "identify"
