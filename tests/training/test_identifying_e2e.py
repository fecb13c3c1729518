"""Eight simulated generators, two held out: what an identifier makes of them; and the same training
on Ray, interrupted and resumed.
"""

import json

import pytest

from ray_app.storage import Store
from ray_app.training.run import train
from tests.simulation.makers import MAKERS, build_made_set
from tests.training.conftest import facts_of
from tests.training.makers import HELD_OUT, config, trained_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

FIT = {"c": 100.0, "abstains": 0.2, "fewest": 5}
ASKED = 0.1


def test_eight_generators_two_held_out(tmp_path):
    """Chance is 17 % of six classes. The printed figures are those that docs/profile.md quotes."""
    assert len(MAKERS) == 8
    labels = build_made_set(tmp_path / "set", prompts=150)
    facts = trained_here(config(labels, tmp_path / "out", identify={"abstains": ASKED}))
    figures = facts["test"]["figures"]
    for name, row in figures.items():
        print(f"{name:20} {row['value']}  {row['low']} to {row['high']}")
    print(
        f"abstention asked for {ASKED:.3f}, threshold from {facts['open_set']['n']} images, c {facts['c']:g}, T {facts['temperature']:.2f}"
    )
    assert figures["accuracy"]["low"] > 0.6
    assert figures["macro_f1"]["low"] > 0.6
    assert figures["open_set_auroc"]["low"] > 0.6, (
        "they are told from what is known better than by chance"
    )
    assert figures["unknown_abstained"]["value"] > 2 * figures["abstained"]["value"]
    low, high = figures["abstained"]["low"], figures["abstained"]["high"]
    assert low <= ASKED + 0.05, "the threshold has an error of its own, of validation images"
    assert high >= ASKED - 0.05
    assert {row["name"] for row in facts["test"]["unknown"]} == set(HELD_OUT)


@pytest.mark.ray
def test_on_ray_it_is_the_same_and_goes_on_where_it_stopped(tmp_path, ray_cluster):
    labels = build_made_set(tmp_path / "set", prompts=24, side=64)
    # what `auto` means is decided before, by `touchstone train`
    loop = {"batch": 32, "epochs": 1, "precision": "fp32"}
    here = trained_here(config(labels, tmp_path / "here", identify=FIT, loop=loop))
    out = tmp_path / "out"
    given = config(labels, out, identify=FIT, loop=loop, workers={"count": 2, "cpus": 0.5})
    facts = train(given).facts
    apart = ("seconds", "out", "environment")
    assert {key: value for key, value in facts.items() if key not in apart} == {
        key: value for key, value in here.items() if key not in apart
    }
    assert facts == facts_of(out)
    assert facts["environment"]["workers"] == 2

    lost, *there = sorted((out / "features").rglob("*.npz"))
    times = {path: path.stat().st_mtime_ns for path in there}
    lost.unlink()
    Store.open(str(out)).delete("metrics.json")
    again = train(given)
    assert not again.was_there
    assert {path: path.stat().st_mtime_ns for path in there} == times
    assert again.facts["test"] == facts["test"]
    assert train(given).was_there
    assert (
        json.loads((out / "train.json").read_text())["identity"]["recipe"]["method"] == "identify"
    )
