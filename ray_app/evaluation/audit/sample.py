"""Draw a sample of a run for people to label (`draw_sample`).

The images of a run are divided into strata by verdict and range of scores, and images are drawn
from each stratum. The files of a sample (`read_audit`) are `sample.csv` to fill in, `audit.html`
with the images, and `audit.json`. `audit.json` has the size of each stratum, by which labels are
weighted. Drawing again from the same run selects the same images.
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
from ray_app.archives import list_complete_manifests
from ray_app.ensembles import sigmoid
from ray_app.errors import ConfigError
from ray_app.evaluation.accumulate import read_thumbnails
from ray_app.reports.audit import render_audit
from ray_app.runs import RunDirectory, current, current_tables, fingerprint
from ray_app.scoring.guarantee import WAIVED

Counts = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
VERDICTS = ("fake", "abstain", "real")
FAKE = VERDICTS.index("fake")
# By minimum sample size, the quantiles of the scores at which the images of each verdict are cut
# into strata. A stratum needs more than a handful of labels, so a small sample has few strata. The
# fakes that were missed are among the reals with the highest scores.
_CUTS: Mapping[int, Mapping[str, tuple[float, ...]]] = {
    250: {"fake": (0.5,), "abstain": (0.5,), "real": (0.5, 0.9, 0.99)},
    100: {"real": (0.9,)},
    0: {},
}
# Minimum number of images of a stratum, unless its verdict has fewer.
_MIN_STRATUM = 20
# One of this many images is drawn regardless of the sizes, so that every stratum has labels.
_EVEN_DIVISOR = 2
# Before labels are known, every stratum is assumed to have at least this fraction of fakes and of
# reals.
_MIN_FRACTION = 0.05
_VERDICTS = pa.schema([("image_id", pa.int64()), ("code", pa.int32()), ("score", pa.float64())])
SAMPLE, PAGE, FACTS = "sample.csv", "audit.html", "audit.json"
SCHEMA = 1
COLUMNS = ("image_id", "uri", "member", "stratum", "label")
IMAGE_PX = 512


@dataclass(frozen=True)
class AuditStratum:
    """A stratum of the sample: images of one verdict with scores from `low` to below `high`.

    Attributes:
        verdict: The verdict.
        size: Number of images.
        low: Lowest score; None for no bound.
        high: Upper bound, which the scores do not reach; None for no bound.
        scored: False for images that abstain because they have no score.
        drawn: Number of its images in the sample.
    """

    verdict: str
    size: int
    low: float | None = None
    high: float | None = None
    scored: bool = True
    drawn: int = 0

    def contains(self, scores: Floats) -> npt.NDArray[np.bool_]:
        """Return for each score (n,) whether it is in the stratum's range of scores.

        NaN stands for an image without a score. NaN is only in the stratum of images without a
        score.
        """
        if not self.scored:
            return np.isnan(scores)
        low, high = (
            -np.inf if self.low is None else self.low,
            np.inf if self.high is None else self.high,
        )
        return (scores >= low) & (scores < high)

    @property
    def description(self) -> str:
        """Description of the stratum in messages, such as "fake, score from 2.50"."""
        if not self.scored:
            return f"{self.verdict}, no score"
        bounds = [
            f"from {self.low:.2f}" if self.low is not None else "",
            f"below {self.high:.2f}" if self.high is not None else "",
        ]
        return (
            f"{self.verdict}, score {' '.join(filter(None, bounds))}"
            if any(bounds)
            else self.verdict
        )


@dataclass(frozen=True)
class RunVerdicts:
    """The images of a run that have a verdict, in the order of the run's rows.

    Attributes:
        ids: Ids (n,).
        codes: Index (n,) of each verdict in VERDICTS.
        scores: Scores (n,); NaN if there is no finite score.
        unscored: Number of images without a verdict, by status, such as `corrupt_image`.
    """

    ids: npt.NDArray[np.int64]
    codes: Codes
    scores: Floats
    unscored: Mapping[str, int]

    @classmethod
    def from_run(cls, run: RunDirectory) -> "RunVerdicts":
        """Read the verdicts of a run from the newest row of each file.

        Files that the last listing no longer found are left out.

        Raises:
            ConfigError: The run does not exist.
        """
        tables: list[pa.Table] = [_VERDICTS.empty_table()]
        unscored = Counter[str]()
        for table in current_tables(run, ["image_id", "status", "verdict", "score"]):
            codes = pc.index_in(table["verdict"].cast(pa.string()), pa.array(VERDICTS))
            unscored.update(table["status"].cast(pa.string()).filter(pc.is_null(codes)).to_pylist())
            tables.append(
                pa.table([table["image_id"], codes, table["score"]], schema=_VERDICTS).filter(
                    pc.is_valid(codes)
                )
            )
        rows = pa.concat_tables(tables)
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
    """The content of `audit.json`: a sample of a run, which people label, and its strata.

    A stratum is a part of the run with one verdict and a range of scores.

    Attributes:
        facts: Facts that were recorded when the sample was drawn, such as the URL of the run, the
            seed, and the number of scored images.
        strata: The strata, with the number of images in the run and in the sample.
        images: For each image of the sample, `image_id`, `uri`, `member`, and `stratum`, the index
            of its stratum.
    """

    facts: Mapping[str, Any]
    strata: tuple[AuditStratum, ...]
    images: tuple[Mapping[str, Any], ...]

    @property
    def scored(self) -> int:
        """Number of images of the run that have a verdict, whether they were drawn or not."""
        return sum(stratum.size for stratum in self.strata)


def draw_sample(
    url: str,
    number: int,
    folder: Path,
    *,
    only_flagged: bool = False,
    seed: int = 0,
    pictures: bool = True,
) -> Audit:
    """Draw a sample of a finished run for people to label, and write its files to a folder.

    Args:
        url: Path or URL of the run.
        number: Number of images to draw.
        folder: The folder for the sample's files.
        only_flagged: Whether to draw only images whose verdict is fake. Other images are only
            counted.
        seed: Seed of the draw.
        pictures: Whether `audit.html` shows the images.

    Returns:
        The sample that was written.

    Raises:
        ConfigError: The run does not exist, is not finished, or has no image to draw, or the folder
            has a sample already.
    """
    if (folder / FACTS).exists():
        raise ConfigError(
            f"{folder} has a sample already, which may have labels",
            hint="choose another folder with --out",
        )
    run = RunDirectory.open(url)
    run.describe_finished()
    verdicts = RunVerdicts.from_run(run)
    if not len(verdicts.ids):
        raise ConfigError(
            f"{run.store.url}: no image of the run has a verdict, so there is nothing to label"
        )
    if only_flagged and not (verdicts.codes == FAKE).any():
        raise ConfigError(
            f"{run.store.url}: no image is flagged as fake, so there is nothing to label",
            hint="draw a sample without --flagged",
        )
    strata = plan_strata(verdicts, number, only_flagged=only_flagged)
    images = draw(run, verdicts, strata, seed)
    run_info = run.describe()
    ensemble = run_info.get("ensemble") or {}
    facts = {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.store.url,
        "fingerprint": fingerprint(run_info["identity"]),
        "scores": _scoring_fingerprint(run_info["identity"]),
        "listing": max(list_complete_manifests(run.store)),
        "ensemble": ensemble.get("name"),
        "target_fpr": (ensemble.get("guarantee") or {}).get("target_fpr"),
        "seed": seed,
        "scored": len(verdicts.ids),
        "unscored": verdicts.unscored,
        "drawn": len(images),
        "strata": [{"name": stratum.description, **asdict(stratum)} for stratum in strata],
        "only_flagged": only_flagged,
    }
    with (folder / SAMPLE).open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        lines.writeheader()
        lines.writerows(images)
    thumbnails = (
        read_thumbnails(run, [row["image_id"] for row in images], side=IMAGE_PX) if pictures else {}
    )
    (folder / PAGE).write_text(render_audit(facts, images, thumbnails), encoding="utf-8")
    # This file comes last, because it marks the folder as used.
    (folder / FACTS).write_text(
        json.dumps(facts | {"sample": images}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    return Audit(facts, tuple(strata), tuple(images))


def draw(
    run: RunDirectory, verdicts: RunVerdicts, strata: Sequence[AuditStratum], seed: int
) -> list[dict[str, Any]]:
    """Draw images of a run at random, as many as planned for each stratum, and shuffle them.

    A stratum is a part of the run with one verdict and a range of scores.

    The result depends only on the ids of the images in each stratum and on the seed.

    Args:
        run: The run.
        verdicts: The verdicts of its images.
        strata: The strata with the number of images to draw.
        seed: Seed of the draw.

    Returns:
        For each image, `image_id`, `uri`, `member`, and `stratum`. `member` is the path or
        row of the image in the container `uri`, or None for a separate file. `stratum` is an index
        in `strata`.
    """
    rows = pd.DataFrame({"image_id": verdicts.ids, "stratum": stratum_codes(verdicts, strata)})
    rows = rows.sort_values("image_id")
    sampled = pd.concat(
        rows[rows["stratum"] == code].sample(stratum.drawn, random_state=seed)
        for code, stratum in enumerate(strata)
    ).sample(frac=1, random_state=seed)
    ids = pa.array(sampled["image_id"])
    tables = current_tables(run, ["image_id", "uri", "member"])
    row_by_id = {
        row["image_id"]: row
        for table in tables
        for row in table.filter(pc.is_in(table["image_id"], ids)).to_pylist()
    }
    return [
        row_by_id[image_id] | {"stratum": code}
        for image_id, code in zip(ids.to_pylist(), sampled["stratum"].tolist(), strict=True)
    ]


def stratum_codes(verdicts: RunVerdicts, strata: Sequence[AuditStratum]) -> Codes:
    """Return the index (n,) in `strata` of the stratum to which each image belongs.

    An image of no stratum has the index -1.
    """
    codes = np.full(len(verdicts.ids), -1, np.int32)
    for index, stratum in enumerate(strata):
        codes[
            (verdicts.codes == VERDICTS.index(stratum.verdict)) & stratum.contains(verdicts.scores)
        ] = index
    return codes


def plan_strata(
    verdicts: RunVerdicts, number: int, *, only_flagged: bool = False
) -> list[AuditStratum]:
    """Divide a run into strata, and choose how many images of each stratum to draw for a sample.

    A stratum has the images of one verdict with a range of scores.

    Args:
        verdicts: The verdicts of the run's images.
        number: Number of images in the sample.
        only_flagged: Whether to draw only images whose verdict is fake.

    Returns:
        All strata. The field `drawn` is the number of images to draw, which is 0 for strata that
        are not sampled.
    """
    strata = build_strata(verdicts, number)
    sampled = [stratum for stratum in strata if stratum.verdict == "fake" or not only_flagged]
    if not sampled:
        return strata
    counts = dict(
        zip(
            sampled,
            allocate(
                [stratum.size for stratum in sampled],
                [_expected_deviation(stratum, verdicts) for stratum in sampled],
                number,
            ).tolist(),
            strict=True,
        )
    )
    return [replace(stratum, drawn=counts.get(stratum, 0)) for stratum in strata]


def build_strata(verdicts: RunVerdicts, number: int) -> list[AuditStratum]:
    """Divide the images of a run into strata by verdict and range of scores.

    A larger sample gets more strata, because a stratum needs more than a handful of labels. Images
    that abstain without a score form a stratum of their own. No stratum is empty.

    Args:
        verdicts: The verdicts of the run's images.
        number: Number of images in the sample.

    Returns:
        The strata with their sizes. No image is drawn yet.
    """
    cuts = next(cuts for min_size, cuts in _CUTS.items() if number >= min_size)
    strata = []
    for code, verdict in enumerate(VERDICTS):
        scores = np.sort(verdicts.scores[(verdicts.codes == code) & ~np.isnan(verdicts.scores)])
        bounds = [None, *_find_cuts(scores, cuts.get(verdict, ())), None]
        bounded = [AuditStratum(verdict, 0, low, high) for low, high in pairwise(bounds)]
        strata += [
            replace(stratum, size=size)
            for stratum in bounded
            if (size := int(stratum.contains(scores).sum()))
        ]
    n_unscored = int(np.isnan(verdicts.scores[verdicts.codes == VERDICTS.index("abstain")]).sum())
    return strata + ([AuditStratum("abstain", n_unscored, scored=False)] if n_unscored else [])


def _expected_deviation(stratum: AuditStratum, verdicts: RunVerdicts) -> float:
    """Return the expected standard deviation of the labels of a stratum.

    It is √(p (1 − p)) for the mean p of the images' probabilities, kept away from 0.
    """
    if not stratum.scored:
        return 0.5
    scores = verdicts.scores[verdicts.codes == VERDICTS.index(stratum.verdict)]
    p = min(
        max(float(sigmoid(scores[stratum.contains(scores)]).mean()), _MIN_FRACTION),
        1 - _MIN_FRACTION,
    )
    return float(np.sqrt(p * (1 - p)))


def allocate(sizes: Sequence[int], spreads: Sequence[float], count: int) -> Counts:
    """Return how many images of each of h strata to draw, int64 (h,).

    Half of the images are divided evenly. The others are divided in proportion to size × spread
    (Neyman 1934), which minimises the variance of the estimated prevalence.

    Args:
        sizes: Number of images of each stratum (h,).
        spreads: Expected standard deviation of the labels of each stratum (h,).
        count: Number of images in all; if there are fewer, all are drawn.
    """
    capacity = np.asarray(sizes, np.int64)
    target = min(count, int(capacity.sum()))
    allocated = np.minimum(capacity, target // (_EVEN_DIVISOR * len(capacity)))
    while remaining := target - int(allocated.sum()):
        weight = np.where(allocated < capacity, capacity * np.asarray(spreads), 0.0)
        quota = remaining * weight / weight.sum()
        extra = np.minimum(np.floor(quota).astype(np.int64), capacity - allocated)
        if not extra.any():
            extra[np.argsort(-quota, kind="stable")[:remaining]] = 1
            extra = np.minimum(extra, capacity - allocated)
        allocated = allocated + extra
    return allocated


def read_audit(*folders: Path) -> Audit:
    """Read `audit.json` from the first of the folders that has this file.

    Raises:
        ConfigError: No folder has an audit, or its file is invalid.
    """
    path = next((folder / FACTS for folder in folders if (folder / FACTS).is_file()), None)
    if path is None:
        raise ConfigError(
            f"no {FACTS} in {' or in '.join(dict.fromkeys(map(str, folders)))}",
            hint="set --out to the folder of `touchstone runs audit RUN --draw N --out DIR`, which has the strata that weight the labels",
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        strata = [
            AuditStratum(**{key: value for key, value in stratum.items() if key != "name"})
            for stratum in document["strata"]
        ]
        return Audit(document, tuple(strata), tuple(document["sample"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} was not written by `touchstone runs audit --draw`: {error}",
            hint="set --out to the folder of `touchstone runs audit RUN --draw N --out DIR`",
        ) from None


def changed_since(audit: Audit, run: RunDirectory) -> str | None:
    """Return a sentence if the run has changed since the sample was drawn; None if it has not.

    A run changes if its verdicts are decided again or its archive is listed again. Estimates from
    the sample then describe the earlier run.

    Args:
        audit: The sample.
        run: The run as it is now.

    Returns:
        The sentence, or None.

    Raises:
        ConfigError: The sample was drawn from another run, or the run is not finished.
    """
    identity = run.describe_finished()["identity"]
    if _scoring_fingerprint(identity) != audit.facts["scores"]:
        raise ConfigError(
            f"the sample was drawn from another run than {run.store.url}",
            hint=f"give the run {audit.facts['run']}",
        )
    if fingerprint(identity) != audit.facts["fingerprint"]:
        return "the run was decided again since the sample was drawn: these metrics are of its earlier verdicts"
    if max(list_complete_manifests(run.store)) != audit.facts["listing"]:
        return "the run has a newer listing since the sample was drawn: these metrics are of the earlier archive"
    return None


def _find_cuts(scores: Floats, quantiles: Sequence[float]) -> list[float]:
    """Return the scores at which to cut scores (n,), ascending.

    A cut that would leave fewer than _MIN_STRATUM images on either side is left out.
    """
    cuts: list[float] = []
    for quantile in quantiles if len(scores) else ():
        cut = float(scores[min(int(quantile * len(scores)), len(scores) - 1)])
        below, before = np.searchsorted(scores, [cut, cuts[-1] if cuts else -np.inf])
        cuts += (
            [cut] if below - before >= _MIN_STRATUM and len(scores) - below >= _MIN_STRATUM else []
        )
    return cuts


def _scoring_fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the fingerprint of what was scored and how, regardless of the decision."""
    return fingerprint(
        {key: value for key, value in identity.items() if key not in ("decision", WAIVED)}
    )
