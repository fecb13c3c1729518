"""Where the processor time of one image goes, part by part: in a worker of a run, fused and split,
and in the tuned script of `benchmarks.contenders.dataloader`.

    python -m benchmarks.budget --json FILE [--works decode_bound …] [--images 1000]

One thread of one process does the work of all stages, one block after another, as a worker does,
while py-spy samples its stack. A sample counts for the innermost function that `PARTS` names. The
shares of the samples divide the processor time per image that the process itself has measured. The
work of Ray's own processes is not among them: `benchmarks.scoring` has it.
"""

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.work import DETECTORS, Work, prepare_work

# The first pattern that matches a frame, `function (file:line)`, names its part. The parts that the
# script lacks state what they are for.
PARTS: dict[str, str] = {
    "resize and crop": r"detectors/preprocessing\.py",
    "JPEG": r"^_decode_with_simplejpeg ",
    "damage checks (no damaged image has a score)": r"^(load|find_declared_end|has_content|_?find_\w+|_is_\w+|_has_\w+) \(ray_app/images/",
    "hash (a file is known by its content)": r"^peek_image ",
    "header and limits (no bomb is decoded)": r"ray_app/images/(limits|jpeg|decode|formats|colour|boxes)\.py",
    "origin (C2PA, metadata, AIGC)": r"images/provenance|_read_provenance",
    "texture (the valid range on a card)": r"ray_app/images/facts\.py",
    "crash marker (a crash costs one image)": r"\.mark_crash|CrashMarker|node_budget|\.read_crash_markers",
    "fetch": r"ray_app/(storage|archives)/|block_reader|^Path\.(read_bytes|open)|concurrent/futures",
    "network": r"ray_app/detectors/|torch/nn|inference/(scorer|cascade)",
    "between processes": r"^(serialize|deserialize) ",
    "decision": r"inference/decision|ray_app/ensembles/",
    "row": r"runs/(rows|image_row|row_shape|schema)",
    "part": r"ray_app/runs/",
    "batch": r"inference/(decoder|batch|image_inputs|private_api)\.py|benchmarks/contenders",
    "block": r"scoring/stages|streams/stage",
}
# Functions in which a thread waits, which py-spy does not always recognise.
_WAITS = re.compile(
    r"^(Condition\.wait|Event\.wait|_worker|Watchdog\._watch|Thread\._bootstrap\w*) "
)
RATE_HZ = 250
BLOCK = 64
WARM_UP = 2  # Blocks.
CONTENDERS = ("fused", "split", "script")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--works", nargs="+", choices=DETECTORS, default=["decode_bound"])
    parser.add_argument("--images", type=int, default=1024, help="images per contender [1024]")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="budget-", dir="/tmp") as folder:
        for work in prepare_work(Path(folder), options.images, options.works):
            result[work.name] = {
                name: _measure(name, work, options.images, Path(folder)) for name in CONTENDERS
            }
            print(f"\n{work.name}, ms of a core per image\n{_table(result[work.name])}", flush=True)
    options.json.write_text(json.dumps(result, indent=2))


def _measure(name: str, work: Work, images: int, folder: Path) -> dict[str, float]:
    """Return the milliseconds of a core per image by part, in a fresh process."""
    command = [sys.executable, "-m", __spec__.name, name, json.dumps(work.as_json()), str(images), str(folder)]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _table(columns: dict[str, dict[str, float]]) -> str:
    parts = [*PARTS, "other", "together"]
    lines = [f"{'':<48}" + "".join(f"{name:>10}" for name in columns)]
    for part in parts:
        values = [column.get(part, 0.0) for column in columns.values()]
        lines.append(f"{part:<48}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines)


def profile(work_on: Callable[[Sequence[Path]], None], files: Sequence[Path]) -> dict[str, float]:
    """Return the milliseconds of a core per image by part, after some blocks to warm up."""
    work_on(files[: WARM_UP * BLOCK])
    with tempfile.NamedTemporaryFile(suffix=".txt") as stacks:
        spy = subprocess.Popen(
            [Path(sys.executable).with_name("py-spy"), "record", "--pid", str(os.getpid()), "--rate", str(RATE_HZ),
             "--format", "raw", "--output", stacks.name, "--duration", "3600"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        assert spy.stdout is not None
        spy.stdout.readline()  # It samples from here on.
        begin = time.process_time()
        work_on(files[WARM_UP * BLOCK :])
        elapsed_s = time.process_time() - begin
        spy.send_signal(signal.SIGINT)
        spy.wait()
        samples = _count_samples(Path(stacks.name).read_text())
    milliseconds = 1000 * elapsed_s / (len(files) - WARM_UP * BLOCK)
    total = samples.total()
    parts = {part: milliseconds * count / total for part, count in samples.items()}
    return parts | {"together": milliseconds}


def _count_samples(stacks: str) -> Counter[str]:
    counted = Counter[str]()
    patterns = {part: re.compile(pattern) for part, pattern in PARTS.items()}
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not _WAITS.search(frames[-1]):
            counted[_find_part(frames, patterns)] += int(count)
    return counted


def _find_part(frames: Sequence[str], patterns: dict[str, re.Pattern[str]]) -> str:
    for frame in reversed(frames):
        for part, pattern in patterns.items():
            if pattern.search(frame):
                return part
    return "other"


def _run_script(work: Work) -> Callable[[Sequence[Path]], None]:
    """Return the work of one process of the tuned script."""
    from benchmarks.contenders.dataloader import score_batches
    from benchmarks.contenders.detectors import load_all

    detectors = load_all(work)

    def work_on(files: Sequence[Path]) -> None:
        for _ in score_batches(detectors, iter(files)):
            pass

    return work_on


def _run_stages(work: Work, folder: Path, *, is_split: bool) -> Callable[[Sequence[Path]], None]:
    """Return the work of the stages of a run, one after another in this thread."""
    from benchmarks.blocks import write_block
    from ray_app.archives import ListedMember
    from ray_app.images import BatchLimits
    from ray_app.images.provenance import ProvenanceConfig
    from ray_app.inference import make_spec
    from ray_app.runs import RunDirectory
    from ray_app.scoring.stages import (
        BlockCommitter,
        BlockDecoder,
        BlockScorer,
        BlockStage,
        ScoringJob,
        TensorScorer,
    )
    from ray_app.storage import Fetcher
    from ray_app.streams.stage import deserialize, serialize

    run = RunDirectory.open(str(folder / f"run-{'split' if is_split else 'fused'}"))
    spec = make_spec(
        work.ensemble_card(), limits=BatchLimits(), provenance=ProvenanceConfig().policy()
    )
    job = ScoringJob(run, spec, Fetcher(), 1, folder / "markers", members=BLOCK)
    stages: list[BlockStage] = (
        [BlockDecoder(job), TensorScorer(job, spec.pools[0]), BlockCommitter(job)]
        if is_split
        else [BlockScorer(job)]
    )
    numbers = itertools.count()

    def work_on(files: Sequence[Path]) -> None:
        for block in _batched(files, BLOCK):
            members = [
                ListedMember(f"file://{path}", None, 0, "", path.stat().st_size) for path in block
            ]
            message: Any = write_block(run, next(numbers), members)
            for stage in stages:
                message = stage.take(deserialize(serialize(message)))
            if hasattr(message, "error"):
                raise message.error

    return work_on


def _batched(files: Sequence[Path], size: int) -> Iterator[list[Path]]:
    remaining = iter(files)
    while batch := list(islice(remaining, size)):
        yield batch


def _child(name: str, work_json: str, images: str, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    work = Work(**json.loads(work_json))
    work_on = (
        _run_script(work)
        if name == "script"
        else _run_stages(work, Path(folder), is_split=name == "split")
    )
    print(json.dumps(profile(work_on, work.files(int(images)))))


if __name__ == "__main__":
    _child(*sys.argv[1:]) if sys.argv[1:2] and sys.argv[1] in CONTENDERS else main()
