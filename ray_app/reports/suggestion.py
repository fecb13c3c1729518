"""What `touchstone ensembles suggest` found, as lines for the terminal (`suggestion_lines`) and as plain JSON."""

from collections.abc import Sequence

from ray_app.config import Section
from ray_app.reports import format as wording
from ray_app.reports import text

_LONGEST_NAME = 60


class StepFacts(Section):
    """The ensemble of the detectors up to this one. `figure`: the mean over held-out folds, from `lowest` to `highest`; `gain`: what the
    detector added there, on average; `chosen_in`: in how many folds' own choices it is by then; `cost`: of all so far.
    """

    detector: str = ""
    figure: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    gain: float = 0.0
    gains: tuple[float, ...] = ()
    chosen_in: int = 0
    cost: float = 0.0


class SuggestionReport(Section):
    """`best`: the most of figure `by`; `cheapest`: the most of it per cost, in `unit`. `copies`: (detector, whom it is a copy of)."""

    run: str = ""
    labels: str = ""
    by: str = "auc"
    unit: str = ""
    images: int = 0
    n_real: int = 0
    n_fake: int = 0
    candidates: tuple[str, ...] = ()
    folds: int = 0
    folds_are: str = ""
    best: tuple[StepFacts, ...] = ()
    cheapest: tuple[StepFacts, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    card: str = ""


def suggestion_lines(report: SuggestionReport, width: int) -> list[str]:
    """The report in at most `width` columns but for words that are longer."""
    counts = f"{report.images:,} images ({report.n_real:,} real, {report.n_fake:,} fake)"
    detectors = wording.counted(len(report.candidates), "detector")
    lines = text.paragraph(f"{counts}, {detectors}. {report.folds_are}", width)
    lines += ["", f"The most {wording.named(report.by)}:", *_table(report, report.best, width)]
    if [one.detector for one in report.cheapest] == [one.detector for one in report.best]:
        lines += ["", "The most per cost: the same, in this order."]
    else:
        lines += ["", "The most per cost:", *_table(report, report.cheapest, width)]
    lines += [f"left out: {name} ranks images as {other} does" for name, other in report.copies]
    for remark in report.remarks:
        lines += text.paragraph(f"! {wording.visible(remark)}", width)
    return lines


def _table(report: SuggestionReport, steps: Sequence[StepFacts], width: int) -> list[str]:
    heads = ["", "with", wording.named(report.by), "over folds", "gain", "chosen in", report.unit]
    rows = [
        [str(place), wording.shortened(one.detector, _LONGEST_NAME), wording.written(report.by, one.figure),
         f"{wording.written(report.by, one.lowest)} to {wording.written(report.by, one.highest)}", f"{one.gain:+.4f}".replace("-", "−"),
         f"{one.chosen_in} of {report.folds}", f"{one.cost:,.3g}"]
        for place, one in enumerate(steps, 1)
    ]  # fmt: skip
    return text.table(heads, rows, width, right={0, 6}, wrap={1})
