"""The document of an evaluation, with every figure computed by ray_app.metrics from scores that look like detectors'."""

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ray_app.detectors.card import Calibration, Platt
from ray_app.metrics import calibration as chances
from ray_app.metrics import detection as selective
from ray_app.metrics import operating_points
from ray_app.metrics.arrays import MetricEstimate, ScoreHistogram
from ray_app.metrics.detection import auc_figure, detection_of
from ray_app.metrics.significance import delong_paired, holm, mcnemar
from tests.reports.evaluation_sections import further, published
from tests.reports.training_example import picture


class Generator(NamedTuple):
    """How hard it is (less is harder), how many images, whether they are local edits."""

    ease: float
    n: int
    released: str | None = None
    kind: str = "whole"


class System(NamedTuple):
    """How far it holds fakes and reals apart, how it shifts, how it suffers under perturbation, which generators it learnt from."""

    title: str
    skill: float
    shift: float = 0.0
    frailty: float = 0.5
    seen: tuple[str, ...] = ()
    kind: str = "detector"
    binary: bool = False
    calibrated: bool = True


REALS = {"laion-400m": Generator(1.0, 900), "docci": Generator(1.25, 400), "press photographs, scanned": Generator(0.45, 300)}
FAKES = {
    "ideogram-3.0": Generator(1.0, 200, "2025-03-26"),
    "gpt-image-1": Generator(0.42, 200, "2025-04-23"),
    "flux-1.1-pro": Generator(0.75, 200, "2024-10-02"),
    "flux-1-dev": Generator(1.15, 200, "2024-08-01"),
    "sd-3.5": Generator(1.3, 200, "2024-10-22"),
    "sdxl-turbo": Generator(1.4, 200, "2023-11-28"),
    "midjourney-7": Generator(0.6, 150, "2025-04-03"),
    "stylegan3": Generator(1.2, 100, "2021-06-23"),
    "nano-banana-pro": Generator(0.2, 150, "2025-11-20"),
    "flux-1-fill, edits": Generator(0.3, 120, "2024-11-21", "local"),
}
SYSTEMS = {
    "ensemble": System("Stacked ensemble of four", 3.2, -0.3, 0.45, ("flux-1-dev", "sd-3.5", "sdxl-turbo", "ideogram-3.0"), "ensemble"),
    "openfake-swinv2-small": System("OpenFake SwinV2 small", 2.8, 0.2, 0.6, ("flux-1-dev", "sd-3.5", "ideogram-3.0")),
    "clipdet-latent10k-plus": System("CLIP-D, 10k+", 1.7, 1.6, 0.25, ("stylegan3",), calibrated=False),
    "corvi2023": System("Corvi 2023", 1.6, -2.2, 0.9, ("sdxl-turbo",)),
    "maskclip": System("MaskCLIP, OpenSDI", 1.5, 0.0, 0.5, ("sd-3.5",)),
    "internvl3-2b": System("InternVL3 2B, asked", 0.7, 0.3, 0.3, binary=True, calibrated=False),
}
VIEWS = {
    **{f"jpeg-{quality}": (95 - quality) / 65 for quality in (95, 90, 75, 50, 30)},
    **{f"webp-{quality}": 1.1 * (95 - quality) / 65 for quality in (90, 70, 50)},
    **{f"blur-{sigma}": 0.22 * sigma for sigma in (1, 2, 4)},
    "resize-half": 0.5,
    "screenshot": 0.75,
    "social": 0.9,
}


def example_document(**changes: Any) -> dict[str, Any]:
    return {**_whole(), **changes}


@cache
def large_document() -> dict[str, Any]:
    """Eight systems, forty generators: more than a page can show at once."""
    fakes = {f"generator-{index:02d}": Generator(0.3 + index / 25, 40) for index in range(40)}
    systems = {f"detector-{index}": System(f"Detector {index}", 1 + index / 3, seen=tuple(fakes)[: 4 * index]) for index in range(8)}
    return _document(REALS, fakes, systems, {f"jpeg-{quality}": (95 - quality) / 65 for quality in (95, 75, 50, 30)}, seed=3)


@cache
def small_document() -> dict[str, Any]:
    """Every section, of two systems and few generators."""
    fakes = {name: FAKES[name]._replace(n=30) for name in ("sd-3.5", "nano-banana-pro", "flux-1-fill, edits")}
    reals = {name: one._replace(n=60) for name, one in REALS.items()}
    systems = {name: SYSTEMS[name] for name in ("ensemble", "corvi2023")}
    return _document(reals, fakes, systems, dict(list(VIEWS.items())[:3]), seed=5) | published() | further()


@cache
def one_class(label: str) -> dict[str, Any]:
    """Only real images, or only fakes: most figures are not defined."""
    return _document(REALS if label == "real" else {}, FAKES if label == "fake" else {}, dict(list(SYSTEMS.items())[:2]), {}, seed=4)


@cache
def _whole() -> dict[str, Any]:
    document = _document(REALS, FAKES, SYSTEMS, VIEWS, seed=7)
    return document | published() | further()


def _document(
    reals: Mapping[str, Generator], fakes: Mapping[str, Generator], systems: Mapping[str, System], views: Mapping[str, float], seed: int
) -> dict[str, Any]:
    images = _images(reals, fakes, seed)
    scores = {
        name: {view: _scores(system, images, harm, seed) for view, harm in {"": 0.0, **views}.items()} for name, system in systems.items()
    }
    told = [_system(name, system, images, scores[name], {**reals, **fakes}) for name, system in systems.items()]
    return {
        "schema": 1,
        "version": "0.6.0",
        "made_at": "2026-11-21T12:40:00+00:00",
        "title": "Picture desk, November",
        "run": {
            "url": "s3://lab/runs/2026-11-20-desk",
            "fingerprint": "9c41" * 16,
            "created_at": "2026-11-20T22:10:04+00:00",
            "detectors": [name for name, system in systems.items() if system.kind == "detector"],
            "ensemble": "stacked-four",
            "identity": {"limits": {"max_pixels": 50_000_000}, "detectors": [{"name": name} for name in systems]},
        },
        "labels": {"name": "s3://lab/labels/desk.parquet", "key": "sha256", "rows": len(images) + 12, "joined": len(images)}
        | {"without_row": 12, "rows_without_label": 0, "doubled": 3},
        "protocol": None,
        "data": _data(images),
        "systems": told,
        "reference": [],
        "table": _table(images, told),
        "paired": _paired(systems, images, scores),
        "localization": None,
        "identification": None,
        "prompts": None,
        "groups": None,
        "mistakes": _mistakes(images, scores[next(iter(systems))][""]),
        "overlays": [],
    }


class Images(NamedTuple):
    """Columns: whether fake, which generator, how easy it is, its kind, format and size band."""

    fake: Any
    generator: Any
    ease: Any
    kind: Any
    format: Any
    size: Any

    def __len__(self) -> int:
        return len(self.fake)


def _images(reals: Mapping[str, Generator], fakes: Mapping[str, Generator], seed: int) -> Images:
    rng = np.random.default_rng(seed)
    rows = [(fake, name, one) for fake, group in ((False, reals), (True, fakes)) for name, one in group.items() for _ in range(one.n)]
    fake = np.array([row[0] for row in rows], bool)
    n = len(rows)
    formats = np.where(rng.random(n) < np.where(fake, 0.55, 0.97), "JPEG", np.where(rng.random(n) < 0.7, "PNG", "WEBP"))
    bands = np.array(["< 0.1 MP", "0.1–0.5 MP", "0.5–1 MP", "1–4 MP", "> 4 MP"])
    sizes = bands[np.where(fake, rng.choice(5, n, p=[0, 0.1, 0.2, 0.65, 0.05]), rng.choice(5, n, p=[0.1, 0.35, 0.25, 0.2, 0.1]))]
    kinds = np.array([row[2].kind if row[0] else "real" for row in rows])
    return Images(fake, np.array([row[1] for row in rows]), np.array([row[2].ease for row in rows]), kinds, formats, sizes)


def _scores(system: System, images: Images, harm: float, seed: int) -> Any:
    # One seed for all systems and views: what is hard is hard for all, as it is with pictures.
    shared = np.random.default_rng(seed).normal(0, 1, len(images))
    own = np.random.default_rng([seed, len(system.title), int(100 * harm)]).normal(0, 1, len(images))
    trained = np.isin(images.generator, system.seen)
    distance = system.skill * images.ease * np.where(trained, 1.35, 1) * max(0.05, 1 - system.frailty * harm)
    spread = 0.8 * shared + 0.9 * own
    scores = np.where(images.fake, distance, -distance) + spread + system.shift - 0.6 * system.frailty * harm
    return np.sign(scores) * 1.0 if system.binary else scores.round(4)


def _split(scores: Any, images: Images, among: Any = True) -> tuple[ScoreHistogram, ScoreHistogram]:
    return ScoreHistogram.of(scores[images.fake & among]), ScoreHistogram.of(scores[~images.fake & among])


def _figures(scores: Any, images: Images, system: System, among: Any = True) -> dict[str, Any]:
    calibration = Platt(slope=0.95, intercept=-0.1) if system.calibrated else None
    found = detection_of(*_split(scores, images, among), continuous=not system.binary, calibration=calibration)
    return {key: figure.row() for key, figure in found.items()}


def _system(name: str, system: System, images: Images, by_view: Mapping[str, Any], generators: Mapping[str, Generator]) -> dict[str, Any]:
    scores = by_view[""]
    fakes, reals = _split(scores, images)
    calibration = Platt(slope=0.95, intercept=-0.1) if system.calibrated else None
    told = {
        "name": name,
        "kind": system.kind,
        "title": system.title,
        "output": "binary" if system.binary else "continuous",
        "calibrated": system.calibrated,
        "threshold": 0.0,
        "n_real": reals.n,
        "n_fake": fakes.n,
        "unscored": 4 if system.binary else 0,
        "standing": {
            "weights": {"standing": "published", "why": "the published or shipped file, by its SHA-256", "loaded": "5e" * 32},
            "licence": "Apache-2.0",
            "terms": "permissive",
        },
        "cost": {"ms_per_image": 4.0 + len(name), "process_bytes": 1_300_000_000, "of": 1},
        "figures": _figures(scores, images, system),
        "decided": _decided(scores, images) if system.kind == "ensemble" else None,
        "averages": _averages(scores, images),
        "kinds": {
            kind: _figures(scores, images, system, ~images.fake | (images.kind == kind))
            for kind in ("whole", "local")
            if (images.kind == kind).any()
        },
        "generators": [_generator(one, images, scores, system, generators[one]) for one in dict.fromkeys(images.generator)],
        "views": [
            {"name": view, "n_real": reals.n, "n_fake": fakes.n, "figures": _figures(found, images, system)}
            for view, found in by_view.items()
            if view
        ],
        "strata": _strata(scores, images, system),
        "report": selective.classification_report(fakes.above(0), fakes.n - fakes.above(0), reals.above(0), reals.n - reals.above(0)),
    }
    return told | (_curves(fakes, reals, calibration) if not system.binary and fakes.n and reals.n else {})


def _curves(fakes: ScoreHistogram, reals: ScoreHistogram, calibration: Calibration | None) -> dict[str, Any]:
    edges = np.linspace(-9, 9, 25)
    counts = [np.histogram(np.clip(one.values, -8.99, 8.99), edges, weights=one.counts)[0].astype(int).tolist() for one in (reals, fakes)]
    covered = selective.risk_coverage(fakes, reals, 0.0)
    return {
        "roc": [list(point) for point in operating_points.curve_points(fakes, reals)],
        "precision_recall": [list(point[:2]) for point in operating_points.precision_recall_points(fakes, reals)],
        "reliability": chances.reliability(fakes, reals, calibration) if calibration else [],
        "histogram": {"edges": edges.tolist(), "real": counts[0], "fake": counts[1]},
        "risk_coverage": {**covered, "aurc": covered["aurc"].row()},
    }


def _generator(name: str, images: Images, scores: Any, system: System, facts: Generator) -> dict[str, Any]:
    mine = images.generator == name
    is_fake = bool(images.fake[mine][0])
    found = _figures(scores, images, system, mine | (images.fake != is_fake))
    return {
        "name": name,
        "label": "fake" if is_fake else "real",
        "kind": images.kind[mine][0],
        "seen": "unknown" if system.binary else "in-training" if name in system.seen or not is_fake else "unseen",
        "released": facts.released,
        "n": int(mine.sum()),
        "unscored": 0,
        "rate": found["tpr" if is_fake else "tnr"],
        "auc": found["auc"],
    }


def _averages(scores: Any, images: Images) -> dict[str, Any]:
    fakes = {name: scores[images.generator == name] for name in dict.fromkeys(images.generator[images.fake])}
    found = operating_points.averages({name: (int((one > 0).sum()), len(one)) for name, one in fakes.items()})
    return {key: figure.row() for key, figure in found.items()}


def _decided(scores: Any, images: Images) -> dict[str, Any]:
    counts = [
        int(((images.fake == fake) & band).sum()) for fake in (True, False) for band in (scores > 0.8, scores < -0.8, abs(scores) <= 0.8)
    ]
    found = selective.abstaining(selective.VerdictCounts(*counts, 0, 0))
    return {key: figure.row() for key, figure in found.items()}


def _strata(scores: Any, images: Images, system: System) -> list[dict[str, Any]]:
    rows = []
    for form, size in sorted(set(zip(images.format.tolist(), images.size.tolist(), strict=True))):
        mine = (images.format == form) & (images.size == size)
        found = _figures(scores, images, system, mine)
        n_fake = int(images.fake[mine].sum())
        rows.append({"format": form, "size": size, "n_real": int(mine.sum()) - n_fake, "n_fake": n_fake})
        rows[-1] |= {key: found[key] for key in ("auc", "balanced_accuracy")}
    return rows


def _data(images: Images) -> dict[str, Any]:
    auc = _shortcut(images)
    counted = {
        key: {label: _counted(getattr(images, column)[images.fake == fake]) for label, fake in (("real", False), ("fake", True))}
        for key, column in (("formats", "format"), ("sizes", "size"))
    }
    n_fake = int(images.fake.sum())
    n_local = int((images.kind == "local").sum())
    n_real = len(images) - n_fake
    shortcut = {"auc": auc.row(), "confounded": (auc.value or 0) > 0.6, "features": ["format", "size"], "why": ""}
    return {
        "n": len(images),
        "n_real": n_real,
        "n_fake": n_fake,
        "n_whole": n_fake - n_local,
        "n_local": n_local,
        "statuses": {"ok": len(images), "corrupt_image": 9, "image_too_large": 3},
        **counted,
        "shortcut": shortcut | {"class_ratio": n_fake / n_real if n_real else None, "warnings": []},
    }


def _shortcut(images: Images) -> MetricEstimate:
    """The AUC of format and size alone: the share of fakes among the other half's images of the same, as in `metrics.label_quality`."""
    cells = np.unique(np.char.add(images.format, images.size), return_inverse=True)[1]
    half = np.arange(len(images)) % 2
    shares = np.zeros(len(images))
    for part in (0, 1):
        other = half != part
        fakes = np.bincount(cells[other], images.fake[other], cells.max(initial=0) + 1)
        shares[half == part] = (fakes / np.maximum(np.bincount(cells[other], minlength=len(fakes)), 1))[cells[half == part]]
    return auc_figure(*_split(shares, images))


def _counted(values: Any) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _table(images: Images, told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_system = {one["name"]: {generator["name"]: generator for generator in one["generators"]} for one in told}
    rows = []
    for name in dict.fromkeys(images.generator):
        found = {system: generators[name] for system, generators in by_system.items()}
        first = next(iter(found.values()))
        seen = {system: generator["seen"] for system, generator in found.items()}
        rows.append({"name": name, "label": first["label"], "n": first["n"], "seen": seen})
    footers = [("Average TPR", "averages", "tpr_mean"), ("F1", "figures", "f1"), ("ROC AUC", "figures", "auc")]
    return {
        "rows": rows,
        "columns": list(by_system),
        "cells": {system: {name: one["rate"] for name, one in generators.items()} for system, generators in by_system.items()},
        "footers": [{"name": words, "cells": {one["name"]: one[part][key] for one in told}} for words, part, key in footers],
    }


def _paired(systems: Mapping[str, System], images: Images, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    first, *others = systems
    tests = []
    for other in others:
        one, two = scores[first][""], scores[other][""]
        if systems[other].binary:
            found = mcnemar((one > 0) == images.fake, (two > 0) == images.fake)
        else:
            found = delong_paired(one, two, images.fake)
        tests.append({"a": first, "b": other, **found.row()})
    return [test | {"p_holm": p} for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True)]


def _mistakes(images: Images, scores: Any) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(scores) * ((scores > 0) != images.fake))[:16]
    return [
        {"image_id": int(index), "uri": f"s3://desk/set/{images.generator[index]}.tar", "member": f"{index:06d}.jpg"}
        | {"label": "fake" if images.fake[index] else "real", "generator": str(images.generator[index]), "score": float(scores[index])}
        | {"probability": float(1 / (1 + np.exp(-scores[index]))), "verdict": "fake" if scores[index] > 0 else "real"}
        | {"thumbnail": base64.b64encode(picture(int(index))).decode()}
        for index in order
    ]
