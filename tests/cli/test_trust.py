import csv
import json

import numpy as np
import pytest
from PIL import Image

from ray_app.cli.main import main
from tests.evaluation.compare.compared import TINY, log_odds, make_run, names_of

N = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    photos, names = tmp_path_factory.mktemp("photos"), names_of(N)
    rng = np.random.default_rng(0)
    for name in names[1:]:
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(photos / name)
    return make_run(tmp_path_factory.mktemp("run"), names, {TINY: log_odds(0, N)}, list_in=photos)


def test_draw_label_and_read_back(run, tmp_path, capsys):
    out = tmp_path / "audit"
    assert main(["runs", "audit", run, "--draw", str(N), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"drawn: {N} of {N} images" in said
    assert f"touchstone runs audit {run} --labels {out / 'sample.csv'} --out {out}" in said
    page = (out / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64") == N - 1
    assert page.count("It cannot be read any more.") == 1
    with open(out / "sample.csv", newline="") as file:
        rows = [
            row | {"label": "fake" if int(row["image_id"]) % 3 == 0 else "real"}
            for row in csv.DictReader(file)
        ]
    with open(out / "sample.csv", "w", newline="") as file:
        written = csv.DictWriter(file, list(rows[0]))
        written.writeheader()
        written.writerows(rows)
    command = ["runs", "audit", run, "--labels", str(out / "sample.csv"), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    share = sum(row["label"] == "fake" for row in rows) / N
    assert document["figures"]["prevalence"]["value"] == pytest.approx(share)
    assert document["figures"]["prevalence"]["low"] == pytest.approx(share), (
        "every image was labelled"
    )
    assert main(command) == 0
    assert "prevalence: the share of fakes" in capsys.readouterr().out


def test_a_handful_of_flagged_images_is_drawn(run, tmp_path, capsys):
    assert (
        main(
            [
                "runs",
                "audit",
                run,
                "--draw",
                "10",
                "--flagged",
                "--no-thumbnails",
                "--out",
                str(tmp_path / "tail"),
            ]
        )
        == 0
    )
    assert "images flagged as fake, from 1 stratum" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--out", "OUT"], ""),
        (["RUN", "--draw", "60", "--labels", "x.csv", "--out", "OUT"], ""),
        (["RUN", "--draw", "60", "--out", "s3://bucket/x"], ""),
        (["OUT", "--draw", "60", "--out", "OUT/out"], "it has no run.json"),
        (["RUN", "--labels", "x.csv", "--out", "OUT"], "no audit.json"),
    ],
)
def test_what_cannot_be_is_refused(run, words, said, tmp_path, capsys):
    assert (
        main(
            [
                "runs",
                "audit",
                *(word.replace("RUN", run).replace("OUT", str(tmp_path)) for word in words),
            ]
        )
        == 2
    )
    assert said in capsys.readouterr().err
