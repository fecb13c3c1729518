"""Two detectors on labelled pictures: figures, what changed between the two runs, and the table of
a paper.
"""

import json
import re
import shutil

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

PAGE = "docs/evaluation.md"


def test_two_detectors_are_measured_compared_and_set_beside_a_paper(with_sample, truth):
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
