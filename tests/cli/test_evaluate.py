import csv
import json

import pytest

from ray_app.cli.main import main
from ray_app.runs import RunDirectory, current_rows
from tests.evaluation.compare.compared import TINY, log_odds, make_run, names_of
from tests.evaluation.made import made_run, random_rows

N = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    photos, names, scores = tmp_path_factory.mktemp("photos"), names_of(N), log_odds(0, N)
    return [
        make_run(tmp_path_factory.mktemp("run"), names, {TINY: scores + shift}, list_in=photos)
        for shift in (0.0, 0.3)
    ]


def test_compare_prints_json(runs, capsys):
    assert main(["compare", *runs, "--json", "--by", "sha256"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["by"] == "sha256"
    assert document["scores"][0]["mean"]["value"] == pytest.approx(0.3, abs=1e-6)
    assert not {"findings", "headline", "rule"} & set(document)


def test_labels_of_a_file(runs, tmp_path, capsys):
    rows = [
        (row["image_id"], "fake" if place % 2 else "real")
        for place, row in enumerate(current_rows(RunDirectory.open(runs[0])))
    ]
    with open(tmp_path / "truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "label"), *rows])
    assert main(["compare", *runs, "--labels", str(tmp_path / "truth.csv")]) == 0
    said = capsys.readouterr().out
    assert "ROC AUC" in said
    assert "+0.300" in said
    assert f"images: {N} in both runs, {N} in A, {N} in B (matched by image_id)" in said
    assert main(["compare", *runs, "--labels", str(tmp_path / "other.csv")]) == 2


def test_compare_refuses_what_is_not_a_run(runs, tmp_path, capsys):
    assert main(["compare", runs[0], str(tmp_path)]) == 2
    assert "no run in " in capsys.readouterr().err
    assert main(["compare", *runs, "--by", "uri"]) == 2


@pytest.fixture
def case(tmp_path):
    columns, truths, _ = random_rows(120)
    made_run(tmp_path / "run", columns)
    labels = tmp_path / "labels.csv"
    rows = [
        f"{one},{truth['label']},{truth['generator']}\n"
        for one, truth in zip(columns["image_id"], truths, strict=True)
    ]
    labels.write_text("image_id,label,generator\n" + "".join(rows))
    return [
        str(tmp_path / "run"),
        "--labels",
        str(labels),
        "--out",
        str(tmp_path / "out"),
    ], tmp_path


def test_a_run_is_evaluated_and_json_is_the_document(case, capsys):
    words, folder = case
    assert (
        main(["evaluate", *words, "--json", "--no-thumbnails", "--protocol", "openfake-sd21"]) == 0
    )
    told = capsys.readouterr()
    assert "counting scores" in told.err
    assert {one.name for one in (folder / "out").iterdir()} == {
        "metrics.json",
        "metrics.csv",
        "metrics.parquet",
        "report.html",
    }
    document = json.loads(told.out)
    assert document == json.loads((folder / "out" / "metrics.json").read_text())
    assert document["meta"]["protocol"]["name"] == "openfake-sd21"
    assert document["meta"]["table"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--protocol", "openfake-v9"], "openfake-v1"),
        (["--set", "intervls=images"], "did you mean 'intervals'"),
        (["--set", "bootstrap=20"], "retired: remove it"),
        (["--detector", "unifd"], "would need its source"),
        (["--layout", "no-such", "--labels", ""], "no-such"),
        (["--fragility", "{}/card.yaml"], "no perturbed images"),
    ],
)
def test_what_is_wrong_is_said(case, change, said, capsys):
    words, folder = case
    assert main(["evaluate", *words, *(word.format(folder) for word in change)]) == 2
    assert said in capsys.readouterr().err
