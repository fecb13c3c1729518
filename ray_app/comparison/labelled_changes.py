"""Whether run B tells fake from real better than run A, on the same labelled images. Knows scores, labels and generators as arrays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.comparison.flips import VERDICTS
from ray_app.comparison.pairing import Codes, Places, RunColumns
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import auc_of, proportion
from ray_app.metrics.paired import Paired, delong_paired, mcnemar

AUC_SAMPLE = 200_000  # images that the AUCs are of, at most: those with the smallest keys. The error of an AUC is then below 0.001

Numbers = npt.NDArray[Any]
Groups = npt.NDArray[np.int32]


class LabelsOfRows(Protocol):
    """What `touchstone evaluate` reads of labels too (ray_app.evaluation.joining)."""

    @property
    def name(self) -> str:
        """As people are told it."""

    @property
    def columns(self) -> list[str]:
        """What a row must have to be looked up."""

    def truth(self, table: pa.Table) -> Any:
        """`codes` (n,) into `groups`, each with `label` and `generator`; -1 = not labelled."""


class Truth(NamedTuple):
    """Of each image (m,) the place of its group among `groups` (label, generator), -1 = not labelled."""

    name: str
    codes: Groups
    groups: Sequence[tuple[str, str]]

    def at(self, places: Places) -> "Truth":
        """That of the rows at some places."""
        return self._replace(codes=self.codes[places])


def truth_of(run: RunColumns, labels: LabelsOfRows) -> Truth:
    """The truth about every row of a run."""
    numbers: dict[tuple[str, str], int] = {}
    pieces = [np.empty(0, np.int32)]
    for table in run.tables(labels.columns):
        told = labels.truth(table)
        # Numbers of a table's own become those of all tables; -1 takes the last place.
        new = [numbers.setdefault((one.label, one.generator), len(numbers)) for one in told.groups]
        pieces.append(np.array([*new, -1], np.int32)[told.codes])
    return Truth(labels.name, np.concatenate(pieces), list(numbers))


def labelled_changes(
    truth: Truth, systems: Sequence[str], scores: Callable[[str], tuple[Numbers, Numbers]], verdicts: tuple[Codes, Codes]
) -> dict[str, Any]:
    """AUCs by DeLong, right and wrong by McNemar, and both rates of every generator, as plain JSON; `p_holm` is not in it yet.

    `scores`: of a system's name the scores of the paired images in a and b, (m,) each, NaN for none. The ensemble is right with its
    verdict, an abstention being wrong; a detector is right with its score's sign. An image counts where both runs have a score.
    """
    fake = np.array([label == "fake" for label, _ in truth.groups] + [False])[truth.codes]
    known = truth.codes >= 0
    systems_told, generators = [], []
    for name in systems:
        a, b = scores(name)
        there = known & np.isfinite(a) & np.isfinite(b)
        right = tuple(_right(name, one, said, fake)[there] for one, said in zip((a, b), verdicts, strict=True))
        systems_told.append({"name": name, **_auc(a, b, fake, there), "right": _rates(right[0], right[1], mcnemar(*right))})
        generators += [{"system": name, **one} for one in _by_generator(truth, truth.codes[there], right[0], right[1])]
    counts = {"n": int(known.sum()), "n_fake": int((known & fake).sum()), "n_real": int((known & ~fake).sum())}
    return {"name": truth.name, **counts, "systems": systems_told, "generators": generators}


def tests_in(labelled: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything with a p that is of all generators together."""
    for system in labelled["systems"]:
        yield from (system["auc"], system["right"])


def _right(system: str, scores: Numbers, verdicts: Codes, fake: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if system == ENSEMBLE:
        return np.asarray(verdicts == np.where(fake, VERDICTS.index("fake"), VERDICTS.index("real")))
    return np.asarray((scores > 0) == fake)


def _auc(a: Numbers, b: Numbers, fake: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_]) -> dict[str, Any]:
    sample = np.flatnonzero(there)[:AUC_SAMPLE]
    marks, of = fake[sample], [one[sample].astype(np.float64) for one in (a, b)]
    if not len(sample):
        return {"auc": None}
    if len(sample) > 2 and max(len(np.unique(one)) for one in of) <= 2:
        return {"auc": _undefined("binary replies have no ranking", len(sample))}
    tested = delong_paired(of[0], of[1], marks)
    if tested.difference.value is None:
        return {"auc": _undefined(tested.difference.why or "", len(sample))}
    areas = [auc_of(ScoreHistogram.of(one[marks]), ScoreHistogram.of(one[~marks])) for one in of]
    figures = [Figure(one.value, (one.low, one.high), "delong", len(sample)).row() for one in areas]
    return {"auc": {**tested.row(), "a": figures[0], "b": figures[1]}}


def _undefined(why: str, n: int) -> dict[str, Any]:
    nothing = undefined(why, n)
    return {**Paired("delong", n, nothing, None, why).row(), "a": nothing.row(), "b": nothing.row()}


def _rates(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_], tested: Paired) -> dict[str, Any]:
    why = "no labelled image has a score in both runs"
    return {**tested.row(), "a": proportion(int(a.sum()), len(a), why).row(), "b": proportion(int(b.sum()), len(b), why).row()}


def _by_generator(truth: Truth, codes: Groups, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(truth.groups)))
    for (label, generator), places in zip(truth.groups, np.split(order, ends[:-1]), strict=True):
        if len(places):
            tested = mcnemar(a[places], b[places])
            yield {"generator": generator, "label": label, **_rates(a[places], b[places], tested)}
