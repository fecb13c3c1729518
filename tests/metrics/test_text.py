import importlib.util

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from ray_app.attribution.prompts import normalised_prompt
from ray_app.metrics.attribution import bleu4, rouge_l, tag_jaccard, tags_of, token_f1, words_of

TRUTH = [
    "oil painting of a lighthouse in thick fog, dramatic light, 4k",
    "a cat",
    "portrait of an old man, film grain, 85mm",
    "Café at night. Rain!",
    "",
]
PREDICTED = [
    "an oil painting of a lighthouse in the fog, dramatic light",
    "dogs",
    "portrait of a young man, film grain, 35mm",
    "café at night, rain",
    "something",
]


def test_bleu_is_sacrebleu_s_of_the_corpus():
    found = bleu4(PREDICTED, TRUTH)
    assert found.value == pytest.approx(BLEU(lowercase=True).corpus_score(PREDICTED, [TRUTH]).score / 100, abs=1e-9)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.n == 5


@pytest.mark.parametrize(("one", "other"), [(TRUTH[1], TRUTH[1]), ("", "a"), ("a", ""), ("", ""), ("x y", "p q")])
def test_bleu_of_one_short_text_is_sacrebleu_s(one, other):
    found = bleu4([one], [other])
    assert found.value == pytest.approx(BLEU(lowercase=True).corpus_score([one], [[other]]).score / 100, abs=1e-9)
    assert found.ends is None


def test_rouge_l_is_rouge_score_s_mean():
    plain = [text.replace("é", "e") for text in TRUTH], [text.replace("é", "e") for text in PREDICTED]
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score(truth, said)["rougeL"].fmeasure for truth, said in zip(*plain, strict=True)]
    assert rouge_l(plain[1], plain[0]).value == pytest.approx(sum(expected) / 5, abs=1e-9)


def test_tags_are_what_stands_between_commas():
    assert tags_of("A cat,  film GRAIN ,, (a cat), 4k.") == {"a cat", "film grain", "4k"}
    found = tag_jaccard(["a cat, 4k", "a dog", "", "x"], ["A cat, film grain, 4K", "a cat", "", ""])
    assert found.value == pytest.approx((2 / 3 + 0 + 1 + 0) / 4)
    assert found.n == 4


def test_words_are_those_of_any_script():
    assert words_of("Кот_и ПЁС, 猫!") == ["кот", "и", "пёс", "猫"]
    assert rouge_l(["кот и пёс"], ["кот и дом"]).value == pytest.approx(2 / 3)


def test_token_f1_is_that_of_multisets():
    expected = []
    for said, truth in zip(PREDICTED, TRUTH, strict=True):
        left = words_of(said)
        shared = sum(1 for word in words_of(truth) if word in left and not left.remove(word))
        every = len(words_of(said)) + len(words_of(truth))
        expected.append(2 * shared / every if every else 1.0)
    assert token_f1(PREDICTED, TRUTH).value == pytest.approx(sum(expected) / 5, abs=1e-9)
    assert token_f1(["a a b"], ["a c"]).value == pytest.approx(0.4)
    assert token_f1([", ."], ["!"]).value == 1


@pytest.mark.parametrize("figure", [bleu4, rouge_l, token_f1])
def test_no_pairs_are_no_figure_and_unequal_ones_an_error(figure):
    assert figure([], []).why == "no image with both a predicted and a true prompt"
    with pytest.raises(ValueError, match="argument 2 is longer"):
        figure(["a"], ["a", "b"])


@pytest.mark.parametrize(("figure", "package"), [(bleu4, "sacrebleu"), (rouge_l, "rouge_score")])
def test_a_library_that_is_not_there_is_named(figure, package, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("ray_app.metrics.attribution.find_spec", lambda name: None if name == package else real(name))
    assert "touchstone-forensics[evaluate]" in figure(["a"], ["a"]).why


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("oil painting of a lighthouse in fog, <lora:foo:0.6>", "oil painting of a lighthouse in fog"),
        ("(masterpiece:1.3), ((best quality)), [blurry], cat", "masterpiece, best quality, blurry, cat"),
        ("a (red (fox:1.2):0.8) on snow", "a red fox on snow"),
        ("a [cat:dog:0.5] on [grass|sand]", "a cat dog on grass sand"),
        ("hot dog:: food::2 red::-.5 plate --ar 16:9 --v 5.2", "hot dog food red plate"),
        ("https://host/a.png <https://host/b.png> a castle --iw 2 --no trees, cars --seed 7", "a castle"),
        ("castle, , ,moat ,  BREAK tower,", "castle, moat, tower"),
        ("a dog - brown, half-timbered house, 5:4 picture", "a dog - brown, half-timbered house, 5:4 picture"),
        ("", ""),
        ("ﬁne café", "fine café"),
    ],
)
def test_front_end_syntax_is_dropped(prompt, expected):
    assert normalised_prompt(prompt) == expected
    assert normalised_prompt(expected) == expected


def test_normalising_takes_time_in_proportion():
    for hostile in (
        "(" * 50_000,
        "[" * 50_000,
        "--no " * 10_000,
        "--a " * 10_000,
        "::" * 50_000,
        "<a:" * 20_000,
        ", " * 50_000,
        "https://" * 9_000,
    ):
        assert len(normalised_prompt(hostile)) <= len(hostile)
