import csv
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from ray_app.errors import ConfigError, ExitCode
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.run import evaluate
from ray_app.metrics.registry import DETECTION, METRICS
from ray_app.reports.evaluation.page import evaluation_lines
from ray_app.reports.evaluation.result import AVERAGES, DECIDED, EvaluationResult, IntervalInfo
from tests.make.evaluations import labelled, made_run, measured, random_rows
from tests.make.page_reader import PageReader
from tests.make.small_run import write_files


def evaluated(folder, **settings):
    places = {"at": (str(folder / "run"),), "out": str(folder / "out")}
    done = evaluate(EvaluateConfig(**places, thumbnails=False, **settings))
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
    scores = {name: one[:590] for name, one in scores.items()}
    return evaluated(folder, labels=str(labels)), columns, truths[:590], scores, folder


def by_name(result, name):
    return next(one for one in result.systems if one.info.name == name)


def test_swapped_labels_are_suspected(tmp_path, case):
    _, columns, truths, _, folder = case
    other = {"real": "fake", "fake": "real"}
    swapped = [{"label": other[truth["label"]]} for truth in truths] + [{}] * 10
    labels = labelled(tmp_path, columns, swapped, range(590, 600))
    lines = evaluation_lines(measured(folder, labels=str(labels)))
    [line] = [line for line in lines if "Labels may be swapped" in line]
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
def test_metrics_equal_scikit_learn(case, name):
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


def test_each_metric_is_on_the_page_and_in_the_terminal(case):
    result, *_, folder = case
    page = PageReader((folder / "out" / "report.html").read_text()).text
    printed = "\n".join(evaluation_lines(result))
    for name in DETECTION:
        assert METRICS[name].title in page
        assert METRICS[name].title in printed


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
    fakes = {"flux": "whole", "sd-3": "whole", "inpainter": "local"}
    assert kinds == fakes | {"real": "real", "real:camera": "real"}
    mean = np.mean([rate for rate, _ in rates])
    assert system.figure("tpr_mean", AVERAGES).value == pytest.approx(mean, abs=1e-12)
    weighted = sum(rate * n for rate, n in rates) / sum(n for _, n in rates)
    assert system.figure("tpr_weighted", AVERAGES).value == pytest.approx(weighted, abs=1e-12)


def test_kinds_strata_and_views(case):
    document, columns, truths, scores, _ = case
    system = by_name(document, "a")
    usual = {"real": "real", "fake": "whole"}
    kinds = np.array([truth["kind"] or usual[truth["label"]] for truth in truths])
    there = np.isfinite(scores["a"])
    for kind in ("whole", "local"):
        chosen = there & np.isin(kinds, (kind, "real"))
        wanted = sk.roc_auc_score(kinds[chosen] == kind, scores["a"][chosen])
        assert system.figure("auc", f"{kind} fakes").value == pytest.approx(wanted, abs=1e-9)
    assert sum(one.n_real + one.n_fake for one in system.info.strata) == there.sum()
    files = zip(columns["format"][:590], columns["width"].to_pylist()[:590], strict=True)
    small = there & np.array([file == ("JPEG", 200) for file in files])
    wanted = sk.roc_auc_score(kinds[small] != "real", scores["a"][small])
    assert system.figure("auc", "JPEG, < 0.1 MP").value == pytest.approx(wanted, abs=1e-9)
    view, absent = system.info.views
    assert (view.name, view.kind, view.n_real + view.n_fake) == ("jpeg-50", "chain", there.sum())
    assert (absent.name, absent.kind, absent.why) == ("jpeg-ai", "attack", "no weights")
    assert not system.figures(view="jpeg-ai")
    clean, seen = (system.figure("auc", view=name).value for name in ("", "jpeg-50"))
    assert seen == pytest.approx(clean, abs=1e-9)


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


def test_labels_and_data_are_counted(case):
    document, columns, truths, _, _ = case
    labels, data = document.meta.labels, document.meta.data
    assert labels.key == "image_id"
    assert (labels.rows, labels.joined, labels.rows_without_label) == (590, 590, 10)
    assert data.n == 590 == sum(data.statuses.values())
    assert data.n_local == sum(truth["kind"] == "local" for truth in truths)
    classes = zip(columns["format"][:590], (truth["label"] for truth in truths), strict=True)
    assert data.formats["real"]["JPEG"] == Counter(classes)["JPEG", "real"]
    assert not data.confounded
    pairs = {(one.a, one.b) for one in document.meta.paired}
    assert pairs == {("ensemble", "a"), ("ensemble", "b"), ("a", "b")}
    assert len(document.mistakes) == 24


def test_each_metric_has_an_interval_or_a_reason(case):
    for system in case[0].systems:
        figures = system.figures()
        aurc = figures.pop("aurc")
        assert aurc.value is not None
        assert aurc.why == "no interval is computed for this metric"
        for name, one in figures.items():
            assert (one.value is None) == (one.low is None) == bool(one.why), name
            if one.interval:
                assert one.low - 1e-9 <= one.value <= one.high + 1e-9, name


def test_files_hold_the_same_metrics(case):
    result, *_, folder = case
    text = (folder / "out" / "metrics.json").read_text()
    content = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    read = EvaluationResult.from_dict(content)
    assert (read.meta, read.metrics) == (result.meta, result.metrics)
    assert pq.read_table(folder / "out" / "metrics.parquet").to_pylist() == content["metrics"]
    lines = list(csv.DictReader((folder / "out" / "metrics.csv").open(newline="")))
    for line, row in zip(lines, content["metrics"], strict=True):
        assert list(line.values()) == ["" if one is None else str(one) for one in row.values()]
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
    for name in ("auc", "tnr", "balanced_accuracy", "f1"):
        assert figures[name].value is None
        assert figures[name].why


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
    [warning] = [line for line in found.meta.data_warnings if "differ in format" in line]
    assert "JPEG are 100 % of the real images and 0 % of the fakes." in warning


def test_labels_of_other_images_are_refused(tmp_path):
    columns, _, _ = random_rows(20)
    made_run(tmp_path / "run", columns)
    path = tmp_path / "labels.csv"
    lines = [f"{number:06d}.jpg,{number % 2}" for number in range(20)]
    path.write_text("\n".join(["uri,label", *lines]))
    said = r"none of 20 labels .*000000\.jpg.*the run has /data/000000\.jpg"
    with pytest.raises(ConfigError, match=said) as caught:
        measured(tmp_path, labels=str(path))
    assert "use full URIs" in caught.value.hint


def test_unmatched_labels_and_rows_are_counted(tmp_path, capsys):
    columns, truths, _ = random_rows(40)
    made_run(tmp_path / "run", columns)
    (tmp_path / "run" / "summary.json").unlink()
    path = labelled(tmp_path, columns, truths, range(35, 40))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, '{"image_id": 12345, "label": 1}', lines[0]]))
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


def test_hostile_names_stay_texts(tmp_path):
    columns, truths, _ = random_rows(40)
    made_run(tmp_path / "run", columns)
    hostile = {"generator": '=HYPERLINK("http://x")<script>alert(1)</script>'}
    truths = [truth | hostile if truth["label"] == "fake" else truth for truth in truths]
    labels = labelled(tmp_path, columns, truths, prompt="=1+1")
    evaluated(tmp_path, labels=str(labels), title="<b>x</b>")
    lines = list(csv.reader((tmp_path / "out" / "metrics.csv").open(newline="")))
    assert not [cell for line in lines for cell in line if cell[:1] in ("=", "+", "@", "\t")]
    assert "<script>alert(1)" not in (tmp_path / "out" / "report.html").read_text()


def test_evaluation_keeps_the_report_of_a_run(case):
    folder = case[-1]
    (folder / "run" / "report.html").write_text("of the run")
    settings = {"at": (str(folder / "run"),), "labels": str(folder / "labels.jsonl")}
    with pytest.raises(ConfigError, match=r"it contains a scored run \(run\.json\)"):
        evaluate(EvaluateConfig(**settings, out=str(folder / "run")))
    assert (folder / "run" / "report.html").read_text() == "of the run"


def test_a_source_without_labels_is_not_scored(tmp_path):
    write_files(tmp_path / "photos", ["a.jpg", "b.jpg"])
    with pytest.raises(ConfigError, match="nor a source with a column `label`") as caught:
        evaluate(EvaluateConfig(at=(str(tmp_path / "photos"),), out=str(tmp_path / "out")))
    assert "--layout" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_intervals_are_for_further_sources(tmp_path):
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
    again = by_name(same, "a").figures()
    assert {name: one.value for name, one in again.items()} == {
        name: one.value for name, one in figures.items()
    }
