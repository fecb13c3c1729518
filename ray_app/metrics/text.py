"""How close a predicted prompt is to the true one: `bleu4`, `rouge_l`, `token_f1`, `tag_jaccard`.

sacrebleu and rouge-score come with `touchstone-forensics[evaluate]`; without them their figures are undefined, with that reason.
"""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np

from ray_app.metrics import arrays, intervals

_NOTHING = "no image with both a predicted and a true prompt"
_EXTRA = "needs {}: pip install 'touchstone-forensics[evaluate]'"

_WORD = re.compile(r"[^\W_]+")


def bleu4(predicted: Sequence[str], truth: Sequence[str]) -> arrays.FigureFacts:
    """BLEU-4 of the corpus, 0 … 1 (Papineni et al. 2002; sacrebleu: tokens 13a, lower case, smoothing `exp`), bootstrapped over images."""
    if find_spec("sacrebleu") is None:
        return arrays.undefined(_EXTRA.format("sacrebleu"))
    from sacrebleu.metrics.bleu import BLEU

    # With effective order sacrebleu counts the n-grams of one sentence without a warning; the corpus' score is made without it.
    sentence = BLEU(lowercase=True, effective_order=True)
    found = [sentence.sentence_score(one, [other]) for one, other in zip(predicted, truth, strict=True)]
    if not found:
        return arrays.undefined(_NOTHING)
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], np.int64)

    def score(sums: arrays.Counts) -> float:
        numbers = sums.tolist()
        return float(BLEU.compute_bleu(numbers[:4], numbers[4:8], numbers[8], numbers[9], smooth_method="exp").score / 100)

    generator, n = np.random.default_rng(0), len(counts)
    drawn = [score(np.bincount(generator.integers(n, size=n), minlength=n) @ counts) for _ in range(intervals.DRAWS)] if n > 1 else []
    return intervals.resampled(score(counts.sum(axis=0)), drawn, n)


def rouge_l(predicted: Sequence[str], truth: Sequence[str]) -> arrays.FigureFacts:
    """The mean over images of ROUGE-L's F measure (Lin 2004, rouge-score) on `words_of`, which for English are its own words."""
    if find_spec("rouge_score") is None:
        return arrays.undefined(_EXTRA.format("rouge-score"))
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=words_of))
    return intervals.mean_figure(
        [scorer.score(other, one)["rougeL"].fmeasure for one, other in zip(predicted, truth, strict=True)], _NOTHING
    )


def token_f1(predicted: Sequence[str], truth: Sequence[str]) -> arrays.FigureFacts:
    """The mean over images of 2 · shared / all words, each as often as it stands there; two texts without words are alike."""
    return intervals.mean_figure([_shared(one, other) for one, other in zip(predicted, truth, strict=True)], _NOTHING)


def tag_jaccard(predicted: Sequence[str], truth: Sequence[str]) -> arrays.FigureFacts:
    """The mean over images of Jaccard's index of both sets of tags, what stands between commas (specs/localization.md §6.2.5).

    Tags are compared word by word, without case and punctuation; two texts without tags are alike.
    """
    return intervals.mean_figure([_jaccard(tags_of(one), tags_of(other)) for one, other in zip(predicted, truth, strict=True)], _NOTHING)


def words_of(text: str) -> list[str]:
    """The words of a text in any script, without case and punctuation: what ROUGE-L and token F1 compare."""
    return _WORD.findall(text.casefold())


def tags_of(text: str) -> set[str]:
    """The different parts of a text between commas."""
    return {" ".join(words) for part in text.split(",") if (words := words_of(part))}


def _shared(predicted: str, truth: str) -> float:
    one, other = Counter(words_of(predicted)), Counter(words_of(truth))
    every = one.total() + other.total()
    return 2 * (one & other).total() / every if every else 1.0


def _jaccard(one: set[str], other: set[str]) -> float:
    every = one | other
    return len(one & other) / len(every) if every else 1.0
