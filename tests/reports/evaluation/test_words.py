"""Sentences say no more than the intervals behind them."""

import pytest

from ray_app.metrics.intervals import proportion_interval
from ray_app.reports.evaluation.model import EvaluationDocument
from ray_app.reports.evaluation.text import answers, headline
from tests.reports.test_leaderboard import evaluation, figure, generator, system


def document_of(*sources, **figures):
    """An evaluation of one system; `sources`: of real images, each with how many of how many are told right."""
    reals = []
    for place, (right, n) in enumerate(sources):
        reals.append(generator(f"camera {place}", label="real", n=n) | {"rate": figure(right / n, *proportion_interval(right, n), n=n)})
    one = system("npr", generators=[*reals, generator("a")])
    return EvaluationDocument.model_validate(evaluation(one | {"figures": one["figures"] | figures}))


def sentences(document):
    return " ".join(sentence for answer in answers(document) for sentence in answer.sentences)


@pytest.mark.parametrize(
    ("sources", "is_said"),
    [
        ([(16, 16), (40, 40)], False),  # nothing was flagged
        ([(15, 16), (400, 400)], False),  # one of 16, and the interval reaches the others'
        ([(8, 16), (396, 400)], True),
        ([(200, 400), (210, 400)], False),
        ([(200, 400), (300, 400)], True),
        ([(8, 16)], False),
    ],
)
def test_a_source_is_flagged_most_only_where_its_interval_lies_apart(sources, is_said):
    assert ("flagged most" in sentences(document_of(*sources))) is is_said


def test_a_headline_of_too_wide_an_interval_says_so_in_words():
    wide = headline(document_of(auc=figure(0.7, 0.06, 1.0)))
    assert wide == "npr: 300 images are too few to say how good it is (ROC AUC anywhere from 0.0600 to 1.0000)."
    assert headline(document_of(auc=figure(0.9, 0.6, 1.0))).startswith("npr: ROC AUC 0.9000 (0.6000 to 1.0000) on 300 images")


@pytest.mark.parametrize(
    ("low", "high", "words"), [(0.499, 0.743, "too few images to say whether there is a shortcut"), (0.45, 0.56, "no shortcut was found")]
)
def test_no_shortcut_is_said_only_where_one_is_ruled_out(low, high, words):
    document = document_of().model_dump()
    document["data"]["shortcut"] = {"auc": figure((low + high) / 2, low, high), "confounded": False}
    said = sentences(EvaluationDocument.model_validate(document))
    assert words in said
    assert ("no shortcut" in said) == words.startswith("no shortcut")
