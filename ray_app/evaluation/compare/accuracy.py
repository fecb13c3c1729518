"""What labels say of two runs (`labelled_changes`): AUCs and shares judged correctly, with tests of differences, and both by generator.

`ImageGroups` holds whose each image is (`truth_of`): the generator of a fake, the source of a real image.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ray_app.evaluation.compare.changes import FAKE, VERDICTS, Codes, Numbers, Places, RunColumns
from ray_app.evaluation.interval_sample import Meaning
from ray_app.evaluation.join import LabelledRows
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics import arrays, clusters, detection_intervals, intervals, significance
from ray_app.reports.evaluation.system_model import IntervalFacts

Groups = npt.NDArray[np.int32]
AUC_SAMPLE = 200_000  # images that the AUCs are of, at most: those with the smallest keys. The error of an AUC is then below 0.001


class ImageGroups(NamedTuple):
    """Of each image (m,) the place of its group among `groups` (label, generator), -1 = not labelled; and where labels have sources, the
    place of its own among `sources`, -1 = none.
    """

    name: str
    codes: Groups
    groups: Sequence[tuple[str, str]]
    source_codes: Groups | None = None
    sources: Sequence[str] = ()

    def at(self, places: Places) -> "ImageGroups":
        """That of the rows at some places."""
        own = None if self.source_codes is None else self.source_codes[places]
        return self._replace(codes=self.codes[places], source_codes=own)

    def names(self, there: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
        """Whose some labelled images are: the generator of a fake; of a real image its source where there is one, else its group."""
        names = np.array([generator for _, generator in self.groups], object)[self.codes[there]]
        if self.source_codes is None:
            return names
        sources, real = self.source_codes[there], np.array([label == "real" for label, _ in self.groups])[self.codes[there]]
        return np.where(real & (sources >= 0), np.array([*self.sources, ""], object)[sources], names)


def truth_of(run: RunColumns, labels: LabelledRows) -> ImageGroups:
    """The truth about every row of a run."""
    numbers: dict[tuple[str, str], int] = {}
    sources: dict[str, int] = {}
    codes, source_codes = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    labels.join(run.run, ())
    for table in labels.tables(["label", "generator", "source"], every=True):
        texts = zip(table["label"].to_pylist(), table["generator"].to_pylist(), strict=True)
        codes.append(np.array([-1 if one[0] is None else numbers.setdefault(one, len(numbers)) for one in texts], np.int32))
        source_codes.append(
            np.array([-1 if one is None else sources.setdefault(one, len(sources)) for one in table["source"].to_pylist()], np.int32)
        )
    run.check_count(sum(map(len, codes)))
    return ImageGroups(labels.name, np.concatenate(codes), list(numbers), np.concatenate(source_codes) if sources else None, list(sources))


def labelled_changes(
    truth: ImageGroups,
    systems: Sequence[str],
    scores: Callable[[str], tuple[Numbers, Numbers]],
    verdicts: tuple[Codes, Codes],
    meaning: Meaning = "generators",
) -> dict[str, Any]:
    """AUCs, right and wrong, and both rates of every generator, as plain JSON; `p_holm` is not in it yet.

    Tests of both are by generator and source where labels name them, or, where `meaning` is "images", DeLong's and McNemar's; those of a
    generator are McNemar's, of its images. `intervals` says of what the former and their intervals speak.
    `scores`: of a system's name the scores of the paired images in a and b, (m,) each, NaN for none. The ensemble is right with its
    verdict, an abstention being wrong; a detector is right with its score's sign. An image counts where both runs have a score.
    """
    fake = np.array([label == "fake" for label, _ in truth.groups] + [False])[truth.codes]
    known = truth.codes >= 0
    by_system, generators = [], []
    for name in systems:
        a, b = scores(name)
        there = known & np.isfinite(a) & np.isfinite(b)
        right = tuple(_right(name, one, verdict, fake)[there] for one, verdict in zip((a, b), verdicts, strict=True))
        whose = truth.names(there) if meaning == "generators" else None
        tested = significance.mcnemar(right[0], right[1], fake[there], whose)
        both = _both_rates(right, fake[there], whose)
        by_system.append({"name": name, **_auc(a, b, fake, there, whose), "right": {**tested.row(), **both}})
        generators += [{"system": name, **one} for one in _by_generator(truth, truth.codes[there], right[0], right[1])]
    counts = {"n": int(known.sum()), "n_fake": int((known & fake).sum()), "n_real": int((known & ~fake).sum())}
    spoken = _intervals_of(truth, known, fake, meaning)
    return {"name": truth.name, **counts, "intervals": spoken.written(), "systems": by_system, "generators": generators}


def _right(system: str, scores: Numbers, verdicts: Codes, fake: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    if system == ENSEMBLE:
        return np.asarray(verdicts == np.where(fake, FAKE, VERDICTS.index("real")))
    return np.asarray((scores > 0) == fake)


def _intervals_of(truth: ImageGroups, known: npt.NDArray[np.bool_], fake: npt.NDArray[np.bool_], meaning: Meaning) -> IntervalFacts:
    if meaning == "images":
        return IntervalFacts(fakes="images", reals="images")
    names, is_fake = truth.names(known), fake[known]
    fakes, reals = (len(np.unique(names[mine].astype(str))) for mine in (is_fake, ~is_fake))
    few = clusters.FEWEST_CLUSTERS
    return IntervalFacts(
        fakes="generators" if fakes >= few else "images", reals="sources" if reals >= few else "images", generators=fakes, sources=reals
    )


def _both_rates(
    right: Sequence[npt.NDArray[np.bool_]], fake: npt.NDArray[np.bool_], names: npt.NDArray[np.object_] | None
) -> dict[str, Any]:
    """The shares judged correctly in a and in b, with intervals of the same meaning as the test's."""
    found = _rates(right[0], right[1])
    if names is None or not len(fake):
        return found
    for key, told in zip("ab", right, strict=True):
        shares = []
        clustered = False
        for mine in (fake, ~fake):
            if some := int(mine.sum()):
                sample = clusters.ClassSample.of(told[mine].astype(np.float64), names[mine])
                clustered |= bool(sample.clusters)
                ends = detection_intervals.rate_ends(int(told[mine].sum()), some, sample, told[mine])
                shares.append((some / len(fake), float(told[mine].mean()), ends))
        if clustered:
            found[key] |= {"interval": list(detection_intervals.mixed_rate_ends(shares)), "method": clusters.CLUSTER_JACKKNIFE}
    return found


def _auc(
    a: Numbers, b: Numbers, fake: npt.NDArray[np.bool_], there: npt.NDArray[np.bool_], names: npt.NDArray[np.object_] | None
) -> dict[str, Any]:
    """`names`: whose the images that are `there` are."""
    sample = np.flatnonzero(there)[:AUC_SAMPLE]
    whose = None if names is None else names[:AUC_SAMPLE]
    marks, of = fake[sample], [one[sample].astype(np.float64) for one in (a, b)]
    if not len(sample):
        return {"auc": None}
    if len(sample) > 2 and max(len(np.unique(one)) for one in of) <= 2:
        return {"auc": _undefined("binary replies have no ranking", len(sample))}
    tested = significance.delong(of[0], of[1], marks, whose)
    if tested.difference.value is None:
        return {"auc": _undefined(tested.difference.why or "", len(sample))}
    figures = [detection_intervals.auc_by_cluster(one, marks, whose).row() for one in of]
    return {"auc": {**tested.row(), "a": figures[0], "b": figures[1]}}


def _undefined(why: str, n: int) -> dict[str, Any]:
    nothing = arrays.undefined(why, n)
    return {**significance.Paired("delong", n, nothing, None, why).row(), "a": nothing.row(), "b": nothing.row()}


def _by_generator(truth: ImageGroups, codes: Groups, a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(truth.groups)))
    for (label, generator), places in zip(truth.groups, np.split(order, ends[:-1]), strict=True):
        if len(places):
            tested = significance.mcnemar(a[places], b[places])
            yield {"generator": generator, "label": label, **tested.row(), **_rates(a[places], b[places])}


def _rates(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> dict[str, Any]:
    why = "no labelled image has a score in both runs"
    return {
        "a": intervals.proportion(int(a.sum()), len(a), why).row(),
        "b": intervals.proportion(int(b.sum()), len(b), why).row(),
    }
