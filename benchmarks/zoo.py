"""A zoo of 25 detectors over small archives in one run, in as many passes as memory wants: is every row there, what does it cost?

    python -m benchmarks.zoo /work/shared/realworld --work /tmp/zoo --worker-gb 3.8 --json zoo.json

Weights are seeded, in the published formats: frozen backbones named by `--real` at their published widths, all else narrow; the shipped
detectors of our own as they are. Scores mean nothing. `--also` takes what a run takes: names (`callable:…`, `detectzoo:…`), paths of cards.

Checked: every listed file has one row, and every good row a score of each detector that takes its size; the scores of `--alone` detectors
are those of runs with nobody else. Needs the memory of one pass.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.seeded import seeded_card, write_card, write_weights
from ray_app.detectors import DetectorCard, load_card
from ray_app.detectors.detector import build_network
from ray_app.detectors.families import aeroblade
from ray_app.reports import plan_lines
from ray_app.reports.text import table
from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.demo import sample
from ray_app.scoring.forecast.forecast import forecast
from ray_app.scoring.run import score_archive

OWN_HEAD = "own-head"  # a second head on UnivFD's backbone, as a user fits one
ZOO = (
    "clip-cues", "clip-d-10k-plus", "cnndetection", "community-forensics-vits384", "corvi2023", "ferretnet-s", "ladeda9", "maskclip", "npr",
    "openfake-swinv2-small", "siglip2-open-deepfake", "tiny-ladeda", "touchstone-crop-permissive", "touchstone-photo-detail",
    "touchstone-photo-permissive", "touchstone-photo", "touchstone-tiny", "unifd", "unifd:squash256-crop224", OWN_HEAD,
    "vfm-dinov3-convnext", "vfm-dinov3-l16", "vfm-metaclip2-h14", "vfm-pe-l14", "vfm-siglip2-so400m",
)  # fmt: skip
REAL = ("openai-clip-vit-l14", "commonpool-clip-vit-l14")
ALONE = 4
GB = 10**9


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 where a check failed."""
    options = _options(arguments)
    work: Path = options.work
    paths = _written([name for name in options.detectors if name != "none"], work / "cards", options.real)
    sources = [*map(str, options.sources), sample(work / "demo", options.demo).source]
    limit = None if options.worker_gb is None else int(options.worker_gb * GB)
    config = ScoreConfig(
        source=tuple(sources),
        out=str(work / "run"),
        detectors=(*paths, *options.also),
        accept_licences=tuple(options.accept),
        cluster={"worker_bytes": limit, "workers": options.workers},
    )
    if options.probe is not None:
        print("\n".join(plan_lines(forecast(config, probe=options.probe))), flush=True)
    began = time.monotonic()
    summary = score_archive(config).summary
    wall_s = time.monotonic() - began
    rows = list(current_rows(RunDirectory.open(str(work / "run"))))
    failed = _missing(summary, rows)
    alone = _spread_over_passes(summary, options.alone)
    for name in alone:
        failed += _differing(name, config, work, rows)
    found = _figures(summary, rows, wall_s) | {"checked_alone": alone, "failed": failed}
    print(_table(found), *failed, "every row is there" if not failed else "FAILED", sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **found}, indent=2))
    return int(bool(failed))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="folders to score beside the demo archive")
    parser.add_argument("--work", type=Path, required=True, help="where cards, weights and runs go; what is there is used again")
    parser.add_argument("--detectors", nargs="+", default=ZOO, help="shipped cards with seeded weights; `none` for none of them")
    parser.add_argument("--also", nargs="+", default=(), help="detectors as a run takes them: names, paths of cards")
    parser.add_argument("--real", nargs="*", default=REAL, help="backbones, and detectors, at their published widths")
    parser.add_argument("--accept", nargs="*", default=(), help="licences that `--also` needs")
    parser.add_argument("--worker-gb", type=float, help="cluster.worker_bytes, in GB; none: what the machine has")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--demo", type=int, default=24, help="files of the demo archive")
    parser.add_argument("--probe", type=int, help="print the plan first, with a probe of so many files (0: none)")
    parser.add_argument("--alone", type=int, default=ALONE, help="detectors to run alone and compare")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def _written(names: Sequence[str], folder: Path, real: Sequence[str]) -> list[str]:
    """The paths of cards with weights in the published format; a process that ends with its memory writes those that are missing."""
    paths = [folder / f"{name.replace(':', '-')}.yaml" for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as writing:
        missing = [(name, path) for name, path in zip(names, paths, strict=True) if not path.exists()]
        for done in [writing.submit(_write, name, path, tuple(real)) for name, path in missing]:
            done.result()
    return [str(path) for path in paths]


def _write(name: str, path: Path, real: Sequence[str]) -> None:
    from tests.detectors.small_zoo import CARDS, small

    base = "unifd" if name == OWN_HEAD else name
    published = load_card(base)
    if published.name.startswith("touchstone-"):
        kept = {"uri": str(published.folder / published.weights.uri)}
        card = published.model_copy(update={"weights": published.weights.model_copy(update=kept)})
        if card.backbone is not None:
            place = {"uri": str(card.backbone.folder / card.backbone.weights.uri)}
            card = card.model_copy(
                update={"backbone": card.backbone.model_copy(update={"weights": card.backbone.weights.model_copy(update=place)})}
            )
        write_card(card, path)
        return
    is_real = base in real or (published.backbone is not None and published.backbone.name in real)
    card = published if is_real or base not in CARDS else _sized(small(base), published)
    card = card.model_copy(update={"name": name, "variants": {}, "golden": (), "terms": "permissive"})
    seeded = seeded_card(card, path.parent / "weights", seed=0)
    if card.family == "aeroblade":
        _write_vgg(path.parent / "weights")
    if name == OWN_HEAD:
        own = seeded_card(card, path.parent / "own", seed=1)
        seeded = seeded.model_copy(update={"weights": own.weights})
    write_card(seeded, path)


def _write_vgg(folder: Path) -> None:
    """VGG-16's first convolutions, seeded, which AEROBLADE finds beside its own file."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for place, (before, width) in aeroblade.CONVOLUTIONS.items():
        state[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=generator) / (9 * before) ** 0.5
        state[f"features.{place}.bias"] = torch.zeros(width)
    write_weights(folder / aeroblade.VGG, state)


def _sized(card: DetectorCard, published: DetectorCard) -> DetectorCard:
    """With what the narrow network has and, in proportion, what it takes: the plan reckons with sizes."""
    count = sum(parameter.numel() for parameter in build_network(card).parameters())
    if published.size is None:
        return card
    size = published.size.model_copy(update={"parameters": count, "gmac": published.size.gmac * count / published.size.parameters})
    return card.model_copy(update={"size": size})


def _missing(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is not there of all that should be."""
    failed = (
        [] if len(rows) == summary["members"] == sum(summary["statuses"].values()) else [f"{len(rows)} rows, {summary['members']} files"]
    )
    names = [member["name"] for member in summary["ensemble"]["members"]]
    for row in rows:
        lacking = [name for name in names if row["status"] == "ok" and (row["scores"] or {}).get(name) is None]
        said = row["verdict_reason"] or ""
        failed += [f"{row['uri']}: no score of {name}" for name in lacking if name not in said and "range" not in said]
    return failed


def _spread_over_passes(summary: dict[str, Any], count: int) -> list[str]:
    """Detectors to compare: the first of every pass, then the seconds, and so on."""
    together = [member["name"] for member in summary["ensemble"]["members"]]
    groups = [one["detectors"] for one in summary["session"].get("passes") or [{"detectors": together}]]
    turns = [group[turn] for turn in range(len(together)) for group in groups if turn < len(group)]
    return turns[:count]


def _differing(name: str, config: ScoreConfig, work: Path, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The files of which one detector says something else when it runs alone."""
    named = {Path(one).stem if one.endswith(".yaml") else one: one for one in config.detectors}
    card = next((one for key, one in named.items() if key == name.replace(":", "-") or one == name), name)
    out = work / "alone" / name.replace(":", "-").replace("/", "-")
    score_archive(config.model_copy(update={"detectors": (card,), "out": str(out)}))
    apart = {row["uri"]: (row["scores"] or {}).get(name) for row in current_rows(RunDirectory.open(str(out)))}
    return [
        f"{row['uri']}: {name} says {apart.get(row['uri'])} alone, {(row['scores'] or {}).get(name)} here"
        for row in rows
        if apart.get(row["uri"]) != (row["scores"] or {}).get(name)
    ]


def _figures(summary: dict[str, Any], rows: Sequence[dict[str, Any]], wall_s: float) -> dict[str, Any]:
    session = summary["session"]
    return {
        "rows": len(rows),
        "statuses": summary["statuses"],
        "wall_s": round(wall_s, 1),
        "passes": session.get("passes") or [],
        "backbones": session["backbones"],
        "memory_per_worker_bytes": summary["memory_per_worker_bytes"],
        "detectors": summary["detectors"],
        "stages_s": session["seconds"],
    }


def _table(found: dict[str, Any]) -> str:
    lines = [f"{found['rows']} rows in {found['wall_s']} s: {found['statuses']}"]
    for number, one in enumerate(found["passes"], 1):
        shared = ", ".join(f"{name} {runs['runs']} runs for {runs['asked']} questions" for name, runs in one["backbones"].items())
        lines.append(
            f"pass {number}: {len(one['detectors'])} detectors, {one['images']} images in {one['wall_s']} s, "
            f"{one['workers']} × {one['kind']}, at most {one['peak_worker_bytes'] / GB:.2f} GB measured "
            f"({one['process_bytes'] / GB:.2f} GB reckoned); {shared}"
        )
    place = {name: number for number, one in enumerate(found["passes"], 1) for name in one["detectors"]}
    cells = [
        [name, str(place.get(name, 1)), f"{cost['ms_per_image']:.1f}", f"{cost['seconds']:.2f}", str(cost["images"])]
        for name, cost in sorted(found["detectors"].items(), key=lambda item: place.get(item[0], 1))
    ]
    return "\n".join([*lines, *table(["detector", "pass", "ms per image alone", "seconds here", "images"], cells, right={1, 2, 3, 4})])


if __name__ == "__main__":
    sys.exit(main())
