"""Generator identification: accuracy, F1, confusions and top-k (`measure_identification`), and the open-set
AUROC (`open_set_auroc`).

None in place of a name: none was given.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics import intervals, registry, uncertainty
from ray_app.metrics.arrays import Counts, Floats, checked
from ray_app.metrics.values import MetricValue, undefined

Pairs = Mapping[tuple[str, str | None], int]
"""How many images have each pair of true and predicted name."""
TOP = (1, 3, 5)
AVERAGES = (
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "macro_precision",
    "micro_precision",
    "macro_recall",
)
"""Over names; micro and weighted recall are the accuracy."""
_NO_IMAGE = "no image of a known generator"
_NO_LIST = "no list of known generators"
_NO_CONFIDENCE = "no confidence beside the predicted generators"
_MOST_PAIRS = 50  # confusions listed; those after them are in the classes' own counts


@dataclass(frozen=True)
class Identification:
    """`figures` by name, see `measure_identification`. `classes`: per true name, most frequent first, n,
    how often it was predicted, precision, recall and F1. `pairs`: (true, predicted, n) of wrong
    answers, most frequent first, at most 50.
    """

    figures: dict[str, MetricValue]
    classes: list[dict[str, Any]]
    pairs: list[tuple[str, str | None, int]]


def measure_identification(
    predicted: Sequence[str | None],
    truth: Sequence[str],
    *,
    rankings: Sequence[Sequence[str]] | None = None,
) -> Identification:
    """The figures of names (n,) against the true ones (n,), all of which are known: those of
    `measure_pairs`.

    With `rankings` (best first) also, for each k of `TOP`, the share of images whose true name is
    among the first k; only for k = 1 does the predicted name serve without. Raises ValueError for
    lengths that differ.
    """
    if len(predicted) != len(truth) or (rankings is not None and len(rankings) != len(truth)):
        raise ValueError(f"{len(predicted)} predicted names for {len(truth)} images")
    found = measure_pairs(Counter(zip(truth, predicted, strict=True)))
    if rankings is None:
        return found
    among = {
        k: sum(name in ranking[:k] for name, ranking in zip(truth, rankings, strict=True))
        for k in TOP
    }
    return replace(
        found,
        figures=found.figures
        | {f"top_{k}": intervals.proportion(n, len(truth), _NO_IMAGE) for k, n in among.items()},
    )


def measure_pairs(
    pairs: Pairs, *, known: Collection[str] | None = None, top_k: Sequence[int] = TOP
) -> Identification:
    """Accuracy and `AVERAGES` over the images of `known` names (None: all are), and what became of
    the others.

    A missing name is a wrong one. Macro figures are means over the true names, weighted ones those
    by their images, micro ones of all answers together: scikit-learn's with `labels` the true names
    and `zero_division` 0; a name that is only ever predicted is no class of its own (scikit-learn's
    default would count it as one of F1 = 0). `unknown_named`: the share of images of unknown names
    that got a known one.
    """
    among = {pair: n for pair, n in pairs.items() if known is None or pair[0] in known}
    others = {pair: n for pair, n in pairs.items() if pair not in among}
    counts, n = _Confusion(among), sum(among.values())
    figures = {"accuracy": intervals.proportion(int(counts.hits.sum()), n, _NO_IMAGE)}
    figures |= {
        f"top_{k}": figures["accuracy"]
        if k == 1
        else undefined("no ranking of generators beside the predicted ones")
        for k in top_k
    }
    figures |= counts.averages()
    figures["unknown_named"] = intervals.proportion(
        sum(n for (_, name), n in others.items() if name is not None and name in (known or ())), sum(others.values()),
        "no image of an unknown generator" if known is not None else _NO_LIST,
    )  # fmt: skip
    figures["open_set_auroc"] = undefined(_NO_LIST if known is None else _NO_CONFIDENCE)
    wrong = sorted(
        ((truth, name, n) for (truth, name), n in pairs.items() if truth != name),
        key=lambda one: (-one[2], one[0], one[1] or ""),
    )
    return Identification(figures, counts.classes(), wrong[:_MOST_PAIRS])


def open_set_auroc(
    truth: Sequence[str], known: Collection[str] | None, confidence: ArrayLike | None
) -> MetricValue:
    """The AUC of confidence (n,) for images of known names against those of unknown ones."""
    if known is None:
        return undefined(_NO_LIST)
    if confidence is None:
        return undefined(_NO_CONFIDENCE)
    numbers = np.asarray(confidence, np.float64)
    if numbers.shape != (len(truth),):
        raise ValueError(f"{len(numbers)} confidences for {len(truth)} images")
    is_known = np.array([name in known for name in truth], np.bool_)
    if is_known.all() or not is_known.any():
        return undefined("needs images of known and of unknown generators", len(truth))
    images = registry.ScoredImages.from_scores(*checked(numbers, is_known))
    sample = registry.Resampled.in_blocks(images)
    return registry.measure(registry.METRICS["auc"], images, sample)


class _Confusion:
    """The counts of pairs as arrays: what resampling images does to them is one multinomial draw."""

    def __init__(self, pairs: Pairs) -> None:
        # draws must not hang on the order of rows
        pairs = dict(sorted(pairs.items(), key=lambda one: (one[0][0], one[0][1] or "")))
        names = sorted({truth for truth, _ in pairs})
        self._places = {name: place for place, name in enumerate(names)}
        outside = len(names)  # all names that are nobody's, and none
        self._truth = np.array([self._places[truth] for truth, _ in pairs], np.int64)
        self._answers = np.array(
            [self._places.get(name, outside) if name is not None else outside for _, name in pairs],
            np.int64,
        )
        self._n = np.array(list(pairs.values()), np.int64)
        self.hits, self.support, self.predicted = self._sums(self._n)

    def averages(self) -> dict[str, MetricValue]:
        """`AVERAGES`, each with the jackknife's interval over random blocks of images."""
        n = int(self._n.sum())
        if not n:
            return dict.fromkeys(AVERAGES, undefined(_NO_IMAGE))
        values = _averages(self.hits, self.support, self.predicted)
        if n < uncertainty.MIN_GROUPS:
            why = f"an interval needs {uncertainty.MIN_GROUPS} images; there are {n}"
            return {
                name: MetricValue(value=value, n=n, why=why)
                for name, value in zip(AVERAGES, values, strict=True)
            }
        left_out, sizes = [], []
        for block in self._blocks():
            sizes.append(block.sum() / n)
            left_out.append(_averages(*self._sums(self._n - block)))
        found = {}
        for place, (name, value) in enumerate(zip(AVERAGES, values, strict=True)):
            part = uncertainty.Replicates(np.array(left_out)[:, place], np.array(sizes))
            ends = uncertainty.jackknife(value, [part])
            if ends is None:
                found[name] = MetricValue(value=value, n=n)
            else:
                found[name] = MetricValue(value, *ends, n=n, method=uncertainty.JACKKNIFE)
        return found

    def _blocks(self) -> Iterator[Counts]:
        """Counts of the pairs in random blocks of images."""
        random = np.random.default_rng(0)
        rest, n = self._n.copy(), int(self._n.sum())
        blocks = min(uncertainty.BLOCKS, n)
        for number in range(blocks):
            size = n * (number + 1) // blocks - n * number // blocks
            block = random.multivariate_hypergeometric(rest, size, method="marginals")
            rest -= block
            yield block

    def classes(self) -> list[dict[str, Any]]:
        """One row per name, most frequent first."""
        f1 = _f1(self.hits, self.support, self.predicted)
        rows = []
        for name, hits, n, predicted, own in zip(
            self._places, self.hits, self.support, self.predicted, f1, strict=True
        ):
            precision = intervals.proportion(int(hits), int(predicted), "never predicted")
            recall = intervals.proportion(int(hits), int(n), "no image")
            figures = {
                "precision": precision,
                "recall": recall,
                "f1": MetricValue(value=float(own), n=int(n)),
            }
            rows.append({"name": name, "n": int(n), "predicted": int(predicted)} | figures)
        return sorted(rows, key=lambda row: (-row["n"], row["name"]))

    def _sums(self, weights: Counts) -> tuple[Floats, Floats, Floats]:
        """By name: how often rightly predicted, how often true, how often predicted."""
        size = len(self._places)
        hits = np.bincount(
            self._truth, weights=weights * (self._truth == self._answers), minlength=size
        )
        support = np.bincount(self._truth, weights=weights, minlength=size)
        predicted = np.bincount(self._answers, weights=weights, minlength=size + 1)[:size]
        return hits.astype(np.float64), support.astype(np.float64), predicted.astype(np.float64)


def _averages(hits: Floats, support: Floats, predicted: Floats) -> tuple[float, ...]:
    """`AVERAGES` of counts by name."""
    there = support > 0
    f1, precision, recall = (
        _f1(hits, support, predicted),
        hits / np.maximum(predicted, 1),
        hits / np.maximum(support, 1),
    )
    means = [float(one[there].mean()) for one in (f1, precision, recall)]
    micro = 2 * hits.sum() / (support.sum() + predicted.sum())
    weighted = f1 @ support / support.sum()
    return (
        means[0],
        float(micro),
        float(weighted),
        means[1],
        float(hits.sum() / max(predicted.sum(), 1)),
        means[2],
    )


def _f1(hits: Floats, support: Floats, predicted: Floats) -> Floats:
    """2 hits / (support + predicted), 0 where both are."""
    return np.asarray(2 * hits / np.maximum(support + predicted, 1))
