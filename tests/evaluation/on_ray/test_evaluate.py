"""A source is scored and evaluated by one command, and tasks gather what this process gathers."""

import contextlib
import csv
import io
import json
from dataclasses import replace

import pytest
import yaml
from sklearn.metrics import roc_auc_score

from ray_app.cli.main import main
from ray_app.config import config_root
from ray_app.detectors import load_card
from ray_app.reports.evaluation.result import EvaluationResult
from ray_app.runs import RunDirectory, current_rows
from tests.make.evaluations import labelled, made_run, measured, random_rows
from tests.make.stages import without_ray
from tests.simulation.archive import build_sample_archive


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The labels, the output folder, and the command that scored and evaluated a labelled list."""
    folder = tmp_path_factory.mktemp("evaluate")
    archive = build_sample_archive(folder / "archive", files=12)
    rows = list(csv.DictReader(archive.labels.open()))
    lines = [f"{archive.folder}/{row['path']},{row['label']},{row['generator']}" for row in rows]
    (folder / "listed.csv").write_text("\n".join(["path,label,generator", *lines]))
    command = ["evaluate", f"list::{folder}/listed.csv", "--layout", "columns"]
    command += ["--out", f"{folder}/out", "--ensemble", "tiny", "--perturb", "jpeg:50"]
    command += ["--fragility", f"{folder}/fragility.yaml"]
    with without_ray(), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    assert "ROC AUC" in printed.getvalue()
    return archive.labels, folder / "out", command


def read(out):
    return EvaluationResult.from_dict(json.loads((out / "metrics.json").read_text()))


def test_evaluate_source_scores_and_measures(done):
    labels, out, _ = done
    truths = {row["sha256"]: row["label"] == "fake" for row in csv.DictReader(labels.open())}
    rows = list(current_rows(RunDirectory.open(f"{out}/run")))
    result = read(out)
    assert result.meta.labels.key == "image_id"
    assert result.meta.labels.joined == len(rows) == len(truths) == result.meta.data.n
    assert all(mistake.thumbnail for mistake in result.mistakes)
    [system] = result.systems
    [view] = system.info.views
    fakes = [truths[row["sha256"]] for row in rows]
    assert (system.info.n_fake, system.info.n_real) == (sum(fakes), len(fakes) - sum(fakes))
    scores = {
        "": [row["score"] for row in rows],
        view.name: [next(iter(row["views"][view.name].values())) for row in rows],
    }
    for name, column in scores.items():
        auc = system.figure("auc", view=name).value
        assert auc == pytest.approx(roc_auc_score(fakes, column), abs=1e-9)
    assert (out / "report.html").exists()


def test_labels_of_layout_run_and_file_give_equal_metrics(done):
    labels, out, _ = done
    own, filed, laid_out = (
        measured(out, **how) for how in ({}, {"labels": str(labels)}, {"layout": "columns"})
    )
    assert [one.meta.labels.key for one in (own, laid_out)] == ["input", "image_id"]
    for result in (own, filed, laid_out):
        assert result.systems[0].figures() == read(out).systems[0].figures()


def test_fragility_of_perturbations_is_a_section_of_the_card(done, tmp_path):
    _, out, _ = done
    [system] = read(out).systems
    written = yaml.safe_load((out.parent / "fragility.yaml").read_text())
    assert list(written) == ["touchstone-tiny"]
    shipped = yaml.safe_load((config_root() / "detectors" / "touchstone-tiny.yaml").read_text())
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(shipped | written["touchstone-tiny"]))
    as_is, seen = load_card(tmp_path / "card.yaml").fragility.measured
    assert (as_is.perturbation, seen.perturbation) == (None, "jpeg:50")
    assert seen.steps == "jpeg quality 50"
    for row, part, view in ((as_is, system.info, ""), (seen, system.info.views[0], "jpeg:50")):
        assert (row.n_real, row.n_fake, row.threshold) == (part.n_real, part.n_fake, 0.53)
        figures = system.figures(view=view)
        assert row.auc == pytest.approx(figures["auc"].value, abs=1e-4)
        assert row.fpr == pytest.approx(1 - figures["tnr"].value, abs=1e-4)
        assert row.tpr == pytest.approx(figures["tpr"].value, abs=1e-4)
        assert "touchstone evaluate" in row.source


def test_repeated_command_changes_nothing(done, capsys):
    _, out, command = done
    before = json.loads((out / "metrics.json").read_text())
    capsys.readouterr()
    with without_ray():
        assert main([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    del again["meta"]["made_at"], before["meta"]["made_at"]
    assert again == before


def test_tasks_gather_what_one_process_gathers(ray_cluster, tmp_path):
    columns, truths, _ = random_rows(200, views=("jpeg-50",))
    made_run(tmp_path / "run", columns, [33, 150])
    labels = str(labelled(tmp_path, columns, truths, but={5}))
    here, there = (measured(tmp_path, labels=labels, tasks=tasks) for tasks in (False, True))
    assert there.metrics == here.metrics
    own = {"made_at": "", "settings": {}}
    assert replace(there.meta, **own) == replace(here.meta, **own)
