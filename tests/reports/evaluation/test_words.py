"""Sentences say no more than the intervals behind them."""

import pytest

from ray_app.metrics.table import MetricRow, MetricsTable, build_rows
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import (
    DATA,
    DataInfo,
    EvaluationMeta,
    EvaluationResult,
    GeneratorInfo,
    IntervalInfo,
    LabelInfo,
    SystemInfo,
)
from ray_app.reports.evaluation.sentences import answers, headline


def figure(value, low=None, high=None, n=200):
    return MetricValue(value, low, high, n, "" if low is None else "jackknife")


SHORTCUT = figure(0.81, 0.8, 0.82)


def result_of(*sources, shortcut=SHORTCUT, **figures):
    """Return an evaluation of one system. Each of `sources` is a source of real images: how many of
    how many are judged correctly.
    """
    reals = [
        GeneratorInfo(f"camera {place}", "real", "real", n=n)
        for place, (_, n) in enumerate(sources)
    ]
    fakes = GeneratorInfo("a", "fake", "fake", n=100)
    counts = {"calibrated": True, "n_real": 100, "n_fake": 200, "generators": (*reals, fakes)}
    info = SystemInfo("npr", "detector", "npr", **counts)
    usual = {
        "auc": figure(0.9, 0.85, 0.93),
        "balanced_accuracy": figure(0.8, 0.75, 0.85),
        "ece": figure(0.05),
    }
    rows = [
        MetricRow("", "", DATA, "shortcut_auc", shortcut),
        *build_rows(usual | figures, "npr"),
        MetricRow("npr", "", fakes.scope, "rate", figure(0.5, 0.4, 0.6)),
    ]
    for one, (right, n) in zip(reals, sources, strict=True):
        rate = figure(right / n, *proportion_interval(right, n), n=n)
        rows.append(MetricRow("npr", "", one.scope, "rate", rate))
    data = DataInfo(n=300, n_real=100, n_fake=200)
    meta = EvaluationMeta(title="t", labels=LabelInfo("labels.csv"), systems=(info,), data=data)
    return EvaluationResult(meta, MetricsTable(tuple(rows)))


def sentences(result):
    return " ".join(sentence for _, said in answers(result) for sentence in said)


@pytest.mark.parametrize(
    ("sources", "is_said"),
    [
        ([(15, 16), (400, 400)], False),  # one of 16, and the interval reaches the others'
        ([(8, 16), (396, 400)], True),
    ],
)
def test_source_is_flagged_most_if_intervals_are_apart(sources, is_said):
    assert ("flagged most often" in sentences(result_of(*sources))) is is_said


def test_headline_of_a_wide_interval_has_no_figure():
    wide = headline(result_of(auc=figure(0.7, 0.06, 1.0)))
    few = headline(result_of(auc=figure(0.9, 0.6, 1.0), tpr=figure(0.5, 0.1, 0.9)))
    said = "300 images are too few to say how good npr is: its"
    assert wide == f"{said} AUC could be anything from 0.06 to 1.00."
    assert few == f"{said} fraction of fakes found could be anything from 10 % to 90 %."


@pytest.mark.parametrize(
    ("tpr", "tnr", "said"),
    [
        (figure(0.914, 0.9, 0.93), figure(0.982, 0.975, 0.988), "npr finds 91 % of the fakes and wrongly flags 2 % of the real images."),
        (figure(0.9996, 0.99, 1.0), figure(0.9996, 0.99, 1.0), "npr finds over 99 % of the fakes and wrongly flags under 1 %"),
        (figure(0.8, 0.5, 0.95), figure(0.9, 0.86, 0.92), "npr finds 80 % (50 to 95 %) of the fakes and wrongly flags 10 %"),
        (figure(0.8), figure(None), "npr finds 80 % of the fakes; there was no real image to test it on."),
    ],
)  # fmt: skip
def test_headline_is_one_sentence_with_rounded_figures(tpr, tnr, said):
    sentence = headline(result_of(tpr=tpr, tnr=tnr))
    assert sentence.startswith(said)
    assert sentence.count(".") == 1


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.499, 0.743, "too few images to say whether there is a shortcut"),
        (0.45, 0.56, "no shortcut was found"),
    ],
)
def test_no_shortcut_is_said_only_where_one_is_ruled_out(low, high, words):
    said = sentences(result_of(shortcut=figure((low + high) / 2, low, high)))
    assert words in said
    assert ("no shortcut" in said) == words.startswith("no shortcut")


@pytest.mark.parametrize(
    ("generators", "sources", "words"),
    [
        (3, 1, "further images of the same generators and sources."),
        (8, 2, "further generators like these 8 and further real images of the same sources."),
        (8, 9, "further generators like these 8 and further sources of real images like these 9."),
        (3, 8, "further fakes of the same generators and further sources of real images like"),
    ],
)
def test_head_of_a_table_says_what_its_intervals_are_of(generators, sources, words):
    info = IntervalInfo.from_names(map(str, range(generators)), map(str, range(sources)))
    assert f"95 % intervals are for {words}" in info.words
