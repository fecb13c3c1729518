import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from ray_app.errors import ConfigError, ExitCode
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.run import evaluate
from ray_app.metrics.registry import DETECTION, METRICS
from ray_app.reports.evaluation.page import evaluation_lines
from ray_app.reports.evaluation.result import (
    AVERAGES,
    DECIDED,
    EvaluationResult,
    IntervalInfo,
)
from tests.evaluation.made import labelled, made_run, measured, random_rows
from tests.reports.page_reader import PageReader
from tests.runs.small_run import write_files


def evaluated(folder, **settings):
    config = EvaluateConfig(
        at=(str(folder / "run"),),
        out=str(folder / "out"),
        thumbnails=False,
        **settings,
    )
    done = evaluate(config)
    assert done.exit_code is ExitCode.DONE
    return done.result


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    columns, truths, scores = random_rows(600, views=("jpeg-50",))
    run = made_run(folder / "run", columns, [200])
    described = run.describe()
    described["identity"] |= {
        "perturb_kinds": {"jpeg-50": "chain"},
        "perturb_absent": {"jpeg-ai": {"kind": "attack", "why": "no weights"}},
    }
    run.write_json("run.json", described)
    labels = labelled(folder, columns, truths, range(590, 600))
    document = evaluated(folder, labels=str(labels))
    return (
        document,
        columns,
        truths[:590],
        {name: one[:590] for name, one in scores.items()},
        folder,
    )


def by_name(result, name):
    return next(one for one in result.systems if one.info.name == name)


def test_swapped_labels_are_suspected(tmp_path, case):
    _, columns, truths, _, folder = case
    swapped = [
        truth
        | {"label": "real" if truth["label"] == "fake" else "fake", "generator": None, "kind": None}
        for truth in truths
    ]
    document = measured(
        folder,
        labels=str(
            labelled(tmp_path, columns, [*swapped, *[{"label": "real"}] * 10], range(590, 600))
        ),
    )
    [line] = [line for line in evaluation_lines(document) if "Labels may be swapped" in line]
    assert line.startswith("warning: ")
    assert "ROC AUC far below 0.5" in line
    assert not [line for line in evaluation_lines(case[0]) if "swapped" in line]


def test_one_image_of_each_class_is_evaluated(tmp_path):
    columns, _, _ = random_rows(2, failing=0)
    made_run(tmp_path / "run", columns)
    truths = [{"label": "0.0"}, {"label": "1.0"}]
    [system, *_] = measured(tmp_path, labels=str(labelled(tmp_path, columns, truths))).systems
    assert (system.info.n_real, system.info.n_fake) == (1, 1)


@pytest.mark.parametrize("name", ["ensemble", "a", "b"])
def test_figures_are_those_of_scikit_learn(case, name):
    document, _, truths, scores, _ = case
    system = by_name(document, name)
    there = np.isfinite(scores[name])
    fakes = np.array([truth["label"] == "fake" for truth in truths])[there]
    score = scores[name][there].astype(np.float64)
    said = score >= 0 if name == "ensemble" else score > 0
    figures = {key: metric.value for key, metric in system.figures().items()}
    expected = {
        "tpr": sk.recall_score(fakes, said),
        "tnr": sk.recall_score(~fakes, ~said),
        "precision": sk.precision_score(fakes, said),
        "auc": sk.roc_auc_score(fakes, score),
        "log_loss": sk.log_loss(fakes, 1 / (1 + np.exp(-score))),
    }
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    assert list(system.figures()) == [*DETECTION, "aurc"]
    assert (system.info.n_fake, system.info.n_real) == (fakes.sum(), (~fakes).sum())
    assert system.info.unscored == 590 - there.sum()
    report = system.figure("precision", "report: fake")
    assert report.value == pytest.approx(expected["precision"], abs=1e-9)


def test_every_metric_of_the_registry_is_in_all_files_on_the_page_and_in_the_terminal(case):
    result, *_, folder = case
    out = folder / "out"
    rows = json.loads((out / "metrics.json").read_text())["metrics"]
    with (out / "metrics.csv").open(newline="") as lines:
        csv_names = {row["figure"] for row in csv.DictReader(lines)}
    names = set(DETECTION)
    assert names <= {row["figure"] for row in rows}
    assert names <= csv_names
    assert names <= set(pq.read_table(out / "metrics.parquet")["figure"].to_pylist())
    page = PageReader((out / "report.html").read_text()).text
    printed = "\n".join(evaluation_lines(result))
    assert [METRICS[name].title for name in names if METRICS[name].title not in page] == []
    assert [METRICS[name].title for name in names if METRICS[name].title not in printed] == []


def test_generators_and_averages(case):
    document, _, truths, scores, _ = case
    system = by_name(document, "b")
    makers = np.array([truth["generator"] for truth in truths])
    there = np.isfinite(scores["b"])
    reals = scores["b"][there & np.isin(makers, ("real", "real:camera"))]
    rates = []
    for one in system.info.generators:
        mine = scores["b"][there & (makers == one.name)]
        right = mine > 0 if one.label == "fake" else mine <= 0
        assert system.rate(one).value == pytest.approx(right.mean(), abs=1e-12)
        assert (one.n, one.unscored) == (len(mine), (makers == one.name).sum() - len(mine))
        if one.label == "fake":
            rates.append((right.mean(), len(mine)))
            auc = sk.roc_auc_score([True] * len(mine) + [False] * len(reals), np.r_[mine, reals])
            assert system.figure("auc", one.scope).value == pytest.approx(auc, abs=1e-9)
    kinds = {one.name: one.kind for one in system.info.generators}
    assert kinds == {
        "flux": "whole",
        "sd-3": "whole",
        "inpainter": "local",
        "real": "real",
        "real:camera": "real",
    }
    assert system.figure("tpr_mean", AVERAGES).value == pytest.approx(
        np.mean([rate for rate, _ in rates]), abs=1e-12
    )
    weighted = sum(rate * n for rate, n in rates) / sum(n for _, n in rates)
    assert system.figure("tpr_weighted", AVERAGES).value == pytest.approx(weighted, abs=1e-12)


def test_kinds_strata_and_views(case):
    document, columns, truths, scores, _ = case
    system = by_name(document, "a")
    kinds = np.array(
        [truth["kind"] or ("real" if truth["label"] == "real" else "whole") for truth in truths]
    )
    there = np.isfinite(scores["a"])
    for kind in ("whole", "local"):
        chosen = there & np.isin(kinds, (kind, "real"))
        wanted = sk.roc_auc_score(kinds[chosen] == kind, scores["a"][chosen])
        assert system.figure("auc", f"{kind} fakes").value == pytest.approx(wanted, abs=1e-9)
    assert sum(one.n_real + one.n_fake for one in system.info.strata) == there.sum()
    widths = columns["width"].to_pylist()[:590]
    small = (
        np.array(
            [
                form == "JPEG" and width == 200
                for form, width in zip(columns["format"][:590], widths, strict=True)
            ]
        )
        & there
    )
    assert system.figure("auc", "JPEG, < 0.1 MP").value == pytest.approx(
        sk.roc_auc_score(kinds[small] != "real", scores["a"][small]), abs=1e-9
    )
    view, absent = system.info.views
    assert (view.name, view.kind, view.n_real + view.n_fake) == ("jpeg-50", "chain", there.sum())
    assert (absent.name, absent.kind, absent.why) == ("jpeg-ai", "attack", "no weights")
    assert not system.figures(view="jpeg-ai")
    assert system.figure("auc", view="jpeg-50").value == pytest.approx(
        system.figure("auc").value, abs=1e-9
    )


def test_verdicts_with_abstentions_and_failures(case):
    document, columns, truths, _, _ = case
    decided = by_name(document, "ensemble").figures(DECIDED)
    fakes = np.array([truth["label"] == "fake" for truth in truths])
    said = np.array([one or "unscored" for one in columns["verdict"][:590]])
    right = (said == "fake") & fakes | (said == "real") & ~fakes
    known = np.isin(said, ("fake", "real"))
    assert decided["coverage"].value == pytest.approx(known.mean())
    assert decided["accuracy_of_decided"].value == pytest.approx(right[known].mean())
    assert decided["accuracy_strict"].value == pytest.approx(right.mean())
    assert not by_name(document, "a").figures(DECIDED)
    assert {"abstain", "unscored"} <= set(said)


def test_what_was_joined_and_what_there_is(case):
    document, columns, truths, _, _ = case
    labels, data = document.meta.labels, document.meta.data
    assert (labels.key, labels.rows, labels.joined, labels.rows_without_label) == (
        "image_id",
        590,
        590,
        10,
    )
    assert data.n == 590 == sum(data.statuses.values())
    assert data.n_local == sum(truth["kind"] == "local" for truth in truths)
    jpegs = [
        truth["label"]
        for form, truth in zip(columns["format"], truths, strict=False)
        if form == "JPEG"
    ]
    assert data.formats["real"]["JPEG"] == jpegs.count("real")
    assert not data.confounded
    assert {(one.a, one.b) for one in document.meta.paired} == {
        ("ensemble", "a"),
        ("ensemble", "b"),
        ("a", "b"),
    }
    assert len(document.mistakes) == 24


def test_every_figure_has_an_interval_or_none_can_be_had(case):
    for system in case[0].systems:
        figures = {name: one for name, one in system.figures().items() if name != "aurc"}
        assert not [
            name for name, one in figures.items() if (one.value is None) == (one.low is not None)
        ]
        for one in figures.values():
            assert (one.value is None) == bool(one.why)
            if one.interval:
                assert one.low <= one.value + 1e-9
                assert one.value - 1e-9 <= one.high


def test_files_hold_the_same_metrics(case):
    result, *_, folder = case
    text = (folder / "out" / "metrics.json").read_text()
    content = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    read = EvaluationResult.from_dict(content)
    assert (read.meta, read.metrics) == (result.meta, result.metrics)
    assert pq.read_table(folder / "out" / "metrics.parquet").to_pylist() == content["metrics"]
    lines = list(csv.DictReader((folder / "out" / "metrics.csv").open(newline="")))
    assert [list(line.values()) for line in lines] == [
        ["" if value is None else str(value) for value in row.values()]
        for row in content["metrics"]
    ]
    keys = [(line["system"], line["view"], line["scope"], line["figure"]) for line in lines]
    assert len(set(keys)) == len(keys)
    assert "<html" in (folder / "out" / "report.html").read_text()


def test_one_class_alone(tmp_path):
    columns, truths, _ = random_rows(60)
    made_run(tmp_path / "run", columns)
    fakes = [truth | {"label": "fake", "generator": "flux"} for truth in truths]
    document = measured(tmp_path, labels=str(labelled(tmp_path, columns, fakes)))
    figures = by_name(document, "a").figures()
    assert figures["tpr"].value is not None
    assert all(
        figures[name].value is None and figures[name].why
        for name in ("auc", "tnr", "balanced_accuracy", "f1")
    )


def test_nothing_was_scored(tmp_path):
    columns, truths, _ = random_rows(30, failing=1.0)
    made_run(tmp_path / "run", columns)
    document = measured(tmp_path, labels=str(labelled(tmp_path, columns, truths)))
    ensemble = by_name(document, "ensemble")
    assert all(one.value is None for one in ensemble.figures().values())
    assert ensemble.figure("coverage", DECIDED).value == 0
    assert document.mistakes == ()


def test_classes_that_differ_are_warned_of(tmp_path):
    columns, truths, _ = random_rows(300, failing=0.0)
    fakes = np.array([truth["label"] == "fake" for truth in truths])
    columns["format"] = np.where(fakes, "PNG", "JPEG").tolist()
    made_run(tmp_path / "run", columns)
    found = measured(tmp_path, labels=str(labelled(tmp_path, columns, truths)))
    assert found.meta.data.confounded
    assert found.shortcut_auc.value == 1.0
    assert (
        "The classes differ in format: JPEG are 100 % of the real images and 0 % of the fakes."
        in found.meta.data_warnings
    )


def test_no_label_is_of_the_run(tmp_path):
    columns, _, _ = random_rows(20)
    made_run(tmp_path / "run", columns)
    path = tmp_path / "labels.csv"
    path.write_text(
        "uri,label\n" + "".join(f"{number:06d}.jpg,{number % 2}\n" for number in range(20))
    )
    with pytest.raises(
        ConfigError, match=r"none of 20 labels .*000000\.jpg.*the run has /data/000000\.jpg"
    ) as caught:
        measured(tmp_path, labels=str(path))
    assert "not guessed" in caught.value.hint


def test_some_labels_are_of_no_row(tmp_path, capsys):
    columns, truths, _ = random_rows(40)
    made_run(tmp_path / "run", columns)
    (tmp_path / "run" / "summary.json").unlink()
    path = labelled(tmp_path, columns, truths, range(35, 40))
    path.write_text(
        path.read_text()
        + '{"image_id": 12345, "label": 1}\n'
        + path.read_text().splitlines()[0]
        + "\n"
    )
    meta = measured(tmp_path, labels=str(path)).meta
    labels, warnings = meta.labels, meta.label_warnings
    counts = (labels.rows, labels.joined, labels.without_row, labels.rows_without_label)
    assert counts == (37, 35, 1, 5)
    assert labels.doubled == 1
    assert "1 of 36 labels without a row in the run, for example image_id 12345." in warnings
    assert "is not finished" in warnings[0]
    assert "5 rows without a label, left out; for example /data/000035.jpg/35.png." in warnings
    assert "5 rows without a label" in capsys.readouterr().err


def test_protocol_without_images_warns_and_names_generators(tmp_path):
    columns, truths, _ = random_rows(40)
    made_run(tmp_path / "run", columns)
    labels = str(labelled(tmp_path, columns, truths))
    result = measured(tmp_path, labels=labels, protocol="cnndetection")
    printed = "\n".join(evaluation_lines(result))
    assert "warning: The table of the protocol is empty." in printed
    fakes = {one["generator"] for one in truths if one["label"] == "fake"}
    assert all(name in printed.partition("The data has ")[2].partition(".")[0] for name in fakes)
    assert "\nCNNDetection's test set" in printed


def test_area_under_risk_coverage_has_reason_without_interval(case):
    aurc = case[0].systems[0].figures()["aurc"]
    assert aurc.value is not None
    assert aurc.interval is None
    assert aurc.why == "no interval is computed for this metric"


def test_hostile_names_stay_texts(tmp_path):
    columns, truths, _ = random_rows(40)
    made_run(tmp_path / "run", columns)
    hostile = '=HYPERLINK("http://x")<script>alert(1)</script>'
    truths = [
        truth | ({"generator": hostile} if truth["label"] == "fake" else {}) for truth in truths
    ]
    evaluated(
        tmp_path, labels=str(labelled(tmp_path, columns, truths, prompt="=1+1")), title="<b>x</b>"
    )
    lines = list(csv.reader((tmp_path / "out" / "metrics.csv").open(newline="")))
    assert not [cell for line in lines for cell in line if cell[:1] in ("=", "+", "@", "\t")]
    assert "<script>alert(1)" not in (tmp_path / "out" / "report.html").read_text()


def test_a_source_without_labels_is_not_scored(tmp_path):
    write_files(tmp_path / "photos", ["a.jpg", "b.jpg"])
    with pytest.raises(
        ConfigError, match="neither a run nor a source with a column `label`"
    ) as caught:
        evaluate(EvaluateConfig(at=(str(tmp_path / "photos"),), out=str(tmp_path / "out")))
    assert "--layout" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_sources_of_labels_are_what_is_drawn_anew(tmp_path):
    columns, truths, _ = random_rows(400)
    made_run(tmp_path / "run", columns)
    truths = [
        truth | {"source": f"camera-{row % 9}" if truth["label"] == "real" else None}
        for row, truth in enumerate(truths)
    ]
    labels = str(labelled(tmp_path, columns, truths))
    document = measured(tmp_path, labels=labels)
    assert document.meta.intervals == IntervalInfo("images", "sources", 3, 9)
    figures = by_name(document, "a").figures()
    assert (figures["tnr"].method, figures["auc"].method) == ("clopper-pearson", "jackknife")
    same = measured(tmp_path, labels=labels, intervals="images")
    assert same.meta.intervals.fakes == "images"
    assert by_name(same, "a").figure("tnr").low != figures["tnr"].low
    values = [
        {name: one.value for name, one in by_name(each, "a").figures().items()}
        for each in (document, same)
    ]
    assert values[0] == values[1]
