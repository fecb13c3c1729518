"""The sample of a run that people label (`draw_sample`): strata by verdict and score, and how many images of each are drawn.

Its files (`read_audit`): `sample.csv` for people to fill in, `audit.html` to do it with pictures, `audit.json` with what makes the labels
count. Which images are drawn follows from hashes of their ids and the seed alone, so the same command draws the same ones from the same
run.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.archives import manifests
from ray_app.ensembles import sigmoid
from ray_app.errors import ConfigError
from ray_app.evaluation.accumulate import hashed, mixed, pictures_of
from ray_app.metrics.arrays import ScoreHistogram
from ray_app.reports.audit import AuditImage, render_audit
from ray_app.runs import RunDirectory, current_tables, fingerprint, reader
from ray_app.scoring.guarantee import WAIVED

Counts = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
VERDICTS = ("fake", "abstain", "real")
# Where the images of a verdict are cut, as shares of them from the lowest score on, by the size of a sample that suffices for so many
# strata: a handful of labels each is not enough. Fakes that were missed hide among the highest reals.
_CUTS: Mapping[int, Mapping[str, tuple[float, ...]]] = {
    250: {"fake": (0.5,), "abstain": (0.5,), "real": (0.5, 0.9, 0.99)},
    100: {"real": (0.9,)},
    0: {},
}
_LEAST = 20  # images that a stratum has, unless its verdict has fewer
_EVENLY = 2  # one image in two is drawn with no regard to size, so that every stratum is known
_SUREST = 0.05  # share of fakes, or of reals, that no stratum is taken to fall below before any label
Orders = npt.NDArray[np.uint64]
_DRAWN = pa.schema([("image_id", pa.int64()), ("uri", pa.string()), ("member", pa.string())])
SAMPLE, PAGE, FACTS = "sample.csv", "audit.html", "audit.json"
SCHEMA = 1
COLUMNS = ("image_id", "uri", "member", "stratum", "label")
PICTURE_PX = 512


@dataclass(frozen=True)
class AuditStratum:
    """Images of one verdict with `low` ≤ score < `high` (None: no end); `scored` is False for those that abstain for lack of a score.

    `size`: how many there are; `drawn`: how many of them are in the sample.
    """

    verdict: str
    size: int
    low: float | None = None
    high: float | None = None
    scored: bool = True
    drawn: int = 0

    def spans(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether each score (n,) lies between its ends."""
        inside = np.ones(len(scores), np.bool_)
        inside &= True if self.low is None else scores >= self.low
        inside &= True if self.high is None else scores < self.high
        return inside

    @property
    def words(self) -> str:
        """The name in messages."""
        if not self.scored:
            return f"{self.verdict}, no score"
        ends = [f"from {self.low:.2f}" if self.low is not None else "", f"below {self.high:.2f}" if self.high is not None else ""]
        return f"{self.verdict}, score {' '.join(filter(None, ends))}" if any(ends) else self.verdict

    def row(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": self.words, **asdict(self)}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "AuditStratum":
        """That of such a row. Raises TypeError for other keys."""
        return cls(**{key: value for key, value in row.items() if key != "name"})


@dataclass(frozen=True)
class Counted:
    """A run in numbers: the scores of its images by verdict, how many abstain without a score, and the statuses of those not scored."""

    scores: dict[str, ScoreHistogram]
    without_score: int
    unscored: dict[str, int]

    @property
    def scored(self) -> int:
        """Images with a verdict: what an audit speaks for."""
        return sum(one.n for one in self.scores.values()) + self.without_score


@dataclass(frozen=True)
class AuditSample:
    """The strata, with how many images of each are drawn, and those images in an order that gives nothing away: columns `image_id`, `uri`,
    `member` and `stratum`, the place among the strata.
    """

    strata: list[AuditStratum]
    rows: pa.Table


@dataclass(frozen=True)
class Audit:
    """The content of `audit.json`: the run as it was when the sample was drawn, the strata, and the images drawn (`COLUMNS` without
    labels).
    """

    facts: Mapping[str, Any]
    strata: tuple[AuditStratum, ...]
    images: tuple[Mapping[str, Any], ...]

    @property
    def scored(self) -> int:
        """Images that the audit speaks for."""
        return sum(one.size for one in self.strata)


def draw_sample(url: str, number: int, folder: Path, *, only_flagged: bool = False, seed: int = 0, pictures: bool = True) -> Audit:
    """Draw a sample of a finished run into a folder that has none yet. Raises ConfigError (no run, nothing to draw, a sample is there).

    `only_flagged`: only images whose verdict is fake are drawn; the others are counted.
    """
    if (folder / FACTS).exists():
        raise ConfigError(f"{folder} holds a sample already, maybe with labels", hint="give another --out")
    run = RunDirectory.open(url)
    run.describe_finished()
    counted = count(run)
    if not counted.scored:
        raise ConfigError(f"{run.store.url}: no image of the run has a verdict, so there is nothing to ask about")
    if only_flagged and not counted.scores["fake"].n:
        raise ConfigError(f"{run.store.url}: no image is flagged as fake, so there is nothing to ask about", hint="draw without --flagged")
    drawn = draw(run, counted, number, seed, only_flagged=only_flagged)
    facts = _facts(run, counted, drawn, seed) | {"only_flagged": only_flagged}
    images = tuple(drawn.rows.to_pylist())
    with (folder / SAMPLE).open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows([*(row[name] for name in COLUMNS[:-1]), ""] for row in images)
    found = pictures_of(run, [row["image_id"] for row in images], side=PICTURE_PX) if pictures else {}
    shown = [AuditImage(**{name: row[name] for name in COLUMNS[:-1]}, jpeg=found.get(row["image_id"])) for row in images]
    (folder / PAGE).write_text(render_audit(facts, shown), encoding="utf-8")
    # Last, because the folder is taken from then on.
    (folder / FACTS).write_text(json.dumps(facts | {"sample": images}, indent=1, ensure_ascii=False), encoding="utf-8")
    return Audit(facts, tuple(drawn.strata), images)


def draw(run: RunDirectory, counted: Counted, number: int, seed: int, *, only_flagged: bool = False) -> AuditSample:
    """Draw so many images (all, where there are fewer) of the run that was counted."""
    strata = plan_strata(counted, number, only_flagged=only_flagged)
    wanted = np.array([one.drawn for one in strata], np.int64)
    kept, codes, orders = _DRAWN.empty_table(), np.empty(0, np.int32), np.empty(0, np.uint64)
    for table in current_tables(run, [*_DRAWN.names, "verdict", "score"]):
        own, hashes = stratum_codes(table, strata), seeded(table["image_id"].to_numpy(), seed)
        places = lowest_per_stratum(own, hashes, wanted)
        rows = pa.concat_tables([kept, table.select(_DRAWN.names).take(pa.array(places)).cast(_DRAWN)])
        codes, orders = np.concatenate([codes, own[places]]), np.concatenate([orders, hashes[places]])
        again = lowest_per_stratum(codes, orders, wanted)
        kept, codes, orders = rows.take(pa.array(again)), codes[again], orders[again]
    turn = np.argsort(mixed(orders), kind="stable")  # the hashes themselves are lower where a stratum is large
    return AuditSample(strata, kept.take(pa.array(turn)).append_column("stratum", pa.array(codes[turn])).combine_chunks())


def stratum_codes(table: pa.Table, strata: Sequence[AuditStratum]) -> Codes:
    """(n,) the place of every row's stratum; -1 for a row without a verdict. Of the table it needs `verdict` and `score`."""
    verdicts = table["verdict"].cast(pa.string())
    scores = reader.numbers(table["score"])
    codes = np.full(len(table), -1, np.int32)
    for place, stratum in enumerate(strata):
        inside = np.asarray(pc.fill_null(pc.equal(verdicts, stratum.verdict), False)) & (np.isfinite(scores) == stratum.scored)
        codes[inside & stratum.spans(scores)] = place
    return codes


def plan_strata(counted: Counted, number: int, *, only_flagged: bool = False) -> list[AuditStratum]:
    """The strata, and how many images of each make a sample of so many; with `only_flagged`, none but of those whose verdict is fake."""
    strata = strata_of(counted.scores, counted.without_score, number)
    asked = [one for one in strata if one.verdict == "fake" or not only_flagged]
    if not asked:
        return strata
    spreads = [spread_of(one, counted.scores[one.verdict]) for one in asked]
    shares = dict(zip(asked, allotted([one.size for one in asked], spreads, number).tolist(), strict=True))
    return [replace(one, drawn=shares.get(one, 0)) for one in strata]


def strata_of(scores: Mapping[str, ScoreHistogram], without_score: int, number: int) -> list[AuditStratum]:
    """The strata of an archive with these scores by verdict, and so many images that abstain without one, for a sample of a number of
    images; none is empty.
    """
    cuts = next(cuts for least, cuts in _CUTS.items() if number >= least)
    found = []
    for verdict in VERDICTS:
        histogram = scores[verdict]
        ends = [None, *_cuts(histogram, cuts.get(verdict, ())), None]
        for low, high in pairwise(ends):
            size = _below(histogram, high) - (0 if low is None else _below(histogram, low))
            found += [AuditStratum(verdict, size, low, high)] if size else []
    return found + ([AuditStratum("abstain", without_score, scored=False)] if without_score else [])


def spread_of(stratum: AuditStratum, scores: ScoreHistogram) -> float:
    """How unalike its images are taken to be, √(p (1 − p)) for p the mean of their probabilities, and never near 0."""
    if not stratum.scored:
        return 0.5
    inside = stratum.spans(scores.values)
    mean = float(sigmoid(scores.values[inside]) @ scores.counts[inside]) / stratum.size
    p = min(max(mean, _SUREST), 1 - _SUREST)
    return float(np.sqrt(p * (1 - p)))


def allotted(sizes: Sequence[int], spreads: Sequence[float], count: int) -> Counts:
    """How many images of each stratum to draw, int64 (h,): `count` in all, or all there are.

    Half of them evenly, the rest by size × spread (Neyman 1934), which makes the prevalence the surest for the labels spent.
    """
    room = np.asarray(sizes, np.int64)
    wanted = min(count, int(room.sum()))
    given = np.minimum(room, wanted // (_EVENLY * len(room)))
    while left := wanted - int(given.sum()):
        weight = np.where(given < room, room * np.asarray(spreads), 0.0)
        share = left * weight / weight.sum()
        more = np.minimum(np.floor(share).astype(np.int64), room - given)
        if not more.any():
            more[np.argsort(-share, kind="stable")[:left]] = 1
            more = np.minimum(more, room - given)
        given = given + more
    return given


def count(run: RunDirectory) -> Counted:
    """Read verdicts, scores and statuses of the current rows. Raises ConfigError where there is no run."""
    pieces: dict[str, list[ScoreHistogram]] = {verdict: [] for verdict in VERDICTS}
    without, unscored = 0, Counter[str]()
    for table in current_tables(run, ["image_id", "status", "verdict", "score"]):
        verdicts, scores = table["verdict"].cast(pa.string()), reader.numbers(table["score"])
        has_score = np.isfinite(scores)
        for verdict, found in pieces.items():
            has_verdict = np.asarray(pc.fill_null(pc.equal(verdicts, verdict), False))
            found.append(ScoreHistogram.of(scores[has_verdict & has_score]))
            without += int((has_verdict & ~has_score).sum())
        statuses = table["status"].cast(pa.string()).filter(pc.is_null(verdicts))
        unscored.update({item["values"]: item["counts"] for item in pc.value_counts(statuses).to_pylist()})
    merged = {verdict: ScoreHistogram.merged(found) for verdict, found in pieces.items()}
    return Counted(merged, without, dict(unscored.most_common()))


def seeded(ids: npt.NDArray[np.int64], seed: int) -> Orders:
    """One number for each id, (n,), a different one for each; other seeds give others."""
    return mixed(hashed(ids) ^ hashed(np.array([seed], np.int64)))


def lowest_per_stratum(codes: Codes, orders: Orders, wanted: Counts) -> npt.NDArray[np.int64]:
    """The places of the rows that come first in their stratum, no more of each than `wanted` (h,); rows of no stratum (-1) never."""
    turn = np.lexsort((orders, codes))
    turn = turn[codes[turn] >= 0]
    starts = np.searchsorted(codes[turn], np.arange(len(wanted)))
    rank = np.arange(len(turn)) - starts[codes[turn]]
    return turn[rank < wanted[codes[turn]]]


def read_audit(*folders: Path) -> Audit:
    """The audit in the first folder that has one. Raises ConfigError where none has, or its file is none of ours."""
    path = next((folder / FACTS for folder in folders if (folder / FACTS).is_file()), None)
    if path is None:
        raise ConfigError(
            f"no {FACTS} in {' or in '.join(dict.fromkeys(map(str, folders)))}",
            hint="--out is the folder of `touchstone runs audit RUN --draw N --out DIR`: without its strata labels cannot be weighed",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Audit(document, tuple(AuditStratum.of_row(row) for row in document["strata"]), tuple(document["sample"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not what `touchstone runs audit --draw` wrote: {error}") from None


def changed_since(audit: Audit, run: RunDirectory) -> str | None:
    """Why figures of this audit are not of the run as it is now, or None. Raises ConfigError where the sample is of another run."""
    identity = run.describe_finished()["identity"]
    if _scores_of(identity) != audit.facts["scores"]:
        raise ConfigError(f"the sample was drawn from another run than {run.store.url}", hint=f"it is of {audit.facts['run']}")
    if fingerprint(identity) != audit.facts["fingerprint"]:
        return "the run was decided anew since the sample was drawn: these figures are of its verdicts before"
    if max(manifests(run.store)) != audit.facts["listing"]:
        return "the run has a newer listing since the sample was drawn: these figures are of the archive before"
    return None


def _cuts(histogram: ScoreHistogram, shares: Sequence[float]) -> list[float]:
    """Scores at which to cut, ascending; one that would leave less than _LEAST to either side is left out."""
    cuts: list[float] = []
    for share in shares if histogram.n else ():
        cut = float(histogram.ranked([min(int(share * histogram.n), histogram.n - 1)])[0])
        below = _below(histogram, cut) - (_below(histogram, cuts[-1]) if cuts else 0)
        cuts += [cut] if below >= _LEAST and histogram.at_or_above(cut) >= _LEAST else []
    return cuts


def _below(histogram: ScoreHistogram, score: float | None) -> int:
    return histogram.n if score is None else histogram.n - histogram.at_or_above(score)


def _facts(run: RunDirectory, counted: Counted, drawn: AuditSample, seed: int) -> dict[str, Any]:
    described = run.describe()
    ensemble = described.get("ensemble") or {}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.store.url,
        "fingerprint": fingerprint(described["identity"]),
        "scores": _scores_of(described["identity"]),
        "listing": max(manifests(run.store)),
        "ensemble": ensemble.get("name"),
        "target_fpr": (ensemble.get("guarantee") or {}).get("target_fpr"),
        "seed": seed,
        "scored": counted.scored,
        "unscored": counted.unscored,
        "drawn": len(drawn.rows),
        "strata": [one.row() for one in drawn.strata],
    }


def _scores_of(identity: Mapping[str, Any]) -> str:
    """Names what a run scored and with what, whatever was decided of it."""
    return fingerprint({key: value for key, value in identity.items() if key not in ("decision", WAIVED)})
