"""`touchstone runs audit`."""

import csv

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.compare.compared import TINY, log_odds, make_run, names_of

N = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    photos, names = tmp_path_factory.mktemp("photos"), names_of(N)
    rng = np.random.default_rng(0)
    for name in names[1:]:
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(photos / name)
    return make_run(tmp_path_factory.mktemp("run"), names, {TINY: log_odds(0, N)}, list_in=photos)


def test_audit_draws_a_page_and_reads_labels_back(run, tmp_path, touchstone):
    out = tmp_path / "audit"
    ended = touchstone(f"runs audit {run} --draw {N} --out {out}")
    assert ended.code == 0
    assert f"drawn: {N} of {N} images" in ended.out
    command = f"runs audit {run} --labels {out / 'sample.csv'} --out {out}"
    assert f"touchstone {command}" in ended.out
    page = (out / "audit.html").read_text()
    assert page.count("data:image/jpeg;base64") == N - 1
    assert page.count("The file cannot be read any more.") == 1
    with open(out / "sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = "fake" if int(row["image_id"]) % 3 == 0 else "real"
    with open(out / "sample.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prevalence = touchstone(f"{command} --json").document["figures"]["prevalence"]
    expected = pytest.approx(sum(row["label"] == "fake" for row in rows) / N)
    assert prevalence["value"] == expected
    assert prevalence["low"] == expected, "every image was labelled"
    assert "prevalence: fraction of fakes" in touchstone(command).out


def test_audit_draws_flagged_images_alone(run, tmp_path, touchstone):
    line = f"runs audit {run} --draw 10 --flagged --no-thumbnails --out {tmp_path / 'tail'}"
    assert "images flagged as fake, from 1 stratum" in touchstone(line).out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{run} --out {out}", "--draw"),
        ("{run} --draw 60 --labels x.csv --out {out}", "--draw"),
        ("{run} --draw 60 --out s3://bucket/x", "s3://bucket/x"),
        ("{out} --draw 60 --out {out}/out", "it has no run.json"),
        ("{run} --labels x.csv --out {out}", "no audit.json"),
    ],
)
def test_audit_usage_error_exits_2(run, line, said, tmp_path, touchstone):
    ended = touchstone("runs audit " + line.format(run=run, out=tmp_path))
    assert ended.code == 2
    assert said in ended.err
