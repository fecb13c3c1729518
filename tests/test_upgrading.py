"""What UPGRADING.md tells somebody who comes from 0.8.0, tried: the lines of its README, its files, its run, its API."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ray_app.cli import main as command_line
from ray_app.cli.main import main
from ray_app.datasets.simulation.archive import build_sample_archive
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import ConfigError, ExitCode, Status
from ray_app.runs import RunDirectory, current_rows
from ray_app.serving import config
from tests.scoring.older import unpack
from tests.scoring.stages import without_ray

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "UPGRADING.md").read_text()
HTTP = ROOT / "tests" / "serving" / "http"

# Of the README of 0.8.0, as they stood there: those that need no cluster, no other server, no weights from elsewhere and no minutes.
LINES = """\
touchstone score s3://bucket/photos --out s3://bucket/run
touchstone results s3://bucket/run --verdict fake
touchstone plan demo-run/archive --cluster laptop
touchstone score demo-run/archive list.csv --out mixed
touchstone score demo-run/archive list.csv --out mixed --retry source_throttled,source_timeout
touchstone pack demo-run/archive --out shards
touchstone detectors list
touchstone detectors show corvi2023
touchstone detectors verify touchstone-tiny
touchstone index labels.csv --out index --hash sha256
touchstone evaluate run --labels demo-run/archive-labels.csv --out figures-of-run
touchstone compare run mixed
touchstone runs leaderboard figures-of-run --out leaderboard.html
touchstone runs gallery run --out gallery
touchstone runs audit run --draw 50 --out audit
touchstone runs report run --prior 0.01
touchstone runs masks run --out masks
touchstone decide run --ensemble tiny
""".splitlines()
# And those that end with a clear line here, since weights, labels or groups are missing: the exit code that they had in 0.8.0, too.
REFUSED = {
    "touchstone detectors fetch community-forensics-vits384": ExitCode.DETECTOR,
    "touchstone calibrate run --labels demo-run/archive-labels.csv --fpr 0.01 --out mine.yaml": ExitCode.USAGE,
    "touchstone data split index --out divided": ExitCode.USAGE,
    "touchstone collect urls.csv --out collected": ExitCode.USAGE,
    "touchstone generate sd-3.5 --prompts prompts.txt --out made": ExitCode.DETECTOR,
}
TINY_0_8_0 = """\
name: default
title: Touchstone's demonstration ensemble
members:
  - {detector: touchstone-tiny}
rule: mean-logit
thresholds: {real_below: -1.43, fake_above: 0.53, false_positive_rate: 0.025, true_positive_rate: 0.8375, n_real: 400, n_fake: 400,
             measured_on: simulated pictures}
notes: Runs with no network.
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, s3):
    """The folder in which the README of 0.8.0 is read, with the run that its lines speak of, made by the ensemble of then."""
    folder = tmp_path_factory.mktemp("upgrading")
    archive = folder / "demo-run" / "archive"
    build_sample_archive(archive, files=12)
    s3.bucket("bucket")
    for there in s3.client().list_objects_v2(Bucket="bucket").get("Contents", []):  # other pages' lines write into this bucket, too
        s3.client().delete_object(Bucket="bucket", Key=there["Key"])
    for path in archive.rglob("*.jpg"):
        s3.client().upload_file(str(path), "bucket", f"photos/{path.relative_to(archive)}")
    for photograph, name in zip(sorted(archive.rglob("*.jpg")), ("photo.jpg", "other.jpg"), strict=False):
        shutil.copy(photograph, folder / name)
    before = os.getcwd()
    os.chdir(folder)
    for name in ("list.csv", "labels.csv"):
        (folder / name).write_text("uri,label\nphoto.jpg,real\nother.jpg,fake\n")
    (folder / "tiny-0.8.0.yaml").write_text(TINY_0_8_0)
    with without_ray():
        assert main(["score", "demo-run/archive", "--ensemble", "tiny-0.8.0.yaml", "--out", "run"]) == 0
    yield folder
    os.chdir(before)


@pytest.fixture
def of_0_8_0(tmp_path):
    """A finished run as 0.8.0 left it on a bucket, here in a folder."""
    return unpack("finished", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("line", [*LINES, *REFUSED])
def test_a_line_of_the_readme_of_0_8_0(workplace, off_ray, line, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(workplace / "config.yaml"))  # a user who accepted no licence
    assert main(shlex.split(line)[1:]) == REFUSED.get(line, ExitCode.DONE)
    assert "Traceback" not in capsys.readouterr().err


def test_the_page_names_each_former_name_where_it_says_how_long_it_stays():
    rows = [row for row in PAGE.splitlines() if row.startswith("| `touchstone ")]
    [for_good] = [row for row in rows if "stay for good" in row]
    assert set(re.findall(r"`(?:touchstone )?(\w+)`", for_good.split("|")[1])) == set(command_line.PERMANENT)


def test_a_run_of_0_8_0_is_read_by_the_old_names(of_0_8_0, capsys):
    statuses = {row["status"] for row in current_rows(RunDirectory.open(str(of_0_8_0)))}
    assert statuses <= set(Status)
    assert main(["results", str(of_0_8_0), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 32
    assert "verdict_detail" not in RunDirectory.open(str(of_0_8_0)).read_json("run.json")
    assert main(["runs", "report", str(of_0_8_0), "--prior", "0.01"]) == 0


@pytest.mark.slow
def test_a_run_that_a_later_touchstone_continued_is_refused(workplace, tmp_path, capsys):
    """As 0.8.0 would have to refuse one of today's, and cannot."""
    shutil.copytree(workplace / "run", tmp_path / "run")
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"row_schema": 99}))
    assert main(["score", "demo-run/archive", "--ensemble", "tiny-0.8.0.yaml", "--out", str(tmp_path / "run")]) == ExitCode.USAGE
    assert "its rows have schema 99" in capsys.readouterr().err
    assert main(["results", str(tmp_path / "run")]) == 0


def test_the_ensemble_card_of_then_decides_as_it_did(tmp_path):
    (tmp_path / "default.yaml").write_text(TINY_0_8_0)
    card, today = load_ensemble_card(tmp_path / "default.yaml"), load_ensemble_card("tiny")
    assert (card.members, card.rule) == (today.members, today.rule)
    assert (card.thresholds.real_below, card.thresholds.fake_above) == (-1.43, 0.53)
    assert load_ensemble_card("default").members != card.members


def test_serve_config_refuses_removed_keys_with_a_hint():
    with pytest.raises(ConfigError, match="arena: retired") as error:
        config.ServeConfig(arena={"at": "photos"})
    assert "touchstone runs audit" in error.value.hint


def test_the_jobs_of_the_shipped_serve_files_of_then():
    with pytest.raises(ConfigError, match="jobs: retired"):
        config.ServeConfig(jobs={"max_images": 1000, "concurrency": 4, "directory": None, "webhooks": False})
