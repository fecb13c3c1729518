"""What was measured, as a card says it: one line per figure, with n and the 95 % interval. Knows figures and cards; computes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.detectors.cards import Figure

MOST_GENERATORS = 40  # beyond it a card would be a table of thousands of rows; metrics.json has them all

# The keys of `metrics.detection_figures` and `pixel_figures` (whose `n` counts masks), as cards call them, and which images they are of.
# `at 0` means: fake above log-odds 0.
_IN_WORDS = {
    "auc": ("AUC", "all"),
    "average_precision": ("average precision", "all"),
    "mean_generator_auc": ("AUC, mean over generators", "all"),
    "worst_generator_auc": ("AUC, worst generator", "all"),
    "tpr_at_fpr_1": ("TPR at 1 % FPR", "fake"),
    "balanced_accuracy": ("balanced accuracy at 0", "all"),
    "f1": ("F1 at 0", "all"),
    "pixel_f1": ("pixel F1", "masks"),
    "pixel_iou": ("pixel IoU", "masks"),
}


def card_figures(
    figures: Mapping[str, Any], where: str, source: str, note: str | None = None, *, each_generator: bool = True
) -> tuple[Figure, ...]:
    """The figures of one split under the name `where`, and those of each generator where there are at most 40; absent ones left out."""
    told = list(_overall(figures, where, note))
    if each_generator and len(figures["generators"]) <= MOST_GENERATORS:
        told += _of_generators(figures["generators"], where, note)
    return tuple(Figure(verified=True, source=source, **figure) for figure in told)


def _overall(figures: Mapping[str, Any], where: str, note: str | None) -> Iterator[dict[str, Any]]:
    counts = {"all": figures["n_real"] + figures["n_fake"], "fake": figures["n_fake"], "masks": figures.get("n")}
    for key, (metric, of) in _IN_WORDS.items():
        if figures.get(key) is not None:
            yield _figure(where, metric, figures[key], counts[of], _note(figures.get(f"{key}_interval"), note))


def _of_generators(generators: Mapping[str, Mapping[str, Any]], where: str, note: str | None) -> Iterator[dict[str, Any]]:
    for name, own in generators.items():
        if own.get("auc") is not None and own["label"] == "fake":
            yield _figure(f"{where}, {name}", "AUC against all reals", own["auc"], own["n"], _note(own["auc_interval"], note))
        metric = "tpr" if own["label"] == "fake" else "tnr"
        yield _figure(f"{where}, {name}", f"{metric.upper()} at 0", own[metric], own["n"], _note(own["interval"], note))


def _figure(where: str, metric: str, value: float, n: int | None, note: str | None) -> dict[str, Any]:
    return {"set": where, "metric": metric, "value": round(float(value), 4), "n": n, "note": note}


def _note(interval: Sequence[float] | None, further: str | None) -> str | None:
    told = None if interval is None else f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
    return "; ".join(filter(None, (told, further))) or None
