"""A card that `touchstone detectors calibrate` wrote gives the same chances in a run, by `decide`, in the endpoint and in Python."""

import asyncio
import csv
import shutil

import numpy as np
import pytest
import yaml
from scipy.special import expit

import ray_app
from ray_app.cli.main import main
from ray_app.config import config_root
from ray_app.datasets.simulation.archive import build_labelled_set
from ray_app.ensembles import decide, is_audited, load_ensemble_card
from ray_app.runs import RunDirectory, current_rows
from ray_app.serving import ServeConfig
from tests.scoring.conftest import score_here
from tests.serving.in_process import local_scorer

PAIRS = 60
ASKED = ["--fpr", "0.1", "--confidence", "0.8", "--share-generators"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Simulated pictures, real and fake, and their labels by place."""
    folder = tmp_path_factory.mktemp("pictures") / "set"
    sides = {"picture_px": {"test": 128}, "file_px": {"test": 112}}
    build_labelled_set(folder, pairs={"test": PAIRS}, autoencoder_steps=20, processes=1, **sides)
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "truth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uri", "label", "generator", "source"])
        writer.writeheader()
        writer.writerows({"uri": row["path"], "label": row["label"], "generator": row["generator"], "source": row["group"]} for row in rows)
    return folder


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """The shipped detector, and the same network looking at a smaller part of the picture."""
    folder = tmp_path_factory.mktemp("cards")
    told = yaml.safe_load((config_root() / "detectors" / "touchstone-tiny.yaml").read_text())
    told["weights"]["uri"] = str(config_root() / "detectors" / told["weights"]["uri"])
    told["preprocessing"]["center_crop"] = 96
    (folder / "tiny-middle.yaml").write_text(yaml.safe_dump(told | {"name": "tiny-middle"}))
    return ("touchstone-tiny", str(folder / "tiny-middle.yaml"))


@pytest.fixture(scope="module")
def labelled_run(pictures, detectors, tmp_path_factory):
    """A run of both detectors over the pictures, and its rows by place."""
    out = tmp_path_factory.mktemp("labelled") / "run"
    return out, score_here(out, pictures / "test", detectors=detectors)[1]


def calibrated(labelled_run, pictures, path, *options):
    """The card that the command writes."""
    arguments = ["calibrate", str(labelled_run[0]), "--labels", str(pictures / "truth.csv"), "--out", str(path), *ASKED, *options]
    assert main(arguments) == 0
    return load_ensemble_card(path)


def raw_scores(rows):
    return {name: np.array([row["scores"][name] for row in rows], np.float32) for name in ("touchstone-tiny", "tiny-middle")}


def answers(path, rows):
    """Chances and verdicts of a served ensemble and of the Python object, for the files of rows."""
    files = [open(row["uri"], "rb").read() for row in rows]  # noqa: SIM115
    scorer = local_scorer(ServeConfig(ensembles=(str(path),)))

    async def ask():
        return [await scorer.score(file) for file in files]

    return asyncio.run(ask()), list(ray_app.load_ensemble(path).score(files))


def test_the_card_gives_its_chances_wherever_it_is_used(labelled_run, pictures, tmp_path, capsys):
    run, rows = labelled_run
    path = tmp_path / "mine.yaml"
    card = calibrated(labelled_run, pictures, path)
    assert f"card: {path}" in capsys.readouterr().out
    rows = list(rows.values())
    raw = raw_scores(rows)
    by_hand = np.stack([member.calibration.slope * column.astype(float) + member.calibration.intercept
                        for member, column in zip(card.members, raw.values(), strict=True)], axis=1)  # fmt: skip
    stacked = ((by_hand - card.stacking.mean) / card.stacking.scale) @ card.stacking.coefficients + card.stacking.intercept
    expected = expit(card.calibration.slope * stacked + card.calibration.intercept)
    assert np.ptp(expected) > 0.5

    again = shutil.copytree(run, tmp_path / "again")
    assert main(["runs", "decide", str(again), "--ensemble", str(path)]) == 0
    decided = {row["uri"]: row for row in current_rows(RunDirectory.open(str(again)))}
    assert [decided[row["uri"]]["probability"] for row in rows] == pytest.approx(expected, abs=1e-12)
    assert all(row["calibrated"] for row in decided.values())

    _, scored = score_here(tmp_path / "scored", pictures / "test", ensemble=str(path))
    assert [scored[row["uri"]]["probability"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert {uri: row["verdict"] for uri, row in scored.items()} == {uri: row["verdict"] for uri, row in decided.items()}

    served, in_python = answers(path, rows[:8])
    for given in (served, in_python):
        assert [one.probability for one in given] == pytest.approx(expected[:8], abs=1e-5)
        assert [one.verdict for one in given] == [scored[row["uri"]]["verdict"] for row in rows[:8]]
        assert all(one.calibrated for one in given)


def test_a_calibrated_cascade_decides_as_if_everybody_had_looked(labelled_run, pictures, tmp_path):
    _, rows = labelled_run
    path = tmp_path / "cascade.yaml"
    card = calibrated(labelled_run, pictures, path, "--rule", "cascade", "--first", "1", "--share", "0.6", "--audit", "0.1")
    rows = list(rows.values())
    raw = raw_scores(rows)
    members = dict(zip(raw, (member.calibration for member in card.members), strict=True))
    expected = decide(card, raw, calibrations=members, audited=[is_audited(card, row["sha256"]) for row in rows])
    assert {"band", None} <= set(expected.second_look)

    _, scored = score_here(tmp_path / "scored", pictures / "test", ensemble=str(path))
    found = [scored[row["uri"]] for row in rows]
    assert [row["second_look"] for row in found] == expected.second_look
    assert [row["probability"] for row in found] == pytest.approx(expected.probability.tolist(), abs=1e-5)
    assert [row["scores"]["tiny-middle"] is None for row in found] == [look is None for look in expected.second_look]
    served, in_python = answers(path, rows[:8])
    for given in (served, in_python):
        assert [one.probability for one in given] == pytest.approx(expected.probability[:8].tolist(), abs=1e-5)
        assert [one.second_look for one in given] == expected.second_look[:8]
