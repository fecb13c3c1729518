"""The same promises through `touchstone detectors calibrate` and `decide`, as a person keeps them."""

import csv
import hashlib

import numpy as np
import pytest

from ray_app.cli.main import main
from ray_app.ensembles import load_ensemble_card
from ray_app.runs import RunDirectory
from tests.evaluation.compare.compared import RUN_SETTINGS, TINY, make_run, names_of
from tests.statistics.labelled import clustered, dominated, images_of, independent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ARCHIVES = 40

SETTINGS = {
    "2,000 independent reals": (independent, ()),
    "one source of 40 %, lower by 0.5 sd": (lambda rng: dominated(rng, [(0.4, -0.5)]), ()),
    "one source of 50 %, lower by 1.5 sd": (
        lambda rng: dominated(rng, [(0.5, -1.5)]),
        ("--share-sources",),
    ),
    "60 equal sources, correlation 0.3": (clustered, ()),
}


def run_of(folder, scores):
    """A finished run of files with these scores."""
    columns = {TINY: scores.astype(np.float32)}
    return make_run(folder, names_of(len(scores)), columns, settings=RUN_SETTINGS)


def labels_of(path, images):
    """Labels of such files by their hashes."""
    hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names_of(len(images))]
    classes = ["fake" if fake else "real" for fake in images.fake]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sha256", "label", "generator", "source"])
        writer.writerows(zip(hashes, classes, images.generator, images.source, strict=True))
    return str(path)


def kept(folder, rng, draw, options):
    """A calibration and an archive of 3,000 images, 10 % of them fake, through the commands: None
    where the first refuses.

    Else the true rate, and whether the archive was called unlike.
    """
    reals = draw(rng)
    images = images_of(rng, reals)
    url, card = run_of(folder / "labelled", images.scores["a"]), str(folder / "mine.yaml")
    files = ["--labels", labels_of(folder / "labels.csv", images), "--out", card]
    if main(["detectors", "calibrate", url, *files, *options]) != 0:
        return None
    makers = np.array(images.generator[2_000:])
    means = [images.scores["a"][2_000:][makers == maker].mean() for maker in np.unique(makers)]
    fakes = rng.choice(means, 300) + rng.standard_normal(300)
    archive = run_of(folder / "archive", np.concatenate([reals.more(rng, 2_700), fakes]))
    decided = f"{archive}-decided"
    assert main(["runs", "decide", archive, "--ensemble", card, "--out", decided]) == 0
    found = load_ensemble_card(card)
    low, high = found.calibration(found.members[0].calibration(np.array([0.0, 1.0])))
    summary = RunDirectory.open(decided).read_json("summary.json")["guarantee"]
    rate = reals.share_above((found.thresholds.fake_above - low) / (high - low))
    return rate, summary["holds"] is not True


@pytest.mark.parametrize("setting", SETTINGS)
def test_through_the_commands(setting, simulated, tmp_path):
    draw, options = SETTINGS[setting]
    found = [
        kept(tmp_path / str(seed), np.random.default_rng(seed), draw, options)
        for seed in range(ARCHIVES)
    ]
    made = [one for one in found if one is not None]
    said = [one is not None for one in found]
    assert made
    wrong = [one is not None and one[0] > 0.01 for one in found]
    setting = f"through the commands: {setting}"
    simulated("1. more than 1 % of further reals are called fake", setting, 0.05, wrong, said)
    unlike = "2. an archive of the labelled sources and generators is called unlike"
    simulated(unlike, setting, 0.05, [one[1] for one in made])
