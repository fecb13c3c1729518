import json

import pytest

from ray_app.cli.main import main
from tests.evaluation.made import made_run, random_rows


@pytest.fixture
def case(tmp_path):
    columns, truths, _ = random_rows(120)
    made_run(tmp_path / "run", columns)
    labels = tmp_path / "labels.csv"
    rows = [f"{one},{truth['label']},{truth['generator']}\n" for one, truth in zip(columns["image_id"], truths, strict=True)]
    labels.write_text("image_id,label,generator\n" + "".join(rows))
    return [str(tmp_path / "run"), "--labels", str(labels), "--out", str(tmp_path / "out"), "--set", "bootstrap=20"], tmp_path


def test_a_run_is_evaluated(case, capsys):
    words, folder = case
    assert main(["evaluate", *words]) == 0
    told = capsys.readouterr()
    assert "ROC AUC" in told.out
    assert "counting scores" in told.err
    assert {one.name for one in (folder / "out").iterdir()} == {"metrics.json", "metrics.csv", "report.html"}


def test_json_is_the_document(case, capsys):
    words, folder = case
    assert main(["evaluate", *words, "--json", "--no-thumbnails"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "out" / "metrics.json").read_text())


def test_a_protocol_makes_its_table(case, capsys):
    words, _ = case
    assert main(["evaluate", *words, "--protocol", "openfake-sd21", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["protocol"]["name"] == "openfake-sd21"
    assert document["table"]["rows"]
    assert {one["threshold"] for one in document["systems"]} == {document["protocol"]["threshold"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--protocol", "openfake-v9"], "openfake-v1"),
        (["--key", "sha256"], "labels need the column `label` and one of"),
        (["--set", "bootstrp=1"], "did you mean 'bootstrap'"),
        (["--detector", "unifd"], "would need its source"),
        (["--split", "test", "--labels", "none.csv"], "none.csv"),
        (["--layout", "no-such", "--labels", ""], "no-such"),
    ],
)
def test_what_is_wrong_is_said(case, change, said, capsys):
    words, _ = case
    assert main(["evaluate", *words, *change]) == 2
    assert said in capsys.readouterr().err


def test_help_names_what_labels_have(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert "image_id" in capsys.readouterr().out
