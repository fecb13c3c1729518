"""`touchstone evaluate` and `touchstone compare`."""

import csv
import json

import pytest

from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.compare.compared import TINY, log_odds, make_run, names_of
from tests.make.evaluations import made_run, random_rows

N = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same images; the scores of the second are higher by 0.3."""
    photos, names, scores = tmp_path_factory.mktemp("photos"), names_of(N), log_odds(0, N)
    return [
        make_run(tmp_path_factory.mktemp("run"), names, {TINY: scores + shift}, list_in=photos)
        for shift in (0.0, 0.3)
    ]


def test_compare_prints_json(runs, touchstone):
    document = touchstone("compare --json --by sha256", *runs).document
    assert document["by"] == "sha256"
    assert document["scores"][0]["mean"]["value"] == pytest.approx(0.3, abs=1e-6)
    assert not {"findings", "headline", "rule"} & set(document)


def test_compare_with_labels_prints_auc(runs, tmp_path, touchstone):
    rows = current_rows(RunDirectory.open(runs[0]))
    labels = [(row["image_id"], "fake" if index % 2 else "real") for index, row in enumerate(rows)]
    with open(tmp_path / "truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "label"), *labels])
    ended = touchstone("compare", *runs, "--labels", tmp_path / "truth.csv")
    assert ended.code == 0
    assert "ROC AUC" in ended.out
    assert "+0.300" in ended.out
    assert f"images: {N} in both runs, {N} in A, {N} in B (matched by image_id)" in ended.out


def test_compare_usage_error_exits_2(runs, tmp_path, touchstone):
    first, second = runs
    for words, said in (
        ((first, tmp_path), "no run in "),
        ((first, second, "--by", "uri"), "uri"),
        ((first, second, "--labels", tmp_path / "other.csv"), "other.csv"),
    ):
        ended = touchstone("compare", *words)
        assert ended.code == 2, words
        assert said in ended.err


@pytest.fixture
def evaluate(tmp_path, touchstone, monkeypatch):
    """Run `evaluate` on a labelled run in the working directory, with further words."""
    monkeypatch.chdir(tmp_path)
    columns, truths, _ = random_rows(120)
    made_run(tmp_path / "run", columns)
    rows = zip(columns["image_id"], truths, strict=True)
    lines = [f"{name},{truth['label']},{truth['generator']}\n" for name, truth in rows]
    (tmp_path / "labels.csv").write_text("image_id,label,generator\n" + "".join(lines))
    return lambda line: touchstone(f"evaluate run --labels labels.csv --out out {line}")


def test_evaluate_writes_files_and_prints_its_document(evaluate, tmp_path):
    ended = evaluate("--json --no-thumbnails --protocol openfake-sd21")
    assert ended.code == 0
    assert "counting scores" in ended.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"metrics.json", "metrics.csv", "metrics.parquet", "report.html"}
    document = ended.document
    assert document == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["meta"]["protocol"]["name"] == "openfake-sd21"
    assert document["meta"]["table"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--protocol openfake-v9", "openfake-v1"),
        ("--set intervls=images", "did you mean 'intervals'"),
        ("--set bootstrap=20", "retired: remove it"),
        ("--detector unifd", "--detector cannot be used with"),
        ("--layout no-such --labels ''", "no-such"),
        ("--fragility card.yaml", "needs perturbed images"),
    ],
)
def test_evaluate_usage_error_exits_2(evaluate, words, said):
    ended = evaluate(words)
    assert ended.code == 2
    assert said in ended.err
