"""Draw a sample of a run that people label (`draw_sample`), in strata by verdict and score.

Its files (`read_audit`): `sample.csv` for people to fill in, `audit.html` with their pictures, and
`audit.json` with the strata, by which labels are weighed. The same command draws the same images
from the same run.
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
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.archives import manifests
from ray_app.ensembles import sigmoid
from ray_app.errors import ConfigError
from ray_app.evaluation.accumulate import pictures_of
from ray_app.reports.audit import render_audit
from ray_app.runs import RunDirectory, current, current_tables, fingerprint
from ray_app.scoring.guarantee import WAIVED

Counts = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
VERDICTS = ("fake", "abstain", "real")
FAKE = VERDICTS.index("fake")
# Where the images of a verdict are cut, as shares of them from the lowest score on, by the size of
# a sample that suffices for so many strata: a handful of labels each is not enough. Fakes that were
# missed hide among the highest reals.
_CUTS: Mapping[int, Mapping[str, tuple[float, ...]]] = {
    250: {"fake": (0.5,), "abstain": (0.5,), "real": (0.5, 0.9, 0.99)},
    100: {"real": (0.9,)},
    0: {},
}
_LEAST = 20  # images that a stratum has, unless its verdict has fewer
_EVENLY = 2  # one image in two is drawn with no regard to size, so that every stratum is known
# share of fakes, or of reals, that no stratum is taken to fall below before any label
_SUREST = 0.05
_VERDICTS = pa.schema([("image_id", pa.int64()), ("code", pa.int32()), ("score", pa.float64())])
SAMPLE, PAGE, FACTS = "sample.csv", "audit.html", "audit.json"
SCHEMA = 1
COLUMNS = ("image_id", "uri", "member", "stratum", "label")
PICTURE_PX = 512


@dataclass(frozen=True)
class AuditStratum:
    """Images of one verdict with `low` ≤ score < `high` (None: no end); `scored` is False for those
    that abstain for lack of a score.

    `size`: how many there are; `drawn`: how many of them are in the sample.
    """

    verdict: str
    size: int
    low: float | None = None
    high: float | None = None
    scored: bool = True
    drawn: int = 0

    def spans(self, scores: Floats) -> npt.NDArray[np.bool_]:
        """Whether each score (n,), NaN for none, lies between its ends."""
        if not self.scored:
            return np.isnan(scores)
        low, high = (
            -np.inf if self.low is None else self.low,
            np.inf if self.high is None else self.high,
        )
        return (scores >= low) & (scores < high)

    @property
    def words(self) -> str:
        """The name in messages."""
        if not self.scored:
            return f"{self.verdict}, no score"
        ends = [
            f"from {self.low:.2f}" if self.low is not None else "",
            f"below {self.high:.2f}" if self.high is not None else "",
        ]
        return (
            f"{self.verdict}, score {' '.join(filter(None, ends))}" if any(ends) else self.verdict
        )


@dataclass(frozen=True)
class RunVerdicts:
    """The images of a run that have a verdict, in its order, (n,) each: their `ids`, the places of
    their verdicts among VERDICTS (`codes`), and `scores`, NaN for none that is a number.
    `unscored`: how many others there are, by status.
    """

    ids: npt.NDArray[np.int64]
    codes: Codes
    scores: Floats
    unscored: Mapping[str, int]

    @classmethod
    def of(cls, run: RunDirectory) -> "RunVerdicts":
        """Those of the current rows of a run. Raises ConfigError where there is none."""
        pieces: list[pa.Table] = [_VERDICTS.empty_table()]
        unscored = Counter[str]()
        for table in current_tables(run, ["image_id", "status", "verdict", "score"]):
            codes = pc.index_in(table["verdict"].cast(pa.string()), pa.array(VERDICTS))
            unscored.update(table["status"].cast(pa.string()).filter(pc.is_null(codes)).to_pylist())
            pieces.append(
                pa.table([table["image_id"], codes, table["score"]], schema=_VERDICTS).filter(
                    pc.is_valid(codes)
                )
            )
        rows = pa.concat_tables(pieces)
        scores = current.numbers(rows["score"])
        scores = np.where(np.isfinite(scores), scores, np.nan)
        return cls(
            rows["image_id"].to_numpy(),
            rows["code"].to_numpy(),
            scores,
            dict(unscored.most_common()),
        )


@dataclass(frozen=True)
class Audit:
    """The content of `audit.json`: the run as it was when the sample was drawn, the strata, and the
    images drawn (`COLUMNS` without labels).
    """

    facts: Mapping[str, Any]
    strata: tuple[AuditStratum, ...]
    images: tuple[Mapping[str, Any], ...]

    @property
    def scored(self) -> int:
        """Images of the strata: all that have a verdict."""
        return sum(one.size for one in self.strata)


def draw_sample(
    url: str,
    number: int,
    folder: Path,
    *,
    only_flagged: bool = False,
    seed: int = 0,
    pictures: bool = True,
) -> Audit:
    """Draw a sample of a finished run into a folder that has none yet. Raises ConfigError (no run,
    nothing to draw, a sample is there).

    `only_flagged`: only images whose verdict is fake are drawn; the others are counted.
    """
    if (folder / FACTS).exists():
        raise ConfigError(
            f"{folder} holds a sample already, maybe with labels", hint="give another --out"
        )
    run = RunDirectory.open(url)
    run.describe_finished()
    verdicts = RunVerdicts.of(run)
    if not len(verdicts.ids):
        raise ConfigError(
            f"{run.store.url}: no image of the run has a verdict, so there is nothing to ask about"
        )
    if only_flagged and not (verdicts.codes == FAKE).any():
        raise ConfigError(
            f"{run.store.url}: no image is flagged as fake, so there is nothing to ask about",
            hint="draw without --flagged",
        )
    strata = plan_strata(verdicts, number, only_flagged=only_flagged)
    images = draw(run, verdicts, strata, seed)
    described = run.describe()
    ensemble = described.get("ensemble") or {}
    facts = {
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
        "scored": len(verdicts.ids),
        "unscored": verdicts.unscored,
        "drawn": len(images),
        "strata": [{"name": one.words, **asdict(one)} for one in strata],
        "only_flagged": only_flagged,
    }
    with (folder / SAMPLE).open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        lines.writeheader()
        lines.writerows(images)
    found = (
        pictures_of(run, [row["image_id"] for row in images], side=PICTURE_PX) if pictures else {}
    )
    (folder / PAGE).write_text(render_audit(facts, images, found), encoding="utf-8")
    # Last, because the folder is taken from then on.
    (folder / FACTS).write_text(
        json.dumps(facts | {"sample": images}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    return Audit(facts, tuple(strata), tuple(images))


def draw(
    run: RunDirectory, verdicts: RunVerdicts, strata: Sequence[AuditStratum], seed: int
) -> list[dict[str, Any]]:
    """Draw as many images of each stratum as it says, in a random order.

    Returns:
        Of each image `image_id`, `uri`, `member`, and `stratum`, the index of its stratum. They
        follow from the ids of the strata and the seed alone.
    """
    rows = pd.DataFrame({"image_id": verdicts.ids, "stratum": stratum_codes(verdicts, strata)})
    rows = rows.sort_values("image_id")
    drawn = pd.concat(
        rows[rows["stratum"] == code].sample(stratum.drawn, random_state=seed)
        for code, stratum in enumerate(strata)
    ).sample(frac=1, random_state=seed)
    ids = pa.array(drawn["image_id"])
    tables = current_tables(run, ["image_id", "uri", "member"])
    named = {
        row["image_id"]: row
        for table in tables
        for row in table.filter(pc.is_in(table["image_id"], ids)).to_pylist()
    }
    return [
        named[image_id] | {"stratum": code}
        for image_id, code in zip(ids.to_pylist(), drawn["stratum"].tolist(), strict=True)
    ]


def stratum_codes(verdicts: RunVerdicts, strata: Sequence[AuditStratum]) -> Codes:
    """(n,) the place of every image's stratum; -1 for one of none."""
    codes = np.full(len(verdicts.ids), -1, np.int32)
    for place, stratum in enumerate(strata):
        codes[
            (verdicts.codes == VERDICTS.index(stratum.verdict)) & stratum.spans(verdicts.scores)
        ] = place
    return codes


def plan_strata(
    verdicts: RunVerdicts, number: int, *, only_flagged: bool = False
) -> list[AuditStratum]:
    """The strata, and how many images of each make a sample of so many; with `only_flagged`, none
    but of those whose verdict is fake.
    """
    strata = strata_of(verdicts, number)
    asked = [one for one in strata if one.verdict == "fake" or not only_flagged]
    if not asked:
        return strata
    shares = dict(
        zip(
            asked,
            allotted(
                [one.size for one in asked], [_spread(one, verdicts) for one in asked], number
            ).tolist(),
            strict=True,
        )
    )
    return [replace(one, drawn=shares.get(one, 0)) for one in strata]


def strata_of(verdicts: RunVerdicts, number: int) -> list[AuditStratum]:
    """The strata for a sample of a number of images; none is empty."""
    cuts = next(cuts for least, cuts in _CUTS.items() if number >= least)
    found = []
    for code, verdict in enumerate(VERDICTS):
        scores = np.sort(verdicts.scores[(verdicts.codes == code) & ~np.isnan(verdicts.scores)])
        ends = [None, *_cuts(scores, cuts.get(verdict, ())), None]
        bounded = [AuditStratum(verdict, 0, low, high) for low, high in pairwise(ends)]
        found += [
            replace(one, size=size) for one in bounded if (size := int(one.spans(scores).sum()))
        ]
    without = int(np.isnan(verdicts.scores[verdicts.codes == VERDICTS.index("abstain")]).sum())
    return found + ([AuditStratum("abstain", without, scored=False)] if without else [])


def _spread(stratum: AuditStratum, verdicts: RunVerdicts) -> float:
    """How unalike its images are taken to be, √(p (1 − p)) for p the mean of their probabilities,
    and never near 0.
    """
    if not stratum.scored:
        return 0.5
    scores = verdicts.scores[verdicts.codes == VERDICTS.index(stratum.verdict)]
    p = min(max(float(sigmoid(scores[stratum.spans(scores)]).mean()), _SUREST), 1 - _SUREST)
    return float(np.sqrt(p * (1 - p)))


def allotted(sizes: Sequence[int], spreads: Sequence[float], count: int) -> Counts:
    """How many images of each stratum to draw, int64 (h,): `count` in all, or all there are.

    Half of them evenly, the rest by size × spread (Neyman 1934), which makes the prevalence the
    surest for the labels spent.
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


def read_audit(*folders: Path) -> Audit:
    """The audit in the first folder that has one. Raises ConfigError where none has, or its file is
    none of ours.
    """
    path = next((folder / FACTS for folder in folders if (folder / FACTS).is_file()), None)
    if path is None:
        raise ConfigError(
            f"no {FACTS} in {' or in '.join(dict.fromkeys(map(str, folders)))}",
            hint="--out is the folder of `touchstone runs audit RUN --draw N --out DIR`: without its strata labels cannot be weighed",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        strata = [
            AuditStratum(**{key: value for key, value in one.items() if key != "name"})
            for one in document["strata"]
        ]
        return Audit(document, tuple(strata), tuple(document["sample"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not what `touchstone runs audit --draw` wrote: {error}"
        ) from None


def changed_since(audit: Audit, run: RunDirectory) -> str | None:
    """Why figures of this audit are not of the run as it is now, or None. Raises ConfigError where
    the sample is of another run.
    """
    identity = run.describe_finished()["identity"]
    if _scores_of(identity) != audit.facts["scores"]:
        raise ConfigError(
            f"the sample was drawn from another run than {run.store.url}",
            hint=f"it is of {audit.facts['run']}",
        )
    if fingerprint(identity) != audit.facts["fingerprint"]:
        return "the run was decided anew since the sample was drawn: these figures are of its verdicts before"
    if max(manifests(run.store)) != audit.facts["listing"]:
        return "the run has a newer listing since the sample was drawn: these figures are of the archive before"
    return None


def _cuts(scores: Floats, shares: Sequence[float]) -> list[float]:
    """Where to cut scores (n,), ascending; a cut that would leave less than _LEAST to either side
    is left out.
    """
    cuts: list[float] = []
    for share in shares if len(scores) else ():
        cut = float(scores[min(int(share * len(scores)), len(scores) - 1)])
        below, before = np.searchsorted(scores, [cut, cuts[-1] if cuts else -np.inf])
        cuts += [cut] if below - before >= _LEAST and len(scores) - below >= _LEAST else []
    return cuts


def _scores_of(identity: Mapping[str, Any]) -> str:
    """Names what a run scored and with what, whatever was decided of it."""
    return fingerprint(
        {key: value for key, value in identity.items() if key not in ("decision", WAIVED)}
    )
