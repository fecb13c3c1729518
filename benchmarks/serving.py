"""How fast the endpoint answers, against LitServe and plain FastAPI serving the same detector, in
the same run.

    python -m benchmarks.serving [--quick] [--json FILE]

A closed loop of clients, in a process of its own on the same cores, sends 1024 × 768 JPEG
photographs of about 200 KB as multipart forms. Two detectors: the ensemble `tiny`'s, and one of
about 50 ms per image. Servers run one at a time, each round in fresh processes, in an order that
rotates from round to round; ratios are of medians, ours ÷ theirs.

What makes it fair. All load the detector by the same code, with the same precision, and decode and
prepare by the same code. One thread per model everywhere. LitServe is given as many slots and a
short wait; it cuts its batches in its own way. A peer is compared with ours whose model can be at
work on as many cores: LitServe's one worker with one process of ours, its two workers, and
FastAPI's thread pool on two cores, with two. Every score that any server answers is compared with
`load_ensemble`'s for that file. What we do besides and they do not (access, limits, decoding in a
process that a bad image may kill, the ensemble's verdict) is not switched off.

Run it on a quiet machine. TOUCHSTONE_BEFORE=FOLDER adds an earlier version. Which contender is not
installed is told before it begins.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.load import Load, Photograph, load_apart, photographs_in
from benchmarks.machine import Steal, machine, versions
from benchmarks.measuring import ContenderError
from benchmarks.servers import SERVERS
from benchmarks.servers.server import TOKEN, Server, running
from benchmarks.serving_figures import Measurement, complaints, figures, table
from benchmarks.work import DETECTORS, Work, prepare_work

PHOTOGRAPHS = 64
# the works of the scoring benchmark, by their names here
MODELS = {"decode_bound": "tiny", "compute_bound": "heavy"}
PACKAGES = ("touchstone", "torch", "ray", "litserve", "fastapi", "uvicorn", "pillow")


@dataclass(frozen=True)
class Model:
    """A detector, the photographs, and the scores that a server must answer."""

    work: Work
    photographs: Sequence[Photograph]
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Effort:
    """How long and how hard each server is asked."""

    clients: int
    warm_up_s: float
    seconds: float
    rounds: int


FULL, QUICK = (
    Effort(clients=16, warm_up_s=5, seconds=20, rounds=3),
    Effort(clients=16, warm_up_s=3, seconds=10, rounds=1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    effort = replace(
        QUICK if options.quick else FULL, **{key: value for key, value in _effort(options) if value}
    )
    state = machine()
    absent = {name: why for name in options.servers if (why := SERVERS[name].missing())}
    for name, why in absent.items():
        _say(f"without {name}: {why}")
    servers = [name for name in options.servers if name not in absent]
    # so that the server under test is ended with us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # short: the paths of Ray's sockets may have 107 characters
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        models = prepare_models(Path(folder), options.models)
        measured = list(_rounds(models, servers, effort, Path(folder)))
    facts = {
        "machine": state,
        "versions": versions(PACKAGES),
        "effort": vars(effort),
        "quick": options.quick,
        "absent": absent,
    }
    result = {
        **facts,
        "models": {name: DETECTORS[work] for work, name in MODELS.items()},
        **figures(measured, effort.clients),
    }
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
        print(f"\nwritten to {options.json}")
    found = complaints(measured)
    missing = len(models) * len(servers) * effort.rounds - len(measured)
    for complaint in [
        *found,
        *([f"{missing} measurements are missing, see above"] if missing else []),
    ]:
        _say(complaint)
    return 1 if found or missing else 0


def prepare_models(folder: Path, names: Sequence[str] = tuple(MODELS.values())) -> dict[str, Model]:
    """Write photographs, cards and ensembles under `folder`, and score the photographs with
    `load_ensemble`.
    """
    from ray_app.inference.ensemble import load_ensemble

    _say("writing photographs and scoring them once")
    found = {}
    for work in prepare_work(folder, PHOTOGRAPHS, tuple(MODELS)):
        name = MODELS[work.name]
        if name in names:
            work = replace(work, name=name, ensemble=work.ensemble or str(_ensemble(work, folder)))
            ensemble = load_ensemble(work.ensemble, device="cpu")
            ((detector, precision),) = ensemble.spec.precision.items()
            results = ensemble.score(work.files())
            expected = {
                path.name: result.scores[detector]
                for path, result in zip(work.files(), results, strict=True)
            }
            found[name] = Model(work, photographs_in(Path(work.folder), expected), precision)
    return found


def _ensemble(work: Work, folder: Path) -> Path:
    from ray_app.ensembles import build_ensemble

    path = folder / f"{work.name}-ensemble.yaml"
    path.write_text(
        yaml.safe_dump(
            build_ensemble([work.card]).model_dump(mode="json", exclude_none=True), sort_keys=False
        )
    )
    return path


def _rounds(
    models: Mapping[str, Model], names: Sequence[str], effort: Effort, folder: Path
) -> Iterator[Measurement]:
    runs = [(model, name) for model in models for name in names]
    for number in range(effort.rounds):
        turn = number * len(runs) // effort.rounds
        for model, name in runs[turn:] + runs[:turn]:
            where = f"round {number + 1}/{effort.rounds}  {model:<9}{name:<22}"
            try:
                measurement = measure(SERVERS[name], models[model], effort, folder, number)
            # the others are measured all the same; what is missing then shows in the result
            except ContenderError as error:
                _say(f"{where}failed: {error}")
                continue
            _say(f"{where}{measurement.rate:8.1f} images/s   p99 {measurement.p99_s * 1e3:6.0f} ms")
            yield measurement


def measure(
    server: Server, model: Model, effort: Effort, folder: Path, number: int = 0
) -> Measurement:
    """Start one server, load it, end it. Raises ContenderError where it does not come up."""
    work, steal = model.work, Steal()
    with running(server, work, folder) as up:
        before, asleep = up.cpu_s(), steal.busy_s()
        found = load_apart(
            Load(
                up.url, effort.clients, effort.seconds, effort.warm_up_s,
                field=server.score_at(work), precision=model.precision, token=TOKEN,
            ),
            model.photographs,
        )  # fmt: skip
        spent, memory = up.cpu_s() - before, up.memory_bytes()
        elsewhere = steal.busy_s() - asleep - spent
    for _, trouble in found.troubles[:3]:
        _say(f"  {server.name}: {trouble}")
    return Measurement(
        work.name, server.name, number,
        rate=found.rate, p50_s=found.p50_s, p90_s=found.p90_s, p99_s=found.p99_s, max_s=found.max_s,
        ok=found.ok, back_pressure=found.back_pressure, other=found.other, wrong=found.wrong,
        cpu_s_per_image=spent / max(found.ok, 1),
        startup_s=up.startup_s, memory_bytes=memory, client_cpu_s=found.client_cpu_s, elsewhere_cpu_s=max(elsewhere, 0.0),
        steal=steal.share(),
    )  # fmt: skip


def _effort(options: argparse.Namespace) -> list[tuple[str, Any]]:
    return [("clients", options.clients), ("seconds", options.seconds), ("rounds", options.rounds)]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=as_written
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes as well")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round, 16 clients, 10 s each: about 12 minutes on 2 cores",
    )
    parser.add_argument(
        "--rounds", type=int, help="how often each server runs  [1 with --quick, else 3]"
    )
    parser.add_argument("--clients", type=int, help="that ask at once  [16]")
    parser.add_argument(
        "--seconds",
        type=float,
        help="per server and round, after the warm-up  [10 with --quick, else 20]",
    )
    parser.add_argument(
        "--servers", nargs="+", choices=SERVERS, default=list(SERVERS), help="only these"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(MODELS.values()),
        default=list(MODELS.values()),
        help="only these",
    )
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
