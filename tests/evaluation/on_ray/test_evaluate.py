"""A source is scored and evaluated by one command; and tasks gather what this process gathers."""

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
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.run import evaluate, labels_for
from ray_app.reports.evaluation.result import EvaluationResult
from ray_app.runs import RunDirectory, current_rows
from ray_app.storage import Store
from tests.evaluation.made import labelled, made_run, measured, random_rows
from tests.scoring.stages import without_ray
from tests.simulation.archive import build_sample_archive


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    archive = build_sample_archive(folder / "archive", files=12)
    words = [
        "evaluate",
        str(archive.folder),
        "--labels",
        str(archive.labels),
        "--out",
        str(folder / "out"),
    ]
    words += [
        "--ensemble",
        "tiny",
        "--perturb",
        "jpeg:50",
        "--fragility",
        str(folder / "fragility.yaml"),
    ]
    with without_ray(), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(words) == 0
    assert "ROC AUC" in printed.getvalue()
    return archive, folder / "out", words


def read(out):
    return EvaluationResult.from_dict(json.loads((out / "metrics.json").read_text()))


def test_a_source_is_scored_and_evaluated(done):
    archive, out, _ = done
    result = read(out)
    truths = {row["sha256"]: row["label"] for row in csv.DictReader(archive.labels.open())}
    rows = [
        row
        for row in current_rows(RunDirectory.open(str(out / "run")))
        if row["sha256"] in truths and row["score"] is not None
    ]
    [system] = result.systems
    fakes = [truths[row["sha256"]] == "fake" for row in rows]
    assert (system.info.n_fake, system.info.n_real) == (sum(fakes), len(fakes) - sum(fakes))
    assert system.figure("auc").value == pytest.approx(
        roc_auc_score(fakes, [row["score"] for row in rows]), abs=1e-9
    )
    [view] = system.info.views
    shown = [next(iter(row["views"][view.name].values())) for row in rows]
    assert system.figure("auc", view=view.name).value == pytest.approx(
        roc_auc_score(fakes, shown), abs=1e-9
    )
    assert (out / "report.html").exists()


def test_what_perturbations_leave_is_a_section_of_the_card(done, tmp_path):
    _, out, _ = done
    [system] = read(out).systems
    written = yaml.safe_load((out.parent / "fragility.yaml").read_text())
    assert list(written) == ["touchstone-tiny"]
    shipped = yaml.safe_load((config_root() / "detectors" / "touchstone-tiny.yaml").read_text())
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(shipped | written["touchstone-tiny"]))
    as_is, seen = load_card(tmp_path / "card.yaml").fragility.measured
    assert (as_is.perturbation, seen.perturbation, seen.steps) == (
        None,
        "jpeg:50",
        "jpeg quality 50",
    )
    for row, part, view in ((as_is, system.info, ""), (seen, system.info.views[0], "jpeg:50")):
        assert (row.n_real, row.n_fake, row.threshold) == (part.n_real, part.n_fake, 0.53)
        figures = system.figures(view=view)
        assert row.auc == pytest.approx(figures["auc"].value, abs=1e-4)
        assert row.fpr == pytest.approx(1 - figures["tnr"].value, abs=1e-4)
        assert row.tpr == pytest.approx(figures["tpr"].value, abs=1e-4)
        assert "touchstone evaluate" in row.source


def test_the_same_command_changes_nothing(done, capsys):
    _, out, words = done
    before = json.loads((out / "metrics.json").read_text())
    capsys.readouterr()
    with without_ray():
        assert main([*words, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    del again["meta"]["made_at"], before["meta"]["made_at"]
    assert again == before


def test_a_layout_labels_the_source(done, off_ray, tmp_path):
    archive, out, _ = done
    listed = tmp_path / "listed.csv"
    rows = list(csv.DictReader(archive.labels.open()))
    listed.write_text(
        "path,label,generator\n"
        + "".join(
            f"{archive.folder}/{row['path']},{row['label']},{row['generator']}\n" for row in rows
        )
    )
    config = EvaluateConfig(
        at=(f"list::{listed}",),
        layout="columns",
        out=str(tmp_path / "out"),
        score={"ensemble": "tiny"},
    )
    result = evaluate(config).result
    assert all(one.thumbnail for one in result.mistakes)
    assert result.meta.labels.key == "image_id"
    assert result.meta.labels.joined == len(rows) == result.meta.data.n
    expected = read(out).systems[0].figure("auc").value
    assert result.systems[0].figure("auc").value == pytest.approx(expected, abs=1e-9)
    own = measured(tmp_path / "out")
    assert own.meta.labels.key == "input"
    assert own.systems[0].figures() == result.systems[0].figures()
    run = RunDirectory.open(str(tmp_path / "out" / "run"))
    config = EvaluateConfig(at=(run.store.url,), layout="columns")
    with labels_for(config, None, run, Store.open(str(tmp_path / "again"))) as labels:
        assert labels.distinct == len(rows)


def test_tasks_gather_the_same(ray_cluster, tmp_path):
    columns, truths, _ = random_rows(200, views=("jpeg-50",))
    made_run(tmp_path / "run", columns, [33, 150])
    labels = str(labelled(tmp_path, columns, truths, but={5}))
    here, there = (measured(tmp_path, labels=labels, tasks=tasks) for tasks in (False, True))
    assert there.metrics == here.metrics
    own = {"made_at": "", "settings": {}}
    assert replace(there.meta, **own) == replace(here.meta, **own)
