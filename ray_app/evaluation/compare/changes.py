"""Two runs side by side (`ComparedRun`, `pair`), and what changed from A to B: statuses, verdicts,
scores and, by labels, their accuracy.

Differences are B less A, in log-odds or shares; figures are plain JSON. A run is read once, into 18
bytes a row and 4 for each detector.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError, Status
from ray_app.evaluation.interval_sample import Meaning
from ray_app.evaluation.join import LabelledRows
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics import arrays, drift, intervals, registry, significance, uncertainty, values
from ray_app.reports.evaluation.result import IntervalInfo
from ray_app.runs import RunDirectory, current_tables, summary

By = Literal["image_id", "sha256"]
Places = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
Numbers = npt.NDArray[Any]
VERDICTS = ("fake", "abstain", "real")
FAKE, REAL = VERDICTS.index("fake"), VERDICTS.index("real")
STATUSES = tuple(status.value for status in Status)
EXAMPLES = 12
MOVED = 0.1  # log-odds; less is what another batch size, precision or graphics card may do
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_COLUMNS = ["image_id", "status", "verdict", "score", "scores"]
# images that the AUCs are of, at most: those with the smallest keys. The error of an AUC is then
# below 0.001
AUC_SAMPLE = 200_000


class ComparedRun(NamedTuple):
    """A run and its current rows in their order: `image_id`, `verdict` and `status` (places among
    VERDICTS and STATUSES, -1 = none), and a column of scores for ENSEMBLE and each detector, null
    for none.
    """

    run: RunDirectory
    described: Mapping[str, Any]
    rows: pa.Table

    @classmethod
    def open(cls, url: str) -> "ComparedRun":
        """That at a URL or path. Raises ConfigError where there is none."""
        run = RunDirectory.open(url)
        if not run.exists():
            raise run.missing()
        described = run.describe()
        pieces = [
            _compact(table, described["detectors"]) for table in current_tables(run, _COLUMNS)
        ]
        return cls(
            run,
            described,
            pa.concat_tables(pieces) if pieces else _compact(None, described["detectors"]),
        )

    @property
    def detectors(self) -> list[str]:
        """Their names, in the order of the run."""
        return list(self.described["detectors"])

    def column(self, name: str) -> Numbers:
        """A column of the rows, (n,); NaN for a score that there is not."""
        return np.asarray(self.rows[name].to_numpy())

    def keys(self, by: By) -> pa.ChunkedArray:
        """Of each row 64 bits that name its image, int64 (n,); null of a file that was never read
        and so has no hash.
        """
        if by == "image_id":
            return self.rows["image_id"]
        tables = current_tables(self.run, ["image_id", "sha256"])
        keys = pa.chunked_array([_first_words(table["sha256"]) for table in tables], pa.int64())
        self.require_rows(len(keys))
        return keys

    def require_rows(self, count: int) -> None:
        """Raises ConfigError where the run has other rows than when it was opened: places would be
        those of others.
        """
        if count != len(self.rows):
            raise ConfigError(
                f"{self.run.store.url}: the run changed while it was read",
                hint="compare it when nothing scores into it",
            )


class Pairing(NamedTuple):
    """Of each image in both runs the place of its row in A and in B, (m,) each, in the order of
    their keys, a random order, but a fixed one; and `counts`, as plain JSON. Rows of either run =
    both + only + doubled (left out since an earlier row has the same key); `unnamed`: rows that
    have no key; `why`: why images are matched by another key than their ids.
    """

    places: tuple[Places, Places]
    counts: Mapping[str, Any]


class ImageTruth(NamedTuple):
    """Of images, (m,) each: the place of its group among `groups` (label, generator), -1 = not
    labelled; and `names`, by which images are clustered: the generator of a fake; of a real image
    its source where it has one, else its generator. `name`: of the labels.
    """

    name: str
    codes: npt.NDArray[np.int32]
    groups: Sequence[tuple[str, str]]
    names: npt.NDArray[np.object_]


def pair(a: ComparedRun, b: ComparedRun, by: By | None = None) -> Pairing:
    """The images that both runs have a row of. `by`: None for `image_id` and, where no id is
    shared, `sha256`.
    """
    if by is not None and by not in get_args(By):
        raise ConfigError(
            f"--by {by}: not a key of images", hint=f"one of {', '.join(get_args(By))}"
        )
    first = _paired(a, b, by or "image_id")
    if by or first.counts["both"] or not len(a.rows) or not len(b.rows):
        return first
    second = _paired(a, b, "sha256")
    if second.counts["both"]:
        why = "the runs share no image_id, so images are matched by their bytes"
        return second._replace(counts={**second.counts, "why": why})
    return first._replace(
        counts={
            **first.counts,
            "why": "the runs share neither an image_id nor the bytes of an image",
        }
    )


def truth_of(run: ComparedRun, labels: LabelledRows, places: Places) -> ImageTruth | None:
    """The truth about the rows at some places of a run; None where none of them is labelled.

    Raises ConfigError where the run has other rows than when it was opened.
    """
    pieces = list(labels.join(run.run, ()).tables(["label", "generator", "source"], every=True))
    run.require_rows(sum(map(len, pieces)))
    if not len(places):
        return None
    rows = pa.concat_tables(pieces).take(pa.array(places)).combine_chunks()
    words = (
        pc.binary_join_element_wise(rows["label"], rows["generator"], "\0")
        .combine_chunks()
        .dictionary_encode()
    )
    if words.null_count == len(words):
        return None
    groups = [
        (label, generator)
        for label, _, generator in (word.partition("\0") for word in words.dictionary.to_pylist())
    ]
    names = pc.if_else(
        pc.equal(rows["label"], "real"),
        pc.coalesce(rows["source"], rows["generator"]),
        rows["generator"],
    )
    coded = names.combine_chunks().dictionary_encode()  # one text for all images of a name
    owners = np.array([*coded.dictionary.to_pylist(), None], object)[
        np.asarray(coded.indices.fill_null(-1))
    ]
    return ImageTruth(labels.name, np.asarray(words.indices.fill_null(-1)), groups, owners)


def flips_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of the same images, (m,) each: `matrix[a][b]`, the share that `flipped`, and
    McNemar's test of `flagged`.
    """
    there = (a >= 0) & (b >= 0)
    n = int(there.sum())
    table = _crossed(a[there], b[there], len(VERDICTS))
    flipped, both = n - int(np.trace(table)), int(table[FAKE, FAKE])
    flagged_a, flagged_b = int(table[FAKE].sum()), int(table[:, FAKE].sum())
    counts = {
        "flipped": flipped,
        "flagged_both": both,
        "flagged_a": flagged_a,
        "flagged_b": flagged_b,
    }
    return {
        "n": n,
        "matrix": {
            word: dict(zip(VERDICTS, row, strict=True))
            for word, row in zip(VERDICTS, table.tolist(), strict=True)
        },
        "flips": flipped,
        **{
            name: intervals.proportion(count, n, "no image has a verdict in both runs").to_dict()
            for name, count in counts.items()
        },
        **significance.mcnemar_of(flagged_a - both, flagged_b - both, n).row(),
    }


def statuses_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Statuses of the same images, (m,) each: how many changed, and from what to what, the most
    frequent first.
    """
    changed = a != b
    table = _crossed(a[changed], b[changed], len(STATUSES) + 1)
    words = (*STATUSES, "another")
    pairs = [[words[x], words[y], int(table[x, y])] for x, y in np.argwhere(table).tolist()]
    return {
        "n": len(a),
        "changed": intervals.proportion(
            int(changed.sum()), len(a), "no image is in both runs"
        ).to_dict(),
        "pairs": sorted(pairs, key=lambda one: (-one[2], one[0], one[1])),
    }


def flagged_of(a: Codes, b: Codes) -> dict[str, Any]:
    """Verdicts of all images of either run, (n,) and (m,): the share flagged in each and its
    difference, as of independent images.

    The interval is Agresti and Caffo's (2000); p is of the pooled z test, or Fisher's where fewer
    than five flags are to be expected.
    """
    from scipy.stats import fisher_exact

    n, m = int((a >= 0).sum()), int((b >= 0).sum())
    x, y = int((a == FAKE).sum()), int((b == FAKE).sum())
    why = "the run has no verdict"
    shares = {
        "a": intervals.proportion(x, n, why).to_dict(),
        "b": intervals.proportion(y, m, why).to_dict(),
    }
    if not n or not m:
        return shares | {
            "difference": values.undefined("a run has no verdict").to_dict(),
            "p": None,
        }
    p, q, pooled = (x + 1) / (n + 2), (y + 1) / (m + 2), (x + y) / (n + m)
    half = uncertainty.Z95 * math.sqrt(p * (1 - p) / (n + 2) + q * (1 - q) / (m + 2))
    interval = (max(-1.0, q - p - half), min(1.0, q - p + half))
    if min(pooled, 1 - pooled) * min(n, m) < 5:
        chance = float(fisher_exact([[x, n - x], [y, m - y]]).pvalue)
    else:
        chance = math.erfc(
            abs(y / m - x / n) / math.sqrt(2 * pooled * (1 - pooled) * (1 / n + 1 / m))
        )
    difference = values.MetricValue(y / m - x / n, *interval, n=n + m, method="agresti-caffo")
    return shares | {"difference": difference.to_dict(), "p": chance}


def examples_of(
    a: ComparedRun, ids: Places, verdicts: Sequence[Codes], scores: Sequence[Numbers]
) -> list[dict[str, Any]]:
    """The images whose verdict changed and whose score moved farthest, at most EXAMPLES; then those
    whose score alone moved.

    `ids`, and `verdicts` and `scores` in a and in b: of the paired images, (m,) each.
    """
    moved = np.nan_to_num(np.abs(scores[1] - scores[0]), nan=-1.0)
    flipped = (verdicts[0] != verdicts[1]) & (verdicts[0] >= 0) & (verdicts[1] >= 0)
    candidates = np.flatnonzero(flipped if flipped.any() else moved > 0)
    chosen = candidates[np.argsort(-moved[candidates], kind="stable")[:EXAMPLES]]
    wanted = pa.array(ids[chosen])
    tables = current_tables(a.run, ["image_id", "uri", "member"]) if len(chosen) else ()
    rows = {
        row["image_id"]: row
        for table in tables
        for row in table.filter(pc.is_in(table["image_id"], wanted)).to_pylist()
    }
    return [
        rows[image_id]
        | {
            f"verdict_{side}": VERDICTS[one[place]] if one[place] >= 0 else None
            for side, one in zip("ab", verdicts, strict=True)
        }
        | {
            f"score_{side}": float(one[place]) if np.isfinite(one[place]) else None
            for side, one in zip("ab", scores, strict=True)
        }
        for place, image_id in zip(chosen.tolist(), wanted.to_pylist(), strict=True)
    ]


def shift_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """Scores of the same images, (m,) each, NaN for none.

    `mean` with the interval and `p` of Student's paired t; `moved`: the share of images whose score
    changed by more than MOVED; `equal`: how many scores are equal to the last bit.
    """
    there = np.isfinite(a) & np.isfinite(b)
    change = b[there].astype(np.float64) - a[there]
    n, why = len(change), "no image has a score in both runs"
    found = {
        "n": n,
        "equal": int((change == 0).sum()),
        "gained": int((np.isnan(a) & ~np.isnan(b)).sum()),
        "lost": int((np.isnan(b) & ~np.isnan(a)).sum()),
        "moved": intervals.proportion(int((np.abs(change) > MOVED).sum()), n, why).to_dict(),
    }
    if not n:
        return found | {
            "mean": values.undefined(why).to_dict(),
            "p": None,
            "sd": None,
            "largest": None,
            "quantiles": [],
        }
    mean, p = _mean(change)
    figures = {
        "sd": float(change.std()),
        "largest": float(np.abs(change).max()),
        "quantiles": np.quantile(change, QUANTILES).tolist(),
    }
    return found | {"mean": mean.to_dict(), "p": p} | figures


def distribution_of(a: Numbers, b: Numbers) -> dict[str, Any]:
    """All scores of either run, (n,) and (m,), NaN for none: quantiles and histograms of each, and
    their drift (None without scores).

    Histograms have the edges of a run's summary; scores beyond are counted in the outermost bins.
    """
    known = [one[np.isfinite(one)] for one in (a, b)]
    first, second = (arrays.ScoreHistogram.of(one) for one in known)
    moved = drift.drift_of(first, second)
    clipped = [np.clip(one, summary.EDGES[0], summary.EDGES[-1]) for one in known]
    bins = {
        side: np.histogram(one, summary.EDGES)[0].tolist()
        for side, one in zip("ab", clipped, strict=True)
    }
    return {
        "n_a": first.n,
        "n_b": second.n,
        "quantiles_a": drift.quantiles_of(first, QUANTILES) if first.n else [],
        "quantiles_b": drift.quantiles_of(second, QUANTILES) if second.n else [],
        "histogram": {"edges": summary.EDGES.tolist(), **bins},
        "drift": moved.row() if moved else None,
    }


def labelled_changes(
    truth: ImageTruth,
    systems: Sequence[str],
    scores: Callable[[str], tuple[Numbers, Numbers]],
    verdicts: tuple[Codes, Codes],
    meaning: Meaning = "generators",
) -> dict[str, Any]:
    """AUCs, right and wrong, and both rates of every generator.

    Differences have the jackknife's intervals over generators and sources if labels name enough of
    them, or over images if `meaning` is "images". Tests of one generator are McNemar's, of its
    images. `intervals`: of what the former and their intervals are. `scores`: of a system's name the scores
    of the paired images in a and b, (m,) each, NaN for none. The ensemble is right with its
    verdict, an abstention being wrong; a detector is right with its score's sign. An image counts
    where both runs have a score.
    """
    fake = np.array([label == "fake" for label, _ in truth.groups] + [False])[truth.codes]
    known = truth.codes >= 0
    by_system, generators = [], []
    for name in systems:
        a, b = scores(name)
        there = known & np.isfinite(a) & np.isfinite(b)
        right_a, right_b = (
            (verdict == np.where(fake, FAKE, REAL) if name == ENSEMBLE else (one > 0) == fake)[
                there
            ]
            for one, verdict in zip((a, b), verdicts, strict=True)
        )
        owners = truth.names[there] if meaning == "generators" else None
        by_system.append(
            {
                "name": name,
                "auc": _auc(a[there], b[there], fake[there], owners),
                "right": _right(right_a, right_b, fake[there], owners),
            }
        )
        generators += [
            {"system": name, **one}
            for one in _by_generator(truth, truth.codes[there], right_a, right_b)
        ]
    counts = {
        "n": int(known.sum()),
        "n_fake": int((known & fake).sum()),
        "n_real": int((known & ~fake).sum()),
    }
    drawn = IntervalInfo(fakes="images", reals="images")
    if meaning == "generators":
        drawn = IntervalInfo.of_names(*(truth.names[known & mine] for mine in (fake, ~fake)))
    return {
        "name": truth.name,
        **counts,
        "intervals": asdict(drawn),
        "systems": by_system,
        "generators": generators,
    }


def _compact(table: pa.Table | None, detectors: Sequence[str]) -> pa.Table:
    """The columns of `ComparedRun.rows` of result rows; None: no row."""
    kinds = {
        "image_id": pa.int64(),
        "verdict": pa.int8(),
        "status": pa.int8(),
        ENSEMBLE: pa.float64(),
    }
    schema = pa.schema(kinds | dict.fromkeys(detectors, pa.float32()))
    if table is None:
        return schema.empty_table()
    scores = table["scores"].combine_chunks()
    there = {field.name for field in scores.type}
    columns = {"image_id": table["image_id"], ENSEMBLE: table["score"]}
    for name, known in (("verdict", VERDICTS), ("status", STATUSES)):
        columns[name] = pc.fill_null(
            pc.index_in(table[name].cast(pa.string()), pa.array(known)), -1
        ).cast(pa.int8())
    columns |= {
        name: pc.struct_field(scores, name) if name in there else pa.nulls(len(table), pa.float32())
        for name in detectors
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _first_words(digests: pa.ChunkedArray) -> pa.Array:
    """The first 64 bits of hexadecimal digests. Among 10⁷ files two share them by chance once in
    400,000 runs.
    """
    texts = pc.fill_null(pc.utf8_slice_codeunits(digests, 0, 16), "0" * 16)
    words = np.frombuffer(bytes.fromhex("".join(texts.to_pylist())), ">i8").astype(np.int64)
    return pa.array(words, mask=np.asarray(pc.is_null(digests)))


def _paired(a: ComparedRun, b: ComparedRun, by: By) -> Pairing:
    keys, rows, doubled, unnamed = [], [], {}, {}
    for side, run in zip("ab", (a, b), strict=True):
        named = run.keys(by)
        known = np.flatnonzero(named.is_valid())
        distinct, first = np.unique(named.drop_null().to_numpy(), return_index=True)
        keys.append(distinct)
        rows.append(known[first])
        doubled[f"doubled_{side}"], unnamed[f"unnamed_{side}"] = (
            len(known) - len(distinct),
            len(run.rows) - len(known),
        )
    _, first_a, first_b = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    totals, both = {"a": len(a.rows), "b": len(b.rows)}, len(first_a)
    only = {
        f"only_{side}": total - both - doubled[f"doubled_{side}"] for side, total in totals.items()
    }
    return Pairing(
        (rows[0][first_a], rows[1][first_b]),
        {"by": by, "why": None, **totals, "both": both, **only, **doubled, **unnamed},
    )


def _crossed(a: Codes, b: Codes, size: int) -> npt.NDArray[np.int64]:
    """How many images have each pair of codes (size, size); -1 counts as the last one."""
    return np.bincount(
        (a % size).astype(np.int64) * size + b % size, minlength=size * size
    ).reshape(size, size)


def _mean(change: npt.NDArray[np.float64]) -> tuple[values.MetricValue, float | None]:
    """The mean with its interval, and the two-sided p of its being 0."""
    from scipy.stats import ttest_1samp

    n, mean = len(change), float(change.mean())
    if n < 2:
        return values.MetricValue(value=mean, n=n), None
    if float(change.std(ddof=1)) / math.sqrt(n) <= abs(mean) * 1e-12:
        # All changed alike: their signs are the test, and there is no error to make an interval of.
        return values.MetricValue(value=mean, n=n), 1.0 if mean == 0 else min(1.0, 2.0 * 0.5**n)
    tested = ttest_1samp(change, 0.0)
    low, high = tested.confidence_interval()
    return values.MetricValue(mean, float(low), float(high), n=n, method="student"), float(
        tested.pvalue
    )


def _right(
    a: Bools, b: Bools, fake: Bools, names: npt.NDArray[np.object_] | None
) -> dict[str, Any]:
    """The fractions judged correctly in a and in b, (k,) each, and the test of their difference;
    the share of fakes is taken as it is.
    """
    why, n = "there are no images", len(fake)
    if not n:
        nothing = significance.Paired("accuracy", 0, values.undefined(why), None, why)
        return {**nothing.row(), **_rates(a, b)}
    sample = registry.Resampled.in_groups(np.arange(-n, 0.0)[::-1], fake, names)
    change = b.astype(np.float64) - a
    # The scores descend by image, so that the groups are in the order of the images.
    parts = uncertainty.mean_replicates(change, sample.strata)
    found, p = registry.difference(float(change.mean()), parts, n)
    test = "clustered accuracy" if sample.is_grouped else "accuracy"
    tested = significance.Paired(test, n, found, p, None if p is not None else found.why)
    rates = _rates(a, b)
    for side, right in (("a", a), ("b", b)) if sample.is_grouped else ():
        share = float(right.mean())
        worth = uncertainty.effective_count(right, sample.strata, share, n)
        rates[side]["interval"] = list(uncertainty.proportion_interval(share * worth, worth))
    return {**tested.row(), **rates}


def _auc(
    a: Numbers, b: Numbers, fake: Bools, names: npt.NDArray[np.object_] | None
) -> dict[str, Any] | None:
    """The AUCs of scores of a and b, (k,) each, and the test of their difference; None without
    images.
    """
    marks, of = fake[:AUC_SAMPLE], [one[:AUC_SAMPLE].astype(np.float64) for one in (a, b)]
    owners, n = None if names is None else names[:AUC_SAMPLE], len(marks)
    if not n:
        return None
    if n > 2 and max(len(np.unique(one)) for one in of) <= 2:
        why = "binary replies have no ranking"
        nothing = values.undefined(why, n)
        tested = significance.Paired("auc", n, nothing, None, why)
        return {**tested.row(), "a": nothing.to_dict(), "b": nothing.to_dict()}
    auc = registry.METRICS["auc"]
    samples = [registry.Resampled.in_groups(one, marks, owners) for one in of]
    found, p = registry.measure_difference(auc, *samples)
    test = "clustered auc" if samples[0].is_grouped else "auc"
    tested = significance.Paired(test, n, found, p, None if p is not None else found.why)
    figures = [registry.measure(auc, sample.images, sample).to_dict() for sample in samples]
    return {**tested.row(), "a": figures[0], "b": figures[1]}


def _by_generator(
    truth: ImageTruth, codes: npt.NDArray[np.int32], a: Bools, b: Bools
) -> Iterator[dict[str, Any]]:
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(truth.groups)))
    for (label, generator), places in zip(truth.groups, np.split(order, ends[:-1]), strict=True):
        if len(places):
            only_a, only_b = (
                int((a[places] & ~b[places]).sum()),
                int((b[places] & ~a[places]).sum()),
            )
            tested = significance.mcnemar_of(only_a, only_b, len(places))
            yield {
                "generator": generator,
                "label": label,
                **tested.row(),
                **_rates(a[places], b[places]),
            }


def _rates(a: Bools, b: Bools) -> dict[str, Any]:
    why = "no labelled image has a score in both runs"
    return {
        side: intervals.proportion(int(one.sum()), len(one), why).to_dict()
        for side, one in (("a", a), ("b", b))
    }
