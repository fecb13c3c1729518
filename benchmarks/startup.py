"""How long a command takes until it says something, until its first verdict, and to its end, and
what memory it takes.

    python -m benchmarks.startup [--rounds 7] [--only score "check all" …] [--before CHECKOUT] [--json FILE]

Every command runs in a process of its own, from the shell's point of view: the clock starts before
Python does. Rounds are interleaved, and what is printed are medians and from where to where they
go. Beside them stand, for the machine, `import torch`, and the work that `check` cannot do without:
torch, the networks, and one picture or all of them on all cores (`networks one`, `networks all`).
The code of another checkout (`--before`) has every command in the same rounds. Memory is the
largest sum of proportional set sizes over the process tree. A first verdict is the first committed
part of a run, or the first line of JSON. The demo's pictures are made beforehand. The first step of
a training is measured by benchmarks.training. Commands that this command line does not know are
left out, and named. Run it on a quiet machine.
"""

import argparse
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.machine import machine, versions
from benchmarks.measuring import GRACE_S, MARK, ContenderError, ProcessTree, Sampler
from benchmarks.photographs import write_photographs
from benchmarks.training import environment
from benchmarks.work import QUALITY, SIZE, discard

TOUCHSTONE = (sys.executable, "-m", "ray_app.cli")
NETWORKS = """
import os, sys
os.environ["OMP_NUM_THREADS"] = "1"
import torch
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import ray_app
from ray_app.images import inspect_bytes
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import PreparedImage

ensemble, images, cores = ray_app.load_ensemble("default", device="cpu"), int(sys.argv[1]), os.cpu_count()
spec, slots = ensemble.spec, ensemble.spec.slots
shapes = DecodeRequest(preprocessings=spec.stages[0].preprocessings, resize=spec.resize).shapes
image = PreparedImage(inspect_bytes(b""), tuple(np.zeros(shape, np.uint8) for shape in shapes), None, 0.0)
batches = [[image] * min(slots, images - first) for first in range(0, images, slots)]
twins = [ensemble.twin() for _ in range(min(cores, len(batches)))]
with ThreadPoolExecutor(len(twins)) as pool:
    list(pool.map(lambda i: [twins[i].score_read(batch) for batch in batches[i :: len(twins)]], range(len(twins))))
"""
POLL_S, SAMPLE_S, TIMEOUT_S = 0.005, 0.05, 300.0
PACKAGES = ("touchstone", "torch", "ray", "numpy", "pyarrow", "pydantic", "click")
UNKNOWN = b"No such command"
# whether there is a verdict, by the folder of the command: stdout, stderr, run
Seen = Callable[[Path], bool]


@dataclass(frozen=True)
class Command:
    """What is started, in which `{out}` is the folder of the command. `serves`: it is ended by us,
    once it has spoken. `given`: a folder that is copied to `{out}/run` beforehand.
    """

    name: str
    arguments: tuple[str, ...]
    exit_code: int = 0
    verdict: Seen | None = None
    serves: bool = False
    given: Path | None = None


@dataclass(frozen=True)
class Started:
    """Seconds since the command was started, and bytes; None where there is no such moment."""

    name: str
    first_output_s: float | None
    first_verdict_s: float | None
    end_s: float | None
    peak_memory_bytes: int


class UnknownCommandError(Exception):
    """The command line has no such command."""


def commands(archive: Path, finished: Path, sample: Path) -> list[Command]:
    """Everything that is measured; `finished`: a run of the pictures in `archive`; `sample`: a
    folder with the pictures of the demo.
    """
    pictures = [str(picture) for picture in sorted(archive.iterdir())]
    return [
        Command("import torch", (sys.executable, "-c", "import torch; print(torch.__version__)")),
        Command("networks one", (sys.executable, "-c", NETWORKS, "1")),
        Command("networks all", (sys.executable, "-c", NETWORKS, str(len(pictures)))),
        Command("--help", (*TOUCHSTONE, "--help")),
        Command("detectors list", (*TOUCHSTONE, "detectors", "list")),
        Command("results", (*TOUCHSTONE, "results", str(finished))),
        Command(
            "wrong path",
            (*TOUCHSTONE, "score", f"{archive}-not-there", "--out", "{out}/run"),
            exit_code=2,
        ),
        Command(
            "score", (*TOUCHSTONE, "score", str(archive), "--out", "{out}/run"), verdict=_has_part
        ),
        Command("score again", (*TOUCHSTONE, "score", str(archive), "--out", str(finished))),
        Command("plan", (*TOUCHSTONE, "plan", str(archive))),
        Command(
            "demo", (*TOUCHSTONE, "demo", "--out", "{out}/run"), verdict=_has_part, given=sample
        ),
        Command("check one", (*TOUCHSTONE, "check", "--json", pictures[0]), verdict=_has_line),
        Command("check all", (*TOUCHSTONE, "check", "--json", *pictures), verdict=_has_line),
        Command("serve", (*TOUCHSTONE, "serve", "--port", str(_free_port())), serves=True),
    ]


def measure(command: Command, variables: Mapping[str, str], folder: Path) -> Started:
    """Run one command once, in a new folder below `folder`.

    Raises ContenderError where it ends otherwise than it should, UnknownCommandError where the
    command line does not know it.
    """
    out = Path(tempfile.mkdtemp(dir=folder))
    if command.given is not None:
        shutil.copytree(command.given, out / "run")
    arguments = [argument.replace("{out}", str(out)) for argument in command.arguments]
    mark = uuid.uuid4().hex
    with (out / "stdout").open("wb") as output, (out / "stderr").open("wb") as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            arguments,
            env={**variables, MARK: mark},
            stdout=output,
            stderr=errors,
            cwd=out,
            start_new_session=True,
        )
    tree = ProcessTree(process.pid, mark)
    sampler = Sampler(tree, SAMPLE_S)
    try:
        spoke, judged, end = _watched(command, process, out, start)
    finally:
        sampler.stop()
        tree.end(GRACE_S if process.returncode is not None else 0.0)
    try:
        said = (out / "stderr").read_bytes()
        if UNKNOWN in said:
            raise UnknownCommandError(command.name)
        if not command.serves and process.returncode != command.exit_code:
            raise ContenderError(
                f"{command.name}: exit code {process.returncode}\n{said[-2000:].decode(errors='replace')}"
            )
        return Started(
            command.name, spoke, judged, None if command.serves else end, sampler.peak_bytes
        )
    finally:
        discard(out)


def _watched(
    command: Command, process: subprocess.Popen[bytes], out: Path, start: float
) -> tuple[float | None, float | None, float]:
    """Wait for the end of a process: when it spoke, when it had a verdict, when it ended."""
    spoke: float | None = None
    judged: float | None = None
    while True:
        ended = process.poll() is not None
        now = time.monotonic() - start
        if spoke is None and (
            (out / "stdout").stat().st_size
            or (not command.serves and (out / "stderr").stat().st_size)
        ):
            spoke = now
            if command.serves:
                process.send_signal(signal.SIGTERM)
        if judged is None and command.verdict is not None and command.verdict(out):
            judged = now
        if ended:
            return spoke, judged, now
        if now > TIMEOUT_S:
            raise ContenderError(f"{command.name}: not finished after {TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


def _has_part(out: Path) -> bool:
    # the demo's
    return any((out / "run" / "parts").glob("*")) or any((out / "run" / "run" / "parts").glob("*"))


def _has_line(out: Path) -> bool:
    return b"\n" in (out / "stdout").read_bytes()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def medians(measured: Sequence[Started]) -> list[Started]:
    """One line per command, in the order of the first round."""
    return [
        _of_rounds(name, measured, statistics.median)
        for name in dict.fromkeys(one.name for one in measured)
    ]


def _of_rounds(
    name: str, measured: Sequence[Started], chosen: Callable[[Sequence[float]], float]
) -> Started:
    rounds = [asdict(one) for one in measured if one.name == name]
    columns = {
        key: [one[key] for one in rounds if one[key] is not None]
        for key in rounds[0]
        if key != "name"
    }
    return Started(
        name, **{key: chosen(values) if values else None for key, values in columns.items()}
    )


def table(measured: Sequence[Started]) -> str:
    """What is printed: medians, and from where to where the rounds go."""
    heads = f"{'command':<20}{'first output':>24}{'first verdict':>24}{'end':>24}{'memory':>11}"
    lines = (
        (one, _of_rounds(one.name, measured, min), _of_rounds(one.name, measured, max))
        for one in medians(measured)
    )
    return "\n".join([heads, *(_line(*one) for one in lines)])


def _line(one: Started, least: Started | None = None, most: Started | None = None) -> str:
    seconds = []
    for moment in ("first_output_s", "first_verdict_s", "end_s"):
        value = getattr(one, moment)
        spread = (
            f" ({getattr(least, moment):.2f} – {getattr(most, moment):.2f})"
            if value is not None and least and most
            else ""
        )
        seconds.append("–" if value is None else f"{value:.2f} s{spread}")
    return f"{one.name:<20}{seconds[0]:>24}{seconds[1]:>24}{seconds[2]:>24}{one.peak_memory_bytes / 2**20:>7.0f} MiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON where that is asked for."""
    options = _options(arguments)
    here, measured, unknown = machine(), list[Started](), list[str]()
    # so that the command under way is ended with us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # short: the paths of Ray's sockets may have 107 characters
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as name:
        folder = Path(name)
        archive, finished, sample, variables = (
            folder / "photographs",
            folder / "finished",
            folder / "sample",
            environment(folder),
        )
        checkouts = {"": variables} | (
            {" before": {**variables, "PYTHONPATH": str(options.before.resolve())}}
            if options.before
            else {}
        )
        write_photographs(archive, options.images, size=SIZE, quality=QUALITY)
        subprocess.run(
            [*TOUCHSTONE, "demo", "--archive-only", "--out", str(sample)],
            env=variables,
            check=True,
            stdout=sys.stderr,
        )
        wanted = [
            (replace(one, name=f"{one.name}{side}"), checkout)
            for side, checkout in checkouts.items()
            for one in commands(archive, finished.with_name(f"finished{side.strip()}"), sample)
            if not options.only or one.name in options.only
        ]
        for side, checkout in checkouts.items():
            run = finished.with_name(f"finished{side.strip()}")
            subprocess.run(
                [*TOUCHSTONE, "score", str(archive), "--out", str(run)],
                env=checkout,
                check=True,
                stdout=sys.stderr,
                cwd=folder,
            )
        for number in range(options.rounds):
            for command, checkout in wanted if number % 2 == 0 else reversed(wanted):
                if command.name in unknown:
                    continue
                try:
                    measured.append(measure(command, checkout, folder))
                    print(
                        f"round {number + 1}/{options.rounds}  {_line(measured[-1])}",
                        file=sys.stderr,
                        flush=True,
                    )
                except UnknownCommandError:
                    unknown.append(command.name)
    print(table(measured))
    if unknown:
        print(f"not known to this command line: {', '.join(unknown)}")
    if options.json:
        facts = {
            "machine": here,
            "versions": versions(PACKAGES),
            "images": options.images,
            "rounds": options.rounds,
            "unknown": unknown,
        }
        options.json.write_text(
            json.dumps(
                {
                    **facts,
                    "commands": [asdict(one) for one in medians(measured)],
                    "all_rounds": [asdict(one) for one in measured],
                },
                indent=2,
            )
        )
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup", description=__doc__, formatter_class=as_written
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes as well")
    parser.add_argument("--rounds", type=int, default=7, help="how often each command runs  [7]")
    parser.add_argument(
        "--images", type=int, default=100, help="photographs that are scored  [100]"
    )
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="measure the code there as well, by turns"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="COMMAND", help="only these, by the names of the table"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
