"""A card that `touchstone detectors calibrate` wrote gives the same chances in a run, by `decide`,
in the endpoint and in Python.

Where an archive is unlike what it was calibrated on, its verdicts are taken back.
"""

import csv
from contextlib import closing

import numpy as np
import pytest
from scipy.special import expit

import ray_app
from ray_app.cli.main import main
from ray_app.detectors import load_card
from ray_app.ensembles import load_ensemble_card
from ray_app.reports import plan_lines
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.serving import ServeConfig
from ray_app.serving.engine import Engine
from tests.make.cards import write_tiny
from tests.make.runs import score_here
from tests.make.stages import plan_here
from tests.scoring.shifted import encoded, pictures
from tests.serving.in_process import answers_of

IMAGES = 80
ASKED = ["--fpr", "0.1", "--confidence", "0.8", "--share-generators"]


def write_labelled(folder):
    """Pictures, half of them repainted, and their labels beside them."""
    (folder / "test").mkdir(parents=True)
    with (folder / "truth.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "label", "generator", "source"])
        for number, (pixels, fake) in enumerate(pictures(1, IMAGES)):
            (folder / f"test/{number:03}.jpg").write_bytes(encoded(pixels, number))
            label, generator = ("fake", "painter") if fake else ("real", "")
            writer.writerow([f"test/{number:03}.jpg", label, generator, f"source-{number}"])
    return folder


def write_detectors(folder):
    """The shipped detector, and the same network looking at a smaller part of the picture."""
    shipped = load_card("touchstone-tiny").preprocessing.model_dump(mode="json", exclude_none=True)
    preprocessing = shipped | {"center_crop": 96}
    path = folder / "tiny-middle.yaml"
    card = write_tiny(path, name="tiny-middle", preprocessing=preprocessing)
    return ("touchstone-tiny", str(card))


def answers(path, rows):
    """Chances and verdicts of a served ensemble and of the Python object, for the files of rows."""
    files = [open(row["uri"], "rb").read() for row in rows]  # noqa: SIM115
    with closing(Engine(ServeConfig(ensembles=(str(path),)))) as engine:
        return answers_of(engine, files), list(ray_app.load_ensemble(path).score(files))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """Labelled pictures, a run over them and its rows, and the card that was calibrated on it."""
    folder = tmp_path_factory.mktemp("calibrated")
    labelled, run, path = write_labelled(folder / "labelled"), folder / "run", folder / "mine.yaml"
    _, rows = score_here(run, labelled / "test", detectors=write_detectors(folder))
    truth = str(labelled / "truth.csv")
    assert main(["calibrate", str(run), "--labels", truth, "--out", str(path), *ASKED]) == 0
    return labelled, run, list(rows.values()), path


def test_card_gives_the_same_probabilities_everywhere(calibrated, tmp_path):
    labelled, run, rows, path = calibrated
    card = load_ensemble_card(path)
    columns = []
    for name, member in zip(("touchstone-tiny", "tiny-middle"), card.members, strict=True):
        raw = np.array([row["scores"][name] for row in rows], np.float32).astype(float)
        columns.append(member.calibration.slope * raw + member.calibration.intercept)
    stacking = card.stacking
    standard = (np.stack(columns, axis=1) - stacking.mean) / stacking.scale
    stacked = standard @ stacking.coefficients + stacking.intercept
    expected = expit(card.calibration.slope * stacked + card.calibration.intercept)
    assert np.ptp(expected) > 0.5

    again = tmp_path / "again"
    decide = ["runs", "decide", str(run), "--ensemble", str(path), "--out", str(again)]
    assert main(decide) == 0
    decided = {row["uri"]: row for row in current_rows(RunDirectory.open(str(again)))}
    found = [decided[row["uri"]]["probability"] for row in rows]
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(row["calibrated"] for row in decided.values())

    _, scored = score_here(tmp_path / "scored", labelled / "test", ensemble=str(path))
    assert [scored[row["uri"]]["probability"] for row in rows] == pytest.approx(expected, abs=1e-5)
    for uri, row in scored.items():
        assert row["verdict"] == decided[uri]["verdict"]

    served, in_python = answers(path, rows[:8])
    for given in (served, in_python):
        assert [one.probability for one in given] == pytest.approx(expected[:8], abs=1e-5)
        assert [one.verdict for one in given] == [scored[row["uri"]]["verdict"] for row in rows[:8]]
        assert all(one.calibrated for one in given)


def test_unlike_archive_abstains_unless_waived(calibrated, tmp_path, capsys):
    path, archive = str(calibrated[-1]), tmp_path / "photos"
    archive.mkdir()
    for number, (pixels, _) in enumerate(pictures(1, IMAGES)):
        (archive / f"{number:03}.jpg").write_bytes(encoded(pixels, number, qualities=(30, 40)))
    finished, rows = score_here(tmp_path / "run", archive, ensemble=path)
    guarantee = finished.summary["guarantee"]
    assert (guarantee["holds"], guarantee["images"]) == (False, IMAGES)
    assert "jpeg_quality" in guarantee["unlike"]
    assert finished.summary["verdicts"] == {"real": 0, "fake": 0, "abstain": IMAGES}
    assert "unlike_archive" in {row["verdict_reason"] for row in rows.values()}
    assert main(["results", str(tmp_path / "run"), "--limit", "3"]) == 0
    assert "guarantee: does not hold for this archive" in capsys.readouterr().err

    calibrated_with = load_ensemble_card(path).settings.resize
    other = "exact" if calibrated_with == "fast" else "fast"
    waived, verdicts = score_here(
        tmp_path / "waived", archive, ensemble=path, waive_guarantee=True, resize=other
    )
    assert {"real", "fake"} & {row["verdict"] for row in verdicts.values()}
    departure = f"resize {other} (calibrated with {calibrated_with})"
    assert departure in waived.summary["guarantee"]["settings"]

    config = ScoreConfig(source=(str(archive),), ensemble=path)
    planned = plan_here(config, probe=IMAGES)
    assert "jpeg_quality" in planned.unlike
    assert "all verdicts abstain" in plan_lines(planned)[0]
    loose = config.model_copy(update={"resize": other, "waive_guarantee": True})
    for one, said in ((config, "at most 10 % are called fake"), (loose, f"resize {other}")):
        assert said in "\n".join(plan_lines(plan_here(one, probe=0)))
