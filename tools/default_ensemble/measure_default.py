"""How the ensemble `default` was calibrated and measured, on sources that no training has seen.

    python -m tools.default_ensemble.measure_default list data/photos/index.parquet \\
        --splits validation thresholds --out held-out.csv
    touchstone score list::held-out.csv --perturb laundered --out held-out --set provenance.read=false
    python -m tools.default_ensemble.measure_default fit data/photos/index.parquet held-out --out fitted.json

    python -m tools.default_ensemble.measure_default list data/photos/index.parquet --splits test --out test.csv
    touchstone score list::test.csv --perturb laundered --perturb everyday \\
        --perturb tools/default_ensemble/small.yaml --out test --set provenance.read=false
    python -m tools.default_ensemble.measure_default measure data/photos/index.parquet held-out test \\
        --against OLDER --sources configs/photos/sources.csv --out measured.json

`list` names some files of each source. `fit` chooses nothing on `test`: the weights of the detectors
come from one half of the families of `validation`, all calibrations from the other half, and the
thresholds from the reals of that half and of the split `thresholds`, which has only reals. Its
numbers go into the card of the ensemble. `measure` reads the card, and compares it on `test` with an
older ensemble of the same detectors or some of them.

A family (owner or gallery) is the unit of every interval and bound: its pictures are alike.
"""

import argparse
import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.linear_model import LogisticRegression

from ray_app import load_run
from ray_app.detectors.card import Platt
from ray_app.ensembles import EnsembleCard, combine, load_ensemble_card
from ray_app.ensembles.decision import logit
from ray_app.evaluation.calibrate.fit_card import fraction_between
from ray_app.evaluation.calibrate.thresholds import evaluate_threshold, lowest_threshold
from ray_app.metrics import calibration
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.clusters import effective_size
from ray_app.metrics.registry import (
    ScoredImages,
    UndefinedError,
    auc,
    expected_calibration_error,
    tpr_at_fpr,
)
from ray_app.metrics.shortcut import shortcut_auc

MOST = 40  # files of a source
RATES = (0.002, 0.01, 0.02, 0.05)
DEFAULT_RATE = 0.01
MISSED = 0.1  # most generated pictures among those without evidence, of as many real as generated
CONFIDENCE = 0.95
DRAWS, SPLITS = 1000, 200
FILE_FACTS = ("format", "width", "height", "quality", "size_bytes")
AS_FOUND = "as found"
# What the list calls a generator, and its name in the table. A source with several is the first.
GENERATORS = {
    "several": r"^mixed|^~",
    "GPT-Image": r"GPT-Image|GPT-4o|OpenAI",
    "Nano Banana, Gemini": r"Nano-?\s?Banana|Gemini|Google AI",
    "Imagen 3 and 4": r"Imagen",
    "Seedream": r"Seedream|Jimeng",
    "FLUX": r"FLUX",
    "Qwen-Image, Z-Image, HunyuanImage": r"Qwen|Z-Image|Hunyuan",
    "Midjourney": r"Midjourney",
    "DALL-E 3": r"DALL-E 3",
    "DALL-E 2 and mini, GLIDE": r"DALL-E|Craiyon|GLIDE|Muse",
    "SDXL, SD 3": r"SDXL|Stable Diffusion 3|SD ?3",
    "Stable Diffusion 1 and 2": r"\bSD\b|Stable Diffusion",
    "Ideogram, Leonardo, Firefly": r"Ideogram|Leonardo|Firefly",
    "GANs": r"GAN",
}
# Released in 2025 or 2026.
RECENT = (
    r"^(?!mixed).*(GPT-Image|gpt-image|GPT-4o|Nano|Gemini|Imagen 4|Seedream|Qwen|Z-Image|Hunyuan|FLUX\.2|"
    r"Kontext|Lucid|Ideogram 3|Grok|HiDream|Midjourney v7)"
)
# Of strata: edges of the short side in pixels, and of the quality of JPEGs.
SIDES, QUALITIES = (512, 768, 1024), (75, 85, 92, 96)


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures with scores.

    Attributes:
        rows: Their rows in the index.
        scores: Per view and detector, log-odds (n,). The view without a change is `AS_FOUND`. NaN
            if a picture was not scored in a view.
    """

    rows: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, Floats]]

    @property
    def fake(self) -> Bools:
        """Whether each was generated (n,)."""
        return np.array([row["label"] == "fake" for row in self.rows], np.bool_)

    def codes(self, column: str) -> np.ndarray:
        """A number (n,) for each value of a column of the index."""
        return np.unique([row[column] for row in self.rows], return_inverse=True)[1]

    def take(self, chosen: Bools) -> "Pictures":
        """Return some of them."""
        return Pictures(
            [row for row, is_chosen in zip(self.rows, chosen, strict=True) if is_chosen],
            {
                view: {name: column[chosen] for name, column in columns.items()}
                for view, columns in self.scores.items()
            },
        )

    def of_view(self, view: str) -> "Pictures":
        """Return those with scores in a view, and no other view."""
        columns = self.scores[view]
        some = self.take(np.isfinite(np.stack(list(columns.values()))).all(axis=0))
        return Pictures(some.rows, {view: some.scores[view]})

    def of_split(self, split: str) -> "Pictures":
        """Return those of a split."""
        return self.take(np.array([row["split"] == split for row in self.rows], np.bool_))


def score_with(card: EnsembleCard, columns: Mapping[str, Floats]) -> Floats:
    """Return the score (n,) of an ensemble from the log-odds of its detectors."""
    members = {member.detector: member.calibration for member in card.members}
    chosen = {name: columns[name] for name in members}
    return np.asarray(combine(card, chosen, members), np.float64)


def is_choosing(family: str) -> bool:
    """Whether a family of `validation` is in the half on which weights are chosen."""
    return hashlib.sha256(family.encode()).digest()[0] % 2 == 0


def fit(pictures: Pictures) -> dict[str, Any]:
    """Choose weights and thresholds of an ensemble of all detectors in a run. Returns the fields of
    its card, and metrics of both halves.
    """
    held_out = pictures.of_split("validation")
    chosen = np.array([is_choosing(row["family"]) for row in held_out.rows], np.bool_)
    choosing, calibrating = held_out.take(chosen), held_out.take(~chosen)
    platts = {
        name: _fit_even(column, calibrating.fake)
        for name, column in calibrating.scores[AS_FOUND].items()
    }
    weights = fit_weights(choosing, platts)
    fields = {
        "name": "fitted",
        "title": "fitted",
        "rule": "weighted",
        "members": [
            {"detector": name, "weight": weights[name], "calibration": platt.model_dump()}
            for name, platt in platts.items()
        ],
    }
    plain = EnsembleCard.model_validate(fields)
    fields["calibration"] = _fit_even(
        score_with(plain, calibrating.scores[AS_FOUND]), calibrating.fake
    ).model_dump()
    card = EnsembleCard.model_validate(fields)
    others = pictures.of_split("thresholds")
    scores = [score_with(card, each.scores[AS_FOUND]) for each in (calibrating, others)]
    real_below, thresholds = choose_thresholds(
        np.concatenate(scores), np.concatenate([calibrating.fake, others.fake])
    )
    halves = {"choosing": choosing, "calibrating": calibrating}
    return {
        "card": fields,
        "real_below": real_below,
        "thresholds": thresholds,
        "reals": {
            "images": int((~calibrating.fake).sum()) + len(others.rows),
            "families": len(
                {
                    row["family"]
                    for row in [*calibrating.rows, *others.rows]
                    if row["label"] == "real"
                }
            ),
        },
        "metrics": {
            half: {view: metrics_on(each, view, card) for view in each.scores}
            for half, each in halves.items()
        },
    }


def fit_weights(pictures: Pictures, platts: Mapping[str, Platt]) -> dict[str, float]:
    """The weights of the detectors' calibrated log-odds, with sum 1: logistic regression on all
    views, as found and changed.
    """
    known, wanted = [], []
    for some in map(pictures.of_view, pictures.scores):
        (columns,) = some.scores.values()
        known.append(np.stack([platt(columns[name]) for name, platt in platts.items()], axis=1))
        wanted.append(some.fake)
    regression = LogisticRegression(class_weight="balanced")
    found = regression.fit(np.concatenate(known), np.concatenate(wanted)).coef_[0]
    if (found < 0).any():
        raise ValueError(
            f"a detector has a negative weight: {dict(zip(platts, found, strict=True))}"
        )
    shares = found / found.sum()
    return {name: round(float(share), 3) for name, share in zip(platts, shares, strict=True)}


def _fit_even(scores: Floats, fake: Bools) -> Platt:
    fitted = calibration.fit_platt(scores, fake)
    return Platt(slope=fitted.slope, intercept=fitted.intercept - logit(float(fake.mean())))


def choose_thresholds(scores: Floats, fake: Bools) -> tuple[float, dict[float, float]]:
    """Return `real_below`, and the threshold of each rate: the lowest that at most this share of
    the reals reaches, rounded up.
    """
    reals, fakes = scores[~fake], scores[fake]
    thresholds = {rate: math.ceil(lowest_threshold(reals, rate) * 1e4) / 1e4 for rate in RATES}
    return round(no_evidence_below(reals, fakes), 2), thresholds


def measure_points(
    real_below: float, thresholds: Mapping[float, float], pictures: Pictures, scores: Floats
) -> list[dict[str, float]]:
    """Return the operating points of an ensemble card, measured on pictures that chose no
    threshold. The bound counts the reals as the independent ones that their families are worth.
    """
    fake, families = pictures.fake, pictures.codes("family")
    reals, fakes = scores[~fake], scores[fake]
    points = []
    for rate, threshold in thresholds.items():
        size = effective_size(reals, families[~fake], rate)
        seen = evaluate_threshold(threshold, reals, CONFIDENCE, size=size)
        low = min(real_below, threshold)
        points.append(
            {
                "rate": rate,
                "threshold": threshold,
                "false_positive_rate": round(seen.false_positives / seen.n_real, 5),
                "upper_bound": round(seen.upper_bound, 4),
                "recall": round(float((fakes >= threshold).mean()), 4),
                "abstain_real": round(fraction_between(reals, low, threshold), 4),
                "abstain_fake": round(fraction_between(fakes, low, threshold), 4),
            }
        )
    return points


def no_evidence_below(reals: Floats, fakes: Floats) -> float:
    """The highest score below which, of as many real as generated pictures, at most `MISSED` were
    generated.
    """
    cuts = np.unique(np.concatenate([reals, fakes]))
    real = np.searchsorted(np.sort(reals), cuts) / len(reals)
    fake = np.searchsorted(np.sort(fakes), cuts) / len(fakes)
    fits = np.flatnonzero((fake <= MISSED * (real + fake)) & (real > 0))
    return float(cuts[fits[-1]]) if len(fits) else float(cuts[0])


def with_interval(
    measure: Callable[[ScoredImages], float], scores: Floats, fake: Bools, families: np.ndarray
) -> list[float]:
    """A metric with its 95 % interval, by bootstrap over families: value, low, high."""
    drawn = []
    for chosen in draw_families(fake, families):
        with suppress(UndefinedError):  # Too few reals in this draw.
            drawn.append(measure(ScoredImages.from_scores(scores[chosen], fake[chosen])))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [
        round(number, 4)
        for number in (measure(ScoredImages.from_scores(scores, fake)), float(low), float(high))
    ]


def draw_families(fake: Bools, families: np.ndarray) -> Iterator[np.ndarray]:
    """Bootstrap: the places of the pictures of as many families, drawn with replacement."""
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(families == code) for code in np.unique(families)]
    for _ in range(DRAWS):
        chosen = np.concatenate([places[i] for i in rng.integers(len(places), size=len(places))])
        if fake[chosen].any() and not fake[chosen].all():
            yield chosen


def metrics_of(scores: Floats, fake: Bools, families: np.ndarray) -> dict[str, Any]:
    """AUC and recall at false-positive rates of 1 % and 5 %, each with its interval. With fewer than
    100 reals, there is no recall.
    """
    found = {
        "n_real": int((~fake).sum()),
        "n_fake": int(fake.sum()),
        "auc": with_interval(auc, scores, fake, families),
    }
    if found["n_real"] >= 100:
        for percent, one_in in ((1, 100), (5, 20)):
            found[f"recall_at_{percent}"] = with_interval(
                partial(tpr_at_fpr, one_in=one_in), scores, fake, families
            )
    return found


def by_source(scores: Floats, pictures: Pictures) -> dict[str, dict[str, Any]]:
    """The AUC of every source against all pictures of the other class."""
    names = np.array([row["source"] for row in pictures.rows])
    found = {}
    for name in np.unique(names):
        own = np.flatnonzero(names == name)
        first = pictures.rows[int(own[0])]
        found[str(name)] = {
            "label": first["label"],
            "generator": first["generator"],
            "n": len(own),
            "auc": _auc_of(own, scores, pictures.fake),
        }
    return found


def _auc_of(own: np.ndarray, scores: Floats, fake: Bools) -> float:
    """The AUC of pictures of one class against all of the other class."""
    both = np.concatenate([own, np.flatnonzero(fake != fake[own[0]])])
    return round(auc(ScoredImages.from_scores(scores[both], fake[both])), 4)


def verdict_shares(
    scores: Floats, fake: Bools, real_below: float, threshold: float
) -> dict[str, dict[str, float]]:
    """Shares of the reals and of the fakes that are flagged, left open, and passed."""
    low = min(real_below, threshold)
    return {
        label: {
            "flagged": round(float((some >= threshold).mean()), 4),
            "open": round(fraction_between(some, low, threshold), 4),
            "passed": round(float((some <= low).mean()), 4),
        }
        for label, some in (("real", scores[~fake]), ("fake", scores[fake]))
    }


def rates_by(
    column: str, scores: Floats, pictures: Pictures, threshold: float
) -> dict[str, dict[str, Any]]:
    """Per label and value of a column of the index: the share of pictures that are flagged, and the
    AUC against all pictures of the other class.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(pictures.rows):
        groups[f"{row['label']}: {row.get(column) or 'unknown'}"].append(place)
    return {
        name: {
            "n": len(places),
            "flagged": round(float((scores[places] >= threshold).mean()), 4),
            "auc": _auc_of(np.array(places), scores, pictures.fake),
        }
        for name, places in sorted(groups.items())
    }


def check_bounds(scores: Floats, fake: Bools, families: np.ndarray) -> dict[str, dict[str, Any]]:
    """Divide the families `SPLITS` times at random into three parts: choose the thresholds on the
    first, bound their rates on the second, and count how often the rate on the third exceeds the
    chosen rate, and its bound.
    """
    rng = np.random.default_rng(0)
    reals, groups = scores[~fake], families[~fake]
    names = np.unique(groups)
    counts = {rate: {"over_rate": 0, "over_bound": 0, "rates": []} for rate in RATES}
    for _ in range(SPLITS):
        first, second, third = (
            np.isin(groups, part) for part in np.array_split(rng.permutation(names), 3)
        )
        for rate in RATES:
            threshold = lowest_threshold(reals[first], rate)
            size = effective_size(reals[second], groups[second], rate)
            bound = evaluate_threshold(threshold, reals[second], CONFIDENCE, size=size).upper_bound
            realised = float((reals[third] >= threshold).mean())
            counts[rate]["rates"].append(realised)
            counts[rate]["over_rate"] += realised > rate
            counts[rate]["over_bound"] += realised > bound
    return {
        f"{rate:g}": {
            "over_rate": counts[rate]["over_rate"] / SPLITS,
            "over_bound": counts[rate]["over_bound"] / SPLITS,
            "median": round(float(np.median(counts[rate]["rates"])), 5),
            "p95": round(float(np.percentile(counts[rate]["rates"], 95)), 5),
        }
        for rate in RATES
    }


def measure(card: EnsembleCard, older: EnsembleCard, pictures: Pictures) -> dict[str, Any]:
    """Measure an ensemble on `test`, next to another one. Returns what the file holds."""
    views = {view: pictures.of_split("test").of_view(view) for view in pictures.scores}
    scores = {view: score_with(card, some.scores[view]) for view, some in views.items()}
    before = {view: score_with(older, some.scores[view]) for view, some in views.items()}
    thresholds = {point.rate: point.threshold for point in card.operating_points}
    default, real_below = thresholds[DEFAULT_RATE], card.thresholds.real_below
    found, test = scores[AS_FOUND], views[AS_FOUND]
    sources = {view: by_source(scores[view], some) for view, some in views.items()}
    return {
        "operating_points": measure_points(real_below, thresholds, test, found),
        "test": {
            view: metrics_on(some, view, card) | {"mean_auc_of_sources": _mean(sources[view])}
            for view, some in views.items()
        },
        "older": {view: metrics_on(some, view, older) for view, some in views.items()},
        "gain": {
            view: gain_of(scores[view], before[view], some.fake, some.codes("family"))
            for view, some in views.items()
        },
        "detectors": {
            view: {
                name: metrics_of(column, some.fake, some.codes("family"))
                for name, column in some.scores[view].items()
            }
            for view, some in views.items()
        },
        "subsets": {
            name: compare_on(chosen, test, found, before[AS_FOUND])
            for name, chosen in list_subsets(test).items()
        },
        "calibration_error": with_interval(
            lambda images: expected_calibration_error(_even(images)),
            found,
            test.fake,
            test.codes("family"),
        ),
        "points_on_test": {
            f"{rate:g}": {
                view: verdict_shares(scores[view], some.fake, real_below, threshold)
                for view, some in views.items()
            }
            for rate, threshold in thresholds.items()
        },
        "weakest_tenth": {
            name: _mean(weakest_sources(facts, 0.1))
            for name, facts in (
                ("new", sources[AS_FOUND]),
                ("older", by_source(before[AS_FOUND], test)),
            )
        },
        "weakest_sources": weakest_sources(sources[AS_FOUND], 10 / len(sources[AS_FOUND])),
        "by_generator": {
            view: rates_by("generator", scores[view], some, default) for view, some in views.items()
        },
        "by_kind": {
            view: rates_by("kind", scores[view], some, default) for view, some in views.items()
        },
        "file_facts_auc": shortcut_auc(
            {name: [row[name] for row in test.rows] for name in FILE_FACTS}, test.fake
        ).value,
        "splits": check_bounds(
            score_with(card, pictures.scores[AS_FOUND]), pictures.fake, pictures.codes("family")
        ),
    }


def metrics_on(pictures: Pictures, view: str, card: EnsembleCard) -> dict[str, Any]:
    """The metrics of an ensemble in a view."""
    some = pictures.of_view(view)
    return metrics_of(score_with(card, some.scores[view]), some.fake, some.codes("family"))


def gain_of(new: Floats, old: Floats, fake: Bools, families: np.ndarray) -> list[float]:
    """The gain in AUC of scores over others of the same pictures, with its 95 % interval."""
    draws = [
        _auc(new[chosen], fake[chosen]) - _auc(old[chosen], fake[chosen])
        for chosen in draw_families(fake, families)
    ]
    low, high = np.percentile(draws, (2.5, 97.5))
    gain = _auc(new, fake) - _auc(old, fake)
    return [round(number, 4) for number in (gain, float(low), float(high))]


def list_subsets(pictures: Pictures) -> dict[str, Bools]:
    """Pictures that are measured apart, by name: photographs, recent generators, and strata of files."""
    rows = pictures.rows
    kinds, formats = (np.array([row[name] for row in rows]) for name in ("kind", "format"))
    is_recent = np.array([bool(re.search(RECENT, row["listed"])) for row in rows])
    sides = np.array([min(row["width"], row["height"]) for row in rows])
    # NaN is in no stratum.
    qualities = np.array(
        [row["quality"] if row["format"] == "JPEG" else None for row in rows], np.float64
    )
    subsets = {
        "photographs": kinds == "photograph",
        "generators of 2025 and 2026": is_recent | ~pictures.fake,
    }
    for name in np.unique(formats):
        subsets[f"format {name}"] = formats == name
    for low, high in pairwise((0, *SIDES, 100_000)):
        subsets[f"short side {low} to {high - 1}"] = (low <= sides) & (sides < high)
    for low, high in pairwise((0, *QUALITIES, 101)):
        subsets[f"JPEG quality {low} to {high - 1}"] = (low <= qualities) & (qualities < high)
    return subsets


def compare_on(chosen: Bools, pictures: Pictures, new: Floats, old: Floats) -> dict[str, Any]:
    """The metrics of two ensembles on some pictures; only their number if a class is missing."""
    some = pictures.take(chosen)
    counts = {"n_real": int((~some.fake).sum()), "n_fake": int(some.fake.sum())}
    if not min(counts.values()):
        return counts
    families = some.codes("family")
    return metrics_of(new[chosen], some.fake, families) | {
        "older_auc": round(_auc(old[chosen], some.fake), 4),
        "gain": gain_of(new[chosen], old[chosen], some.fake, families),
    }


def weakest_sources(
    sources: Mapping[str, Mapping[str, Any]], share: float
) -> dict[str, Mapping[str, Any]]:
    """The share of the sources with the lowest AUC."""
    ordered = sorted(sources.items(), key=lambda one: one[1]["auc"])
    return dict(ordered[: max(1, round(share * len(ordered)))])


def _auc(scores: Floats, fake: Bools) -> float:
    return auc(ScoredImages.from_scores(scores, fake))


def _mean(sources: Mapping[str, Mapping[str, Any]]) -> float:
    return round(float(np.mean([facts["auc"] for facts in sources.values()])), 4)


def _even(images: ScoredImages) -> ScoredImages:
    """As many reals as fakes: the larger class is thinned evenly by score."""
    places = [np.flatnonzero(images.is_fake == kind) for kind in (False, True)]
    fewest = min(map(len, places))
    thinned = [one[np.linspace(0, len(one) - 1, fewest).astype(int)] for one in places]
    return images.select(np.sort(np.concatenate(thinned)))


def held_out_rows(index: Path, splits: Sequence[str], most: int = MOST) -> list[dict[str, Any]]:
    """At most so many rows of each source of some splits, those whose SHA-256 of source and file is
    lowest.
    """
    by_name: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(index, filters=[("split", "in", splits)]).to_pylist():
        by_name[row["source"]].append(row)

    def order(row: Mapping[str, Any]) -> bytes:
        return hashlib.sha256(f"{row['source']}\n{row['sha256']}".encode()).digest()

    return [row for name in sorted(by_name) for row in sorted(by_name[name], key=order)[:most]]


def read_pictures(index: Path, runs: Sequence[str], kinds: Mapping[str, str]) -> Pictures:
    """The rows of the index with their scores in runs of the same detectors, and with the kind of
    their source.
    """
    known = {row["sha256"]: row for row in pq.read_table(index).to_pylist()}
    kept, views = [], []
    for run in runs:
        for scored in load_run(run).table().to_pylist():
            row = known.get(scored["sha256"])
            columns = {AS_FOUND: scored["scores"] or {}, **(scored.get("views") or {})}
            scores = [score for one in columns.values() for score in one.values()]
            if row is None or not scores or None in scores:
                print(f"no score: {scored['uri']}")
                continue
            is_fake = row["label"] == "fake"
            kept.append(
                row
                | {
                    "kind": kinds.get(row["source"]),
                    "listed": row["generator"],
                    "generator": _generator(row["generator"]) if is_fake else None,
                }
            )
            views.append(columns)
    return Pictures(
        kept,
        {
            view: {
                name: np.array([one.get(view, {}).get(name, math.nan) for one in views])
                for name in views[0][AS_FOUND]
            }
            for view in sorted({view for one in views for view in one})
        },
    )


def _generator(listed: str) -> str:
    known = (name for name, pattern in GENERATORS.items() if re.search(pattern, listed))
    return next(known, "others, unknown")


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listing, fitting, measuring = (commands.add_parser(name) for name in ("list", "fit", "measure"))
    for command in (listing, fitting, measuring):
        command.add_argument("index", type=Path, help="index.parquet of gather_photographs")
    listing.add_argument("--splits", nargs="+", required=True)
    listing.add_argument("--most", type=int, default=MOST, help="files of a source")
    fitting.add_argument("run", help="run directory of touchstone score")
    measuring.add_argument("runs", nargs="+", help="run directories of touchstone score")
    measuring.add_argument("--ensemble", default="default")
    measuring.add_argument("--against", required=True, help="an ensemble of detectors of the run")
    measuring.add_argument(
        "--sources", type=Path, required=True, help="the list, for its column `kind`"
    )
    for command in (listing, fitting, measuring):
        command.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.command == "list":
        with asked.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uri"])
            folder = asked.index.resolve().parent
            rows = held_out_rows(asked.index, asked.splits, asked.most)
            writer.writerows([str(folder / row["uri"])] for row in rows)
        return
    if asked.command == "fit":
        found = fit(read_pictures(asked.index, [asked.run], kinds={}))
    else:
        with asked.sources.open(newline="") as file:
            kinds = {row["source"]: row["kind"] for row in csv.DictReader(file)}
        found = measure(
            load_ensemble_card(asked.ensemble),
            load_ensemble_card(asked.against),
            read_pictures(asked.index, asked.runs, kinds),
        )
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
