import csv
import json
import subprocess
import sys

import pytest

from ray_app.cli.main import main
from ray_app.runs import RunDirectory, current_rows
from tests.comparison.compared import TINY, log_odds, make_run, names_of

N = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    photos, names, scores = tmp_path_factory.mktemp("photos"), names_of(N), log_odds(0, N)
    return [make_run(tmp_path_factory.mktemp("run"), names, {TINY: scores + shift}, list_in=photos) for shift in (0.0, 0.3)]


def test_what_changed_is_said_and_written(runs, tmp_path, capsys):
    assert main(["compare", *runs, "--out", str(tmp_path / "new" / "folder")]) == 0
    said = capsys.readouterr()
    assert f"changed: scores of {TINY} rose by 0.30 log-odds on average" in said.out
    assert f"images: {N} in both runs, 0 only in A, 0 only in B (matched by image_id)" in said.out
    assert f"report: {tmp_path / 'new' / 'folder' / 'comparison.html'}" in said.out
    assert "rose by 0.30 log-odds" in (tmp_path / "new" / "folder" / "comparison.html").read_text()
    assert main(["compare", *runs, "--json", "--by", "sha256", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["rows"]["by"] == "sha256"
    assert document["findings"] == json.loads((tmp_path / "comparison.json").read_text())["findings"] != []
    assert "report: " in said.err


def test_equal_runs_differ_in_nothing(runs, capsys):
    assert main(["compare", runs[0], runs[0]]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"No difference: statuses, scores and verdicts of the {N} images in both runs are the same.\n")
    assert "changed:" not in said


def test_labels_of_a_file(runs, tmp_path, capsys):
    rows = [(row["image_id"], "fake" if place % 2 else "real") for place, row in enumerate(current_rows(RunDirectory.open(runs[0])))]
    with open(tmp_path / "truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "label"), *rows])
    assert main(["compare", *runs, "--labels", str(tmp_path / "truth.csv")]) == 0
    assert f"{TINY}: AUC 0." in capsys.readouterr().out
    assert main(["compare", *runs, "--labels", str(tmp_path / "other.csv")]) == 2


def test_what_is_no_run_or_no_folder_is_refused_before_anything_is_read(runs, tmp_path, capsys):
    assert main(["compare", runs[0], str(tmp_path)]) == 2
    assert "no run here" in capsys.readouterr().err
    assert main(["compare", *runs, "--out", "s3://bucket/x"]) == 2
    assert "not a local folder" in capsys.readouterr().err
    assert main(["compare", *runs, "--by", "uri"]) == 2


def test_it_takes_no_torch_and_no_ray(runs):
    code = (
        "import sys; from ray_app.cli.main import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "compare", *runs], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
