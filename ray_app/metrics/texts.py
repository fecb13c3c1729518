"""How close a predicted prompt comes to the true one: BLEU-4, ROUGE-L and token F1. Knows texts; knows no images and no models.

sacrebleu and rouge-score come with `touchstone[evaluate]`; without them their figures are not defined, and say so.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import Counts
from ray_app.metrics.means import DRAWS, mean_figure, resampled

_NOTHING = "no image with both a predicted and a true prompt"
_EXTRA = "needs {}: pip install 'touchstone[evaluate]'"

_LEADING_URLS = re.compile(r"\A(?:\s*<?https?://\S+)+")
_NETWORK = re.compile(r"<[A-Za-z]\w*:[^<>]*>")  # <lora:name:0.6>, <hypernet:name:1>, <lyco:name:1>
_UNWANTED = re.compile(r"(?:(?<=\s)|\A)(?:--|—)no\s.*?(?=\s(?:--|—)[A-Za-z]|\Z)", re.DOTALL)
_VALUE = r"(?:https?://\S+|[-\d.:]\S*|raw|random|cute|expressive|original|scenic)"
_PARAMETER = re.compile(rf"(?:(?<=\s)|\A)(?:--|—)[A-Za-z]\w*(?:[\s=]+{_VALUE}(?=\s|\Z))*")
_PART_WEIGHT = re.compile(r"::\s*-?(?:\d+(?:\.\d*)?|\.\d+)?")
_ESCAPED = re.compile(r"\\([()\[\]{}])")
_TOKEN_WEIGHT = re.compile(r":\s*-?(?:\d+(?:\.\d*)?|\.\d+)\s*(?=[)\]])")
_EDIT = re.compile(r"\[([^\[\]]*)\]")  # [from:to:0.5] and [one|other]
_COMMAS = re.compile(r" ?,(?: ?,)* ?")
_BREAK = re.compile(r"\bBREAK\b")
_WORD = re.compile(r"[^\W_]+")


def normalised_prompt(prompt: str) -> str:
    """The words of a prompt without the syntax of Stable Diffusion's and Midjourney's front ends (specs/localization.md §5.1).

    Dropped: leading image links, `<lora:…>` and its like, `--ar 16:9` and every other parameter (`--no x, y` with what it forbids),
    weights `::2` and `(word:1.3)`, the brackets of emphasis, BREAK. Kept: brackets written `\\(so\\)`, both sides of `[from:to:0.5]`.
    """
    text = _one_line(unicodedata.normalize("NFKC", prompt))
    for dropped in (_LEADING_URLS, _NETWORK, _UNWANTED, _PARAMETER, _PART_WEIGHT, _BREAK):
        text = _one_line(dropped.sub(" ", text))  # runs of spaces would cost their square
    text = _ESCAPED.sub(lambda found: _KEPT[found[1]], text)
    text = _EDIT.sub(lambda found: re.sub(r"[:|]", " ", found[1]), _TOKEN_WEIGHT.sub("", text))
    text = re.sub(r"[()\[\]{}]", "", text)
    text = "".join(_RESTORED.get(letter, letter) for letter in text)
    return _COMMAS.sub(", ", _one_line(text)).strip(", ")


def _one_line(text: str) -> str:
    """The same with one space wherever there was any."""
    return " ".join(text.split())


_KEPT = {bracket: chr(0xE000 + place) for place, bracket in enumerate("()[]{}")}
_RESTORED = {letter: bracket for bracket, letter in _KEPT.items()}


def words_of(text: str) -> list[str]:
    """The words of a text in any script, without case and punctuation: what ROUGE-L and token F1 compare."""
    return _WORD.findall(text.casefold())


def token_f1(predicted: Sequence[str], truth: Sequence[str]) -> Figure:
    """The mean over images of 2 · shared / all words, each as often as it stands there; two texts without words are alike."""
    return mean_figure([_shared(one, other) for one, other in zip(predicted, truth, strict=True)], _NOTHING)


def rouge_l(predicted: Sequence[str], truth: Sequence[str]) -> Figure:
    """The mean over images of ROUGE-L's F measure (Lin 2004, rouge-score) on `words_of`, which for English are its own words."""
    if find_spec("rouge_score") is None:
        return undefined(_EXTRA.format("rouge-score"))
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return mean_figure([scorer.score(other, one)["rougeL"].fmeasure for one, other in zip(predicted, truth, strict=True)], _NOTHING)


def bleu4(predicted: Sequence[str], truth: Sequence[str]) -> Figure:
    """BLEU-4 of the corpus, 0 … 1 (Papineni et al. 2002; sacrebleu: tokens 13a, lower case, smoothing `exp`), bootstrapped over images."""
    if find_spec("sacrebleu") is None:
        return undefined(_EXTRA.format("sacrebleu"))
    from sacrebleu.metrics.bleu import BLEU

    # With effective order sacrebleu counts the n-grams of one sentence without a warning; the corpus' score is made without it.
    sentence = BLEU(lowercase=True, effective_order=True)
    found = [sentence.sentence_score(one, [other]) for one, other in zip(predicted, truth, strict=True)]
    if not found:
        return undefined(_NOTHING)
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], np.int64)

    def score(sums: Counts) -> float:
        numbers = sums.tolist()
        return float(BLEU.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp").score / 100)

    generator, n = np.random.default_rng(0), len(counts)
    drawn = [score(np.bincount(generator.integers(n, size=n), minlength=n) @ counts) for _ in range(DRAWS)] if n > 1 else []
    return resampled(score(counts.sum(axis=0)), drawn, n)


class _Words:
    """`words_of`, as rouge-score asks for it."""

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words_of(text)


def _shared(predicted: str, truth: str) -> float:
    one, other = Counter(words_of(predicted)), Counter(words_of(truth))
    every = one.total() + other.total()
    return 2 * (one & other).total() / every if every else 1.0
