"""How fast archives are scored, against named peers on the same work in the same run.

    python -m benchmarks.scoring [--quick] --json FILE

1024 × 768 JPEG photographs; one detector bound by decoding, one by computing. Every contender runs
in a fresh process, in each round once, in an order that rotates from round to round. Rate = slope
of images over time between 15 % and 90 % of the images; the start is shown apart. Ratios are of
medians, ours ÷ theirs. A contender that cannot run here is named before anything is measured, and
left out; one that needs other packages than ours gets an environment, made once with uv. Run it on
a quiet machine.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.contenders.contender import Contender, Record
from benchmarks.contenders.touchstone import another_checkout, default_command
from benchmarks.environments import FOLDER
from benchmarks.figures import Measurement, figures, table
from benchmarks.machine import Steal, machine, versions
from benchmarks.measuring import WINDOW, ContenderError, Ran, run_measured, steady_rate
from benchmarks.processor import seconds_per_image
from benchmarks.work import DETECTORS, Work, discard, prepare_work

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 600.0
# × max(1, |score|): bf16 stays far below it, another resize or other weights far above
SAME_WORK = 0.1
STORE_LINE = re.compile(rb"num bytes created total: (\d+)")

# images per contender: about as many seconds for the slow as for the fast
COUNTS: dict[bool, dict[str, dict[str, int]]] = {
    True: {
        "decode_bound": {
            "limit": 400,
            "touchstone": 2000,
            "dataloader_tuned": 1600,
            "ray_guide": 480,
            "daft_guide": 1600,
            "": 960,
        },
        "default_ensemble": {
            "limit": 200,
            "touchstone": 1200,
            "touchstone_before": 1000,
            "": 900,
        },
        "compute_bound": {
            "limit": 40,
            "touchstone": 160,
            "dataloader_tuned": 160,
            "ray_guide": 128,
            "": 160,
        },
        "clip_bound": {"limit": 16, "touchstone": 96, "": 64},
    },
    False: {
        "decode_bound": {
            "limit": 600,
            "touchstone": 4000,
            "dataloader_tuned": 3000,
            "ray_guide": 800,
            "daft_guide": 3000,
            "": 1600,
        },
        "default_ensemble": {
            "limit": 400,
            "touchstone": 2400,
            "touchstone_before": 2000,
            "": 1800,
        },
        "compute_bound": {
            "limit": 60,
            "touchstone": 320,
            "dataloader_tuned": 256,
            "ray_guide": 192,
            "": 256,
        },
        "clip_bound": {"limit": 32, "touchstone": 128, "": 96},
    },
}

PACKAGES = ("touchstone", "torch", "torchvision", "ray", "pillow", "timm", "numpy", "pyarrow")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.before:
        before = another_checkout(options.before.resolve())
        CONTENDERS[before.name] = before
        options.contenders = [*options.contenders, before.name]
    left_out = _left_out(options.contenders, options.environments)
    options.contenders = [name for name in options.contenders if name not in left_out]
    counts = {
        work: {
            name: _count(images, name, options.scale)
            for name in options.contenders
            if work in CONTENDERS[name].works
        }
        for work, images in COUNTS[options.quick].items()
        if work in options.works
    }
    counts = {work: of for work, of in counts.items() if of}
    with tempfile.TemporaryDirectory(
        prefix="bench-", dir="/tmp"
    ) as folder:  # short: the paths of Ray's sockets lie below it and may have 107 characters
        _say("writing photographs")
        works = prepare_work(
            Path(folder), max(max(of.values()) for of in counts.values()), list(counts)
        )
        here = machine()
        measured = list(_rounds(works, counts, options.rounds, Path(folder)))
        first = (
            _first_result_by_default(works, counts, Path(folder))
            if OURS in options.contenders
            else None
        )
    expected = sum(map(len, counts.values())) * options.rounds
    facts = {
        "machine": here,
        "versions": versions(PACKAGES),
        "works": DETECTORS,
        "quick": options.quick,
        "left_out": left_out,
    }
    result = {**facts, **figures(measured, first)}
    options.json.write_text(json.dumps(result, indent=2))
    print(table(result))
    print(f"\nwritten to {options.json}")
    return _complaints(result["score_disagreement"], expected - len(measured))


def _left_out(names: Sequence[str], environments: Path) -> dict[str, str]:
    """The contenders that cannot run here, each with the reason, said before anything is measured."""
    lacking = {
        name: why for name in names if (why := CONTENDERS[name].lacks(environments)) is not None
    }
    for name, why in lacking.items():
        _say(f"{name} is left out: {why}")
    return lacking


def _rounds(
    works: Sequence[Work], counts: Mapping[str, Mapping[str, int]], rounds: int, folder: Path
) -> Iterator[Measurement]:
    runs = [(work, name) for work in works for name in counts[work.name]]
    for number in range(rounds):
        turn = number * len(runs) // rounds
        for work, name in runs[turn:] + runs[:turn]:
            where = f"round {number + 1}/{rounds}  {work.name:<14}{name:<22}"
            try:
                measurement = measure(
                    CONTENDERS[name], work, counts[work.name][name], folder, number
                )
            # the others are measured all the same; what is missing then shows in the result
            except ContenderError as error:
                _say(f"{where}failed: {error}")
                continue
            _say(f"{where}{measurement.rate:8.1f} images/s")
            yield measurement


def measure(
    contender: Contender, work: Work, images: int, folder: Path, number: int = 0
) -> Measurement:
    """Run one contender once. Raises ContenderError, also where not every image got a score."""
    out, steal = folder / f"out-{contender.name}", Steal()
    ran, ray_folder = _run(contender, contender.command(work, images, out), folder)
    record = contender.read(ran.stdout, out)
    if len(record.scores) != len({path.name for path in work.files(images)}):
        raise ContenderError(f"{contender.name}: {len(record.scores)} scores for {images} images")
    measurement = Measurement(
        work.name, contender.name, number, images,
        rate=record.rate or steady_rate(record.finished, images),
        startup=_startup(record, ran),
        peak_memory_bytes=ran.peak_memory_bytes,
        store_bytes=_store_bytes(ray_folder) / images if contender.needs_ray else None,
        detail=record.detail, scores=record.scores, steal=steal.share(),
        processor=seconds_per_image(ran.processor, record.finished, images, WINDOW),
    )  # fmt: skip
    discard(out)
    discard(ray_folder)
    return measurement


def _startup(record: Record, ran: Ran) -> dict[str, float]:
    """Seconds from the command to the end of each step; nothing for the limit, which has no
    start-up to speak of.
    """
    if not record.finished:
        return {}
    steps = {
        **record.marks,
        "first result": record.finished[0][0],
        "last result": record.finished[-1][0],
        "ended": ran.ended_at,
    }
    return {step: t - ran.started_at for step, t in steps.items()}


def _first_result_by_default(works: Sequence[Work], counts: Any, folder: Path) -> float | None:
    """Seconds from the command to the first committed row of the ensemble `tiny`, every other
    setting at its default.
    """
    for work in works:
        if work.ensemble == "tiny":
            contender, out = CONTENDERS[OURS], folder / "out-default"
            try:
                ran, ray_folder = _run(
                    contender, default_command(work, counts[work.name][OURS], out), folder
                )
            except ContenderError as error:
                _say(f"default settings failed: {error}")
                return None
            first = contender.read(ran.stdout, out).finished[0][0] - ran.started_at
            discard(out)
            discard(ray_folder)
            return first
    return None


def _run(contender: Contender, command: Sequence[str], folder: Path) -> tuple[Ran, Path]:
    ray_folder = folder / "ray"
    ray_folder.mkdir(exist_ok=True)
    thread_limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAY_ADDRESS")
    environment = {
        name: value for name, value in os.environ.items() if name not in thread_limits
    } | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(ray_folder),
        # how often the store writes its totals into the raylet's log, which we read
        "RAY_event_stats_print_interval_ms": "1000",
        "RAY_BACKEND_LOG_LEVEL": "info",  # the level of these lines
        "HF_HUB_OFFLINE": "1",
        **contender.environment,
    }
    return run_measured(
        command, environment, timeout_s=TIMEOUT_S, log=folder / f"{contender.name}.log"
    ), ray_folder


def _store_bytes(ray_folder: Path) -> int:
    """Bytes ever created in the object store, by the raylet's own count."""
    logs = ray_folder.rglob("session_2*/logs/raylet.out")
    return max(
        (int(total) for log in logs for total in STORE_LINE.findall(log.read_bytes())), default=0
    )


def _complaints(disagreements: dict[str, dict[str, float]], failed: int) -> int:
    """1 where a contender failed, or where two disagree by more than rounding can explain: then
    their rates do not compare.
    """
    wrong = [
        f"{work}/{name}: {value:.3f}"
        for work, of in disagreements.items()
        for name, value in of.items()
        if not value <= SAME_WORK
    ]
    if wrong:
        _say(
            f"NOT THE SAME WORK: scores differ by more than {SAME_WORK} × max(1, |score|): {', '.join(wrong)}"
        )
    if failed:
        _say(f"{failed} measurements are missing, see above")
    return 1 if wrong or failed else 0


def _count(images: dict[str, int], name: str, scale: float) -> int:
    return max(round(images.get(name, images[""]) * scale / 32), 1) * 32


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring", description=__doc__, formatter_class=as_written
    )
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="where the result goes"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round over fewer images, in under 8 minutes on 2 cores",
    )
    parser.add_argument(
        "--rounds", type=int, help="how often each contender runs  [1 with --quick, else 3]"
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="only these"
    )
    parser.add_argument(
        "--works", nargs="+", choices=DETECTORS, default=list(DETECTORS), help="only these"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=FOLDER,
        help="where contenders' own environments are kept  [%(default)s]",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="also measure `touchstone score` of another checkout with its own .venv",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times as many images, for trying it out"
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
