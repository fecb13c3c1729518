"""The result of an evaluation as the engine finds it, of made-up scores that look like
detectors', with sections beside detection.
"""

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.evaluation import struct_of, write_run
from ray_app.detectors.card import Platt
from ray_app.ensembles import ensemble_of, sigmoid
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.run import evaluate
from ray_app.reports.evaluation.result import EvaluationResult
from tests.reports.evaluation_sections import with_further
from tests.reports.training_example import picture


class Generator(NamedTuple):
    """How hard it is (less is harder), how many images, whether they are local edits."""

    ease: float
    n: int
    kind: str = "whole"


class System(NamedTuple):
    """How far it holds fakes and reals apart, how it shifts, how it suffers under perturbation,
    which generators it learnt from.
    """

    title: str
    skill: float
    shift: float = 0.0
    frailty: float = 0.5
    seen: tuple[str, ...] = ()
    binary: bool = False


REALS = {
    "laion-400m": Generator(1.0, 200),
    "docci": Generator(1.25, 100),
    "press photographs, scanned": Generator(0.45, 100),
}
FAKES = {
    "ideogram-3.0": Generator(1.0, 60),
    "gpt-image-1": Generator(0.42, 60),
    "flux-1-dev": Generator(1.15, 60),
    "sd-3.5": Generator(1.3, 60),
    "stylegan3": Generator(1.2, 60),
    "nano-banana-pro": Generator(0.2, 60),
    "flux-1-fill, edits": Generator(0.3, 60, "local"),
}
SYSTEMS = {
    "ensemble": System(
        "Stacked ensemble of four", 3.2, -0.3, 0.45, ("flux-1-dev", "sd-3.5", "ideogram-3.0")
    ),
    "openfake-swinv2-small": System(
        "OpenFake SwinV2 small", 2.8, 0.2, 0.6, ("flux-1-dev", "sd-3.5", "ideogram-3.0")
    ),
    "maskclip": System("MaskCLIP, OpenSDI", 1.5, 0.0, 0.5, ("sd-3.5",)),
    "internvl3-2b": System("InternVL3 2B, asked", 0.7, 0.3, 0.3, binary=True),
}
VIEWS = {"jpeg-75": 0.3, "jpeg-30": 1.0, "social": 0.9}
SIDES = {"< 0.1 MP": 200, "0.1–0.5 MP": 600, "0.5–1 MP": 900, "1–4 MP": 1500, "> 4 MP": 3000}


@cache
def example_result() -> EvaluationResult:
    """Four systems, ten generators and sources, and every section."""
    return with_further(_result(REALS, FAKES, SYSTEMS, VIEWS, seed=7, protocol="openfake-v1"))


@cache
def large_result() -> EvaluationResult:
    """Nine systems, forty generators: more than a page can show at once."""
    fakes = {f"generator-{index:02d}": Generator(0.3 + index / 25, 12) for index in range(40)}
    systems = {
        f"detector-{index}": System(
            f"Detector {index}", 1 + index / 3, seen=tuple(fakes)[: 4 * index]
        )
        for index in range(8)
    }
    systems["ensemble"] = System("All eight", 3.0)
    return _result(REALS, fakes, systems, {"jpeg-30": 1.0}, seed=3)


@cache
def one_class(label: str) -> EvaluationResult:
    """Only real images, or only fakes: most metrics are undefined."""
    return _result(
        REALS if label == "real" else {},
        FAKES if label == "fake" else {},
        dict(list(SYSTEMS.items())[:2]),
        {},
        seed=4,
    )


def _result(
    reals: Mapping[str, Generator],
    fakes: Mapping[str, Generator],
    systems: Mapping[str, System],
    views: Mapping[str, float],
    seed: int,
    **settings: Any,
) -> EvaluationResult:
    """What `touchstone evaluate` finds, with the titles of the systems here, what each saw, and
    pictures of its mistakes.
    """
    images = _images(reals, fakes, seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _write_run(folder, images, systems, views, seed)
        names = dict(
            at=(f"{place}/run",),
            labels=f"{place}/labels.jsonl",
            out=f"{place}/out",
            title="Picture desk, November",
        )
        config = EvaluateConfig(**names, thumbnails=False, **settings)
        result = evaluate(config).result
    learnt = {
        name: {maker: "in-training" if maker in one.seen else "unseen" for maker in fakes}
        for name, one in systems.items()
    }
    meta = replace(
        result.meta,
        version="0.6.0",
        made_at="2026-11-21T12:40:00+00:00",
        run=replace(
            result.meta.run,
            url="s3://lab/runs/2026-11-20-desk",
            created_at="2026-11-20T22:10:04+00:00",
            identity={"limits": {"max_pixels": 50_000_000}},
        ),
        labels=replace(result.meta.labels, name="s3://lab/labels/desk.parquet"),
        systems=tuple(
            replace(
                one,
                title=systems[one.name].title,
                generators=tuple(
                    replace(row, seen=learnt[one.name].get(row.name, "unknown"))
                    for row in one.generators
                ),
            )
            for one in result.meta.systems
        ),
        table=tuple(
            replace(
                row,
                seen={name: makers.get(row.name, "unknown") for name, makers in learnt.items()},
            )
            for row in result.meta.table
        ),
    )
    mistakes = tuple(
        replace(one, thumbnail=base64.b64encode(picture(place)).decode())
        for place, one in enumerate(result.mistakes[:16])
    )
    return replace(result, meta=meta, mistakes=mistakes)


def _write_run(
    folder: Path,
    images: "Images",
    systems: Mapping[str, System],
    views: Mapping[str, float],
    seed: int,
) -> None:
    """A finished run of these scores, and its labels: some without a row, some given twice."""
    detectors = [name for name in systems if name != "ensemble"]
    scores = {
        view: {name: _scores(systems[name], images, harm, seed) for name in systems}
        for view, harm in {"": 0.0, **views}.items()
    }
    whole = (
        scores[""]
        .pop("ensemble", np.mean([scores[""][name] for name in detectors], axis=0))
        .astype(float)
    )
    sides = pa.array([SIDES[band] for band in images.size], pa.int32())
    columns = {
        "image_id": np.arange(len(images)) * 7919,
        "uri": [f"s3://desk/set/{name}.tar" for name in images.generator],
        "member": [f"{number:06d}.jpg" for number in range(len(images))],
        "occurrence": [0] * len(images),
        "status": ["ok"] * len(images),
        "format": images.format.tolist(),
        "width": sides,
        "height": sides,
        "scores": struct_of(scores[""]),
        "score": pa.array(whole),
        "probability": pa.array(sigmoid(whole)),
        "verdict": np.select([whole > 0.8, whole < -0.8], ["fake", "real"], "abstain").tolist(),
    }
    kinds = {"generator_ranking": pa.list_(pa.string())}
    columns |= _profile(images, np.random.default_rng(seed))
    if views:
        drawn = [struct_of({name: scores[view][name] for name in detectors}) for view in views]
        columns["views"] = pa.StructArray.from_arrays(drawn, list(views))
        kinds["views"] = columns["views"].type
    card = ensemble_of(detectors).model_copy(
        update={"calibration": Platt(slope=0.95, intercept=-0.1)}
    )
    write_run(folder / "run", [columns], detectors, card.model_dump(mode="json"), **kinds)
    labels = [
        {
            "image_id": int(number),
            "label": "fake" if fake else "real",
            "generator": str(name),
            "kind": None if kind == "real" else str(kind),
        }
        for number, fake, name, kind in zip(
            columns["image_id"], images.fake, images.generator, images.kind, strict=True
        )
    ]
    labels += [*labels[:3], *({**labels[0], "image_id": -number} for number in range(1, 13))]
    (folder / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in labels))


def _profile(images: "Images", rng: Any) -> dict[str, Any]:
    """Generators that were predicted: most of them right, some of a neighbour, some none."""
    makers = list(dict.fromkeys(images.generator[images.fake])) or ["none"]
    others = rng.choice(makers, len(images))
    nearest = [
        str(one if right else other)
        for one, other, right in zip(
            images.generator, others, rng.random(len(images)) < 0.7, strict=True
        )
    ]
    said = rng.random(len(images)) < 0.9
    return {
        "predicted_generator": [
            name if one else None for name, one in zip(nearest, said, strict=True)
        ],
        "generator_ranking": [
            [name, *(other for other in makers[:2] if other != name)] for name in nearest
        ],
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
    rows = [
        (fake, name, one)
        for fake, group in ((False, reals), (True, fakes))
        for name, one in group.items()
        for _ in range(one.n)
    ]
    fake = np.array([row[0] for row in rows], bool)
    n = len(rows)
    formats = np.where(
        rng.random(n) < np.where(fake, 0.55, 0.97),
        "JPEG",
        np.where(rng.random(n) < 0.7, "PNG", "WEBP"),
    )
    bands = np.array(list(SIDES))
    sizes = bands[
        np.where(
            fake,
            rng.choice(5, n, p=[0, 0.1, 0.2, 0.65, 0.05]),
            rng.choice(5, n, p=[0.1, 0.35, 0.25, 0.2, 0.1]),
        )
    ]
    kinds = np.array([row[2].kind if row[0] else "real" for row in rows])
    return Images(
        fake,
        np.array([row[1] for row in rows]),
        np.array([row[2].ease for row in rows]),
        kinds,
        formats,
        sizes,
    )


def _scores(system: System, images: Images, harm: float, seed: int) -> Any:
    # One seed for all systems and views: what is hard is hard for all, as it is with pictures.
    shared = np.random.default_rng(seed).normal(0, 1, len(images))
    own = np.random.default_rng([seed, len(system.title), int(100 * harm)]).normal(
        0, 1, len(images)
    )
    trained = np.isin(images.generator, system.seen)
    distance = (
        system.skill
        * images.ease
        * np.where(trained, 1.35, 1)
        * max(0.05, 1 - system.frailty * harm)
    )
    spread = 0.8 * shared + 0.9 * own
    scores = (
        np.where(images.fake, distance, -distance)
        + spread
        + system.shift
        - 0.6 * system.frailty * harm
    )
    return (np.sign(scores) if system.binary else scores.round(4)).astype(np.float32)
