"""How the ensemble `default` was calibrated and measured, on sources that no training has seen.

    python -m tools.default_ensemble.measure_default list data/photos/index.parquet --out held-out.csv
    touchstone score list::held-out.csv --ensemble default --perturb laundered \\
        --perturb tools/default_ensemble/small.yaml --out run --set provenance.read=false
    python -m tools.default_ensemble.measure_default measure data/photos/index.parquet run --out measured.json

`list` names at most 40 files of each source of the splits `validation` and `test`. `measure` fits
Platt scaling and chooses thresholds on `validation` alone, and measures rates on `test`. A family (owner
or gallery) is the unit of every interval and bound: its pictures are alike.

The file that `measure` writes has the numbers of the cards (`calibrations`, `ensemble`) and the
tables of docs/photographs.md.
"""

import argparse
import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ray_app import load_run
from ray_app.detectors.card import Platt
from ray_app.ensembles.decision import logit
from ray_app.evaluation.calibrate.fit_card import fraction_between
from ray_app.evaluation.calibrate.thresholds import evaluate_threshold, lowest_threshold
from ray_app.metrics import calibration
from ray_app.metrics.arrays import Bools, Floats
from ray_app.metrics.clusters import effective_size
from ray_app.metrics.registry import ScoredImages, auc, expected_calibration_error, tpr_at_fpr
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


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures with scores.

    Attributes:
        rows: Their rows in the index.
        scores: Per view and detector, log-odds (n,). The view without a change is `AS_FOUND`.
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

    def of_split(self, split: str) -> "Pictures":
        """Return those of a split."""
        return self.take(np.array([row["split"] == split for row in self.rows], np.bool_))


@dataclass(frozen=True)
class Calibrated:
    """The calibrations of an ensemble whose rule is the mean of the detectors' log-odds."""

    detectors: Mapping[str, Platt]
    ensemble: Platt

    @classmethod
    def fit(cls, pictures: Pictures) -> "Calibrated":
        """Fit Platt scaling so that probabilities are right where half of the pictures are fake."""
        columns = pictures.scores[AS_FOUND]
        detectors = {name: _fit_even(column, pictures.fake) for name, column in columns.items()}
        plain = cls(detectors, Platt(slope=1, intercept=0))
        return cls(detectors, _fit_even(plain.score(columns), pictures.fake))

    def score(self, columns: Mapping[str, Floats]) -> Floats:
        """The ensemble's score (n,) from those of its detectors."""
        calibrated = [platt(columns[name]) for name, platt in self.detectors.items()]
        found: Floats = np.asarray(self.ensemble(np.mean(calibrated, axis=0)), np.float64)
        return found


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
    rng = np.random.default_rng(0)
    places = [np.flatnonzero(families == code) for code in np.unique(families)]
    drawn = []
    for _ in range(DRAWS):
        chosen = np.concatenate([places[i] for i in rng.integers(len(places), size=len(places))])
        if fake[chosen].any() and not fake[chosen].all():
            drawn.append(measure(ScoredImages.from_scores(scores[chosen], fake[chosen])))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return [
        round(number, 4)
        for number in (measure(ScoredImages.from_scores(scores, fake)), float(low), float(high))
    ]


def metrics_of(scores: Floats, fake: Bools, families: np.ndarray) -> dict[str, Any]:
    """AUC and recall at false-positive rates of 1 % and 5 %, each with its interval."""
    return {
        "n_real": int((~fake).sum()),
        "n_fake": int(fake.sum()),
        "auc": with_interval(auc, scores, fake, families),
        "recall_at_1": with_interval(partial(tpr_at_fpr, one_in=100), scores, fake, families),
        "recall_at_5": with_interval(partial(tpr_at_fpr, one_in=20), scores, fake, families),
    }


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


def measure(pictures: Pictures) -> dict[str, Any]:
    """Calibrate on `validation`, measure on `test`. Returns what the file holds."""
    held_out, test = pictures.of_split("validation"), pictures.of_split("test")
    fitted = Calibrated.fit(held_out)
    real_below, thresholds = choose_thresholds(
        fitted.score(held_out.scores[AS_FOUND]), held_out.fake
    )
    default = thresholds[DEFAULT_RATE]
    families, fake = test.codes("family"), test.fake
    scores = {view: fitted.score(columns) for view, columns in test.scores.items()}
    found = scores[AS_FOUND]
    sources = by_source(found, test)
    both = pictures.take(
        np.array([row["split"] in ("validation", "test") for row in pictures.rows])
    )
    return {
        "calibrations": {name: one.model_dump() for name, one in fitted.detectors.items()},
        "ensemble": {
            "calibration": fitted.ensemble.model_dump(),
            "real_below": real_below,
            "operating_points": measure_points(real_below, thresholds, test, found),
        },
        "validation": metrics_of(
            fitted.score(held_out.scores[AS_FOUND]), held_out.fake, held_out.codes("family")
        ),
        "test": {
            view: metrics_of(column, fake, families)
            | {"mean_auc_of_sources": _mean(by_source(column, test))}
            for view, column in scores.items()
        },
        "detectors": {
            name: metrics_of(column, fake, families)
            for name, column in test.scores[AS_FOUND].items()
        },
        "calibration_error": with_interval(
            lambda images: expected_calibration_error(_even(images)), found, fake, families
        ),
        "points_on_test": {
            f"{rate:g}": {
                view: verdict_shares(column, fake, real_below, threshold)
                for view, column in scores.items()
            }
            for rate, threshold in thresholds.items()
        },
        "weakest_sources": sorted(
            ({"source": name, **facts} for name, facts in sources.items()),
            key=lambda one: one["auc"],
        )[:10],
        "by_generator": {
            view: rates_by("generator", column, test, default) for view, column in scores.items()
        },
        "by_kind": {
            view: rates_by("kind", column, test, default) for view, column in scores.items()
        },
        "file_facts_auc": shortcut_auc(
            {name: [row[name] for row in test.rows] for name in FILE_FACTS}, fake
        ).value,
        "splits": check_bounds(
            fitted.score(both.scores[AS_FOUND]), both.fake, both.codes("family")
        ),
    }


def _mean(sources: Mapping[str, Mapping[str, Any]]) -> float:
    return round(float(np.mean([facts["auc"] for facts in sources.values()])), 4)


def _even(images: ScoredImages) -> ScoredImages:
    """As many reals as fakes: the larger class is thinned evenly by score."""
    places = [np.flatnonzero(images.is_fake == kind) for kind in (False, True)]
    fewest = min(map(len, places))
    thinned = [one[np.linspace(0, len(one) - 1, fewest).astype(int)] for one in places]
    return images.select(np.sort(np.concatenate(thinned)))


def held_out_rows(index: Path) -> list[dict[str, Any]]:
    """At most `MOST` rows of each source of `validation` and `test`, those whose SHA-256 of source
    and file is lowest.
    """
    by_name: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(index).to_pylist():
        if row["split"] in ("validation", "test"):
            by_name[row["source"]].append(row)

    def order(row: Mapping[str, Any]) -> bytes:
        return hashlib.sha256(f"{row['source']}\n{row['sha256']}".encode()).digest()

    return [row for name in sorted(by_name) for row in sorted(by_name[name], key=order)[:MOST]]


def read_pictures(index: Path, run: str, kinds: Mapping[str, str]) -> Pictures:
    """The held-out rows of the index with their scores in a run. Those without a score are left
    out, and named.
    """
    table = load_run(run).table()
    rows_of = {row["sha256"]: row for row in table.to_pylist() if row["status"] == "ok"}
    kept = list(_scored(held_out_rows(index), rows_of))
    views: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in kept:
        scored = rows_of[row["sha256"]]
        for view, columns in {AS_FOUND: scored["scores"], **(scored.get("views") or {})}.items():
            for name, score in columns.items():
                views[view][name].append(math.nan if score is None else score)
    return Pictures(
        [
            row
            | {
                "kind": kinds.get(row["source"]),
                "generator": _generator(row["generator"]) if row["label"] == "fake" else None,
            }
            for row in kept
        ],
        {
            view: {name: np.array(column, np.float64) for name, column in columns.items()}
            for view, columns in views.items()
        },
    )


def _generator(listed: str) -> str:
    known = (name for name, pattern in GENERATORS.items() if re.search(pattern, listed))
    return next(known, "others, unknown")


def _scored(
    rows: Sequence[dict[str, Any]], rows_of: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        scored = rows_of.get(row["sha256"])
        columns = (
            [] if scored is None else [scored["scores"], *(scored.get("views") or {}).values()]
        )
        if columns and all(score is not None for one in columns for score in one.values()):
            yield row
        else:
            print(f"no score: {row['uri']}")


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "measure"):
        command = commands.add_parser(name)
        command.add_argument("index", type=Path, help="index.parquet of gather_photographs")
        if name == "measure":
            command.add_argument("run", help="run directory of touchstone score")
            command.add_argument(
                "--sources", type=Path, required=True, help="the list, for its column `kind`"
            )
        command.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.command == "list":
        with asked.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["uri"])
            folder = asked.index.resolve().parent
            writer.writerows([str(folder / row["uri"])] for row in held_out_rows(asked.index))
        return
    with asked.sources.open(newline="") as file:
        kinds = {row["source"]: row["kind"] for row in csv.DictReader(file)}
    measured = measure(read_pictures(asked.index, asked.run, kinds))
    asked.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps({key: measured[key] for key in ("ensemble", "test", "splits")}, indent=1))


if __name__ == "__main__":
    main()
