"""Two detectors on labelled images: metrics, what changed between the two runs, and the table of a
paper. One detector is calibrated, evaluated on the held-out part, and reported at an operating point.
"""

import json
import re
import shutil

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

PAGE = "docs/evaluation.md"
CALIBRATION = "docs/calibration.md"


def test_two_detectors_are_measured_and_compared(with_sample, truth):
    at_work, auc = with_sample, {}
    for detector in ("touchstone-tiny", "touchstone-photo"):
        names = {
            "test.csv --labels test.csv": "archive --labels archive-labels.csv",
            "figures": detector,
        }
        members = {"my-head/card.yaml --detector my-network/card.yaml": detector}
        at_work.types(
            "docs/tutorials/your-own-detector.md",
            "touchstone evaluate --labels --detector --out",
            names | members,
        )
        content = json.loads((at_work.folder / detector / "metrics.json").read_text())
        [system] = content["meta"]["systems"]
        assert (system["n_real"], system["n_fake"], system["unscored"]) == (46, 37, 0)
        [auc[detector]] = [
            row["value"]
            for row in content["metrics"]
            if (row["view"], row["scope"], row["figure"]) == ("", "all", "auc")
        ]
    assert auc["touchstone-tiny"] > auc["touchstone-photo"]  # it was trained on pictures like these
    compared = at_work.types(
        PAGE,
        "touchstone compare RUN_A RUN_B",
        {"RUN_A": "touchstone-tiny/run", "RUN_B": "touchstone-photo/run"},
    ).stdout
    assert "images: 86 in both runs, 86 in A, 86 in B" in compared
    assert "different settings: precision" not in compared
    ranked = at_work.types(
        PAGE,
        "touchstone runs leaderboard figures-a figures-b",
        {"figures-a": "touchstone-photo", "figures-b": "touchstone-tiny"},
    ).stdout
    assert ranked.index(" touchstone-tiny ") < ranked.index(" touchstone-photo ")

    of_progan = 0
    for number, (path, (label, _)) in enumerate(sorted(truth.items())):
        generator = ("progan", "stylegan")[number % 2]
        of_progan += label == "fake" and generator == "progan"
        place = (
            at_work.folder
            / "CNN_synth_testset"
            / generator
            / ("1_fake" if label == "fake" else "0_real")
        )
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(at_work.folder / "archive" / path, place / path.replace("/", "-"))
    shown = at_work.types(
        at_work.asks("touchstone protocols show --help"),
        "touchstone protocols show",
        {"openfake-v1": "cnndetection"},
    )
    table = at_work.types(
        shown,
        "touchstone evaluate --protocol cnndetection",
        {"--detector cnndetection": "--detector touchstone-tiny"},
    )
    ours_beside_published = rf"^ProGAN, AP +{of_progan} +\d\.\d{{3}} +1\.000$"
    assert re.search(ours_beside_published, table.stdout, re.MULTILINE), table.stdout
    assert re.search(r"^BigGAN, AP +– +– a +0\.882$", table.stdout, re.MULTILINE)
    assert "verified: no" in table.stdout
    assert "ProGAN" in (at_work.folder / "cnndetection" / "report.html").read_text()


def test_detector_is_calibrated_and_reported_at_operating_point(with_sample):
    at_work = with_sample
    at_work.types(
        "README.md",
        "touchstone score --ensemble tiny --out run",
        {"demo-run/archive": "archive"},
    )
    calibrate = "touchstone detectors calibrate RUN --labels FILE --out CARD.yaml"
    names = {"RUN": "run", "FILE": "archive-labels.csv"}
    refused = at_work.types(CALIBRATION, calibrate, names, code=2)
    smallest = re.search(r"--fpr \S+", refused.stderr)[0]
    calibrated = at_work.types(
        CALIBRATION, calibrate, names | {"CARD.yaml": f"CARD.yaml {smallest}"}
    )
    assert "guaranteed" in calibrated.stdout
    at_work.types(calibrated, "touchstone runs decide --ensemble CARD.yaml --out")
    at_work.types(calibrated, "touchstone evaluate --labels CARD.held-out.csv --out CARD-figures")
    content = json.loads((at_work.folder / "CARD-figures" / "metrics.json").read_text())
    [part] = re.findall(r"^choose +(\d+) +(\d+)", calibrated.stdout, re.MULTILINE)
    [system] = content["meta"]["systems"]
    assert (system["n_real"], system["n_fake"]) == tuple(map(int, part))
    decided = at_work.types(
        CALIBRATION,
        "touchstone runs decide RUN --ensemble CARD.yaml --fpr 0.05 --out RUN-5",
        {"RUN": "run", "RUN-5": "run-5"},
    )
    measured = re.search(r"at most (\S+) % .*measured, not under the stated 5 %", decided.stdout)
    [line] = re.findall(r"^ +5 % .*measured$", calibrated.stdout, re.MULTILINE)
    assert f" {measured[1]} %" in line, "the bound is that of the table of the card"
    page = (at_work.folder / "run-5" / "report.html").read_text()
    assert "measured, not under the stated 5" in page
