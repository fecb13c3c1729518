"""Measure how well the generators of images were named (`measure_identification`, `measure_pairs`).

The first function needs the predicted and the true name of each image, the second one only counts
of pairs of names. `measure_open_set` measures how well a confidence separates images of known
generators from images of other generators. The metrics are accuracy, F1, frequent confusions, top-k
accuracy, and AUROC. None as a predicted name means that no generator was named.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ray_app.metrics import intervals, registry, uncertainty
from ray_app.metrics.arrays import Counts, check_scores
from ray_app.metrics.values import MetricValue, undefined

Pairs = Mapping[tuple[str, str | None], int]
"""Number of images by true and predicted name."""
TOP = (1, 3, 5)
AVERAGES = (
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "macro_precision",
    "micro_precision",
    "macro_recall",
)
"""Averages over names. Micro and weighted recall are the accuracy."""
_NO_IMAGE = "no image of a known generator"
_NO_LIST = "no list of known generators"
_NO_CONFIDENCE = "no confidence with the predicted generators"
_MAX_PAIRS = 50
"""Maximum number of listed confusions. The counts of the classes include all."""


@dataclass(frozen=True)
class Identification:
    """Metrics of the names that were predicted for the generators of images.

    Attributes:
        figures: Metrics by name; see `measure_pairs`.
        classes: A dictionary for each true name, the most frequent name first. The keys are `name`,
            `n` (number of its images), `predicted` (number of images for which the name was
            predicted), `precision`, `recall`, and `f1`.
        pairs: The most frequent wrong answers (true name, predicted name, number of images), up to
            50.
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
    """Measure the names that were predicted for the generators of images.

    Args:
        predicted: Predicted names (n,).
        truth: True names (n,).
        rankings: Names for each image, the most probable first. They give the metrics `top_k`, the
            fraction of images whose true name is among the first k. None for no rankings.

    Raises:
        ValueError: The lengths differ.
    """
    if len(predicted) != len(truth) or (rankings is not None and len(rankings) != len(truth)):
        raise ValueError(f"got {len(predicted)} predicted names for {len(truth)} images")
    measured = measure_pairs(Counter(zip(truth, predicted, strict=True)))
    if rankings is None:
        return measured
    top = {}
    for k in TOP:
        hits = sum(name in ranking[:k] for name, ranking in zip(truth, rankings, strict=True))
        top[f"top_{k}"] = intervals.proportion(hits, len(truth), _NO_IMAGE)
    return replace(measured, figures=measured.figures | top)


def measure_pairs(
    pairs: Pairs, *, known: Collection[str] | None = None, top_k: Sequence[int] = TOP
) -> Identification:
    """Measure predicted names from the counts of pairs of a true and a predicted name.

    The accuracy and the averages over names, such as `macro_f1`, cover the images whose true name
    is in `known`. A missing name counts as wrong. Averages are those of scikit-learn with the true
    names as `labels` and `zero_division` 0. A name that is predicted but never true is therefore
    not a class of the average, in which it would have an F1 of 0.

    Among the images whose true name is not in `known`, `unknown_named` is the fraction for which a
    name in `known` was predicted. It is undefined if `known` is None. `open_set_auroc` is always
    undefined here. It needs confidences, see `measure_open_set`.

    Args:
        pairs: Number of images by true and predicted name.
        known: Names that could be predicted; None if all could.
        top_k: Values of k for the metrics `top_1`, `top_3`, and so on: the fraction of images whose
            true name is among the k most probable names. Only k = 1 has a value, because pairs have
            no rankings.

    Returns:
        The metrics.
    """
    known_pairs = {pair: n for pair, n in pairs.items() if known is None or pair[0] in known}
    n_known = sum(known_pairs.values())
    n_right = sum(n for (truth, predicted), n in known_pairs.items() if truth == predicted)
    accuracy = intervals.proportion(n_right, n_known, _NO_IMAGE)
    metrics = {"accuracy": accuracy}
    for k in top_k:
        no_ranking = undefined("no ranking of generators with the predicted ones")
        metrics[f"top_{k}"] = accuracy if k == 1 else no_ranking
    confusion = _Confusion.from_pairs(known_pairs)
    metrics |= _measure_averages(confusion)
    unknown_pairs = {pair: n for pair, n in pairs.items() if pair not in known_pairs}
    metrics["unknown_named"] = intervals.proportion(
        sum(n for (_, predicted), n in unknown_pairs.items() if predicted in (known or ())),
        sum(unknown_pairs.values()),
        _NO_LIST if known is None else "no image of an unknown generator",
    )
    metrics["open_set_auroc"] = undefined(_NO_LIST if known is None else _NO_CONFIDENCE)
    wrong = [(truth, predicted, n) for (truth, predicted), n in pairs.items() if truth != predicted]
    wrong.sort(key=lambda pair: (-pair[2], pair[0], pair[1] or ""))
    return Identification(metrics, _measure_classes(confusion, known_pairs), wrong[:_MAX_PAIRS])


def measure_open_set(
    truth: Sequence[str], known: Collection[str] | None, confidence: ArrayLike | None
) -> MetricValue:
    """Return the AUC with which a confidence separates images of known and unknown generators.

    Known generators are those that an identifier, a model that names generators, can predict.

    The AUC is undefined without `known` or `confidence`. It also needs images of both known and
    unknown generators.

    Args:
        truth: True names (n,).
        known: Names that could be predicted; None if they are not recorded.
        confidence: Confidence that the generator of each image is known (n,); None if it was not
            recorded.

    Raises:
        ValueError: The lengths differ.
    """
    if known is None:
        return undefined(_NO_LIST)
    if confidence is None:
        return undefined(_NO_CONFIDENCE)
    values = np.asarray(confidence, np.float64)
    if values.shape != (len(truth),):
        raise ValueError(f"got {len(values)} confidences for {len(truth)} images")
    is_known = np.array([name in known for name in truth], np.bool_)
    if is_known.all() or not is_known.any():
        return undefined("needs images of known and of unknown generators", len(truth))
    images = registry.ScoredImages.from_scores(*check_scores(values, is_known))
    sample = registry.Resampled.in_blocks(images)
    return registry.measure(registry.METRICS["auc"], images, sample)


class _Confusion(NamedTuple):
    """Counts of pairs, ordered by name so that random blocks do not depend on the order of rows.

    Attributes:
        names: True names.
        truth: Index of the true name of each pair.
        predicted: Index of the predicted name; the number of names if it is not among them.
        counts: Number of images of each pair.
    """

    names: list[str]
    truth: Counts
    predicted: Counts
    counts: Counts

    @classmethod
    def from_pairs(cls, pairs: Pairs) -> "_Confusion":
        names = sorted({truth for truth, _ in pairs})
        codes: dict[str | None, int] = {name: code for code, name in enumerate(names)}
        ordered = sorted(pairs.items(), key=lambda pair: (pair[0][0], pair[0][1] or ""))
        return cls(
            names,
            np.array([codes[truth] for (truth, _), _ in ordered], np.int64),
            np.array([codes.get(name, len(names)) for (_, name), _ in ordered], np.int64),
            np.array([n for _, n in ordered], np.int64),
        )

    def score(self, counts: Counts, average: str | None = None) -> Any:
        """Return scikit-learn's precision, recall, F1, and support for counts of the pairs."""
        from sklearn.metrics import precision_recall_fscore_support

        return precision_recall_fscore_support(
            self.truth,
            self.predicted,
            labels=range(len(self.names)),
            average=average,
            sample_weight=counts,
            zero_division=0,
        )

    def compute_averages(self, counts: Counts) -> dict[str, float]:
        """Return `AVERAGES` over the names that have an image."""
        precision, recall, f1, support = self.score(counts)
        micro_precision, _, micro_f1, _ = self.score(counts, "micro")
        has_image = support > 0
        return {
            "macro_f1": float(f1[has_image].mean()),
            "micro_f1": float(micro_f1),
            "weighted_f1": float(np.average(f1, weights=support)),
            "macro_precision": float(precision[has_image].mean()),
            "micro_precision": float(micro_precision),
            "macro_recall": float(recall[has_image].mean()),
        }

    def iter_blocks(self) -> Iterator[Counts]:
        """Yield the counts of the pairs in random blocks of images."""
        random = np.random.default_rng(0)
        remaining, n = self.counts.copy(), int(self.counts.sum())
        blocks = min(uncertainty.BLOCKS, n)
        for index in range(blocks):
            size = n * (index + 1) // blocks - n * index // blocks
            block = random.multivariate_hypergeometric(remaining, size, method="marginals")
            remaining -= block
            yield block


def _measure_averages(confusion: _Confusion) -> dict[str, MetricValue]:
    """Measure `AVERAGES`, each with the jackknife's interval over random blocks of images."""
    n = int(confusion.counts.sum())
    if not n:
        return dict.fromkeys(AVERAGES, undefined(_NO_IMAGE))
    values = confusion.compute_averages(confusion.counts)
    if n < uncertainty.MIN_GROUPS:
        reason = f"an interval needs {uncertainty.MIN_GROUPS} images; there are {n}"
        return {name: MetricValue(value=value, n=n, why=reason) for name, value in values.items()}
    blocks = list(confusion.iter_blocks())
    fractions = np.array([block.sum() / n for block in blocks])
    replicates = [confusion.compute_averages(confusion.counts - block) for block in blocks]
    measured = {}
    for name, value in values.items():
        without = np.array([replicate[name] for replicate in replicates])
        metric = MetricValue(value=value, n=n)
        interval = uncertainty.jackknife(value, [uncertainty.Replicates(without, fractions)])
        measured[name] = (
            metric if interval is None else metric.with_interval(interval, uncertainty.JACKKNIFE)
        )
    return measured


def _measure_classes(confusion: _Confusion, pairs: Pairs) -> list[dict[str, Any]]:
    """Measure each true name, the most frequent first."""
    if not confusion.names:
        return []
    _, _, f1, support = confusion.score(confusion.counts)
    predicted: Counter[str | None] = Counter()
    for (_, name), count in pairs.items():
        predicted[name] += count
    rows = []
    for name, n, value in zip(
        confusion.names, support.astype(int).tolist(), f1.tolist(), strict=True
    ):
        hits = pairs.get((name, name), 0)
        rows.append(
            {
                "name": name,
                "n": n,
                "predicted": predicted[name],
                "precision": intervals.proportion(hits, predicted[name], "never predicted"),
                "recall": intervals.proportion(hits, n, "no image"),
                "f1": MetricValue(value=value, n=n),
            }
        )
    return sorted(rows, key=lambda row: (-row["n"], row["name"]))
