"""How busy the engine keeps decoders and scorers, simulated without a GPU.

    python -m benchmarks.flow --json FILE [--decoders 15 31 63] [--scorers 1 4] [--stores local s3]

The engine is the real one: its pools on a local Ray with logical cores and GPUs, its stages with
their messages at full size, its manifest, and its commits to a local disk or an S3 server. Only
reading a block and scoring it are replaced, by sleeping for `--decode-ms` and `--score-ms`. Every
case runs in a fresh process. The fractions are those of the time between the moment at which all
decoders work and the start of the last block.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks.blocks import write_block
from benchmarks.machine import machine
from ray_app.archives import BlockList, ListedMember
from ray_app.detectors.card import default_slots
from ray_app.ensembles import build_ensemble
from ray_app.errors import Status
from ray_app.images import BatchLimits
from ray_app.images.facts import ImageFileFacts
from ray_app.inference import DecodeResult, DetectorOutputs, ResourceEstimate, make_spec
from ray_app.inference.batch import Batch
from ray_app.inference.decision import CLEAN, SCORES, OutputKey
from ray_app.runs import RunDirectory
from ray_app.scoring import engine
from ray_app.scoring.control import start_control
from ray_app.scoring.layout import plan_layout
from ray_app.scoring.stages import BlockDecoder, ScoringJob, TensorScorer
from ray_app.scoring.turns import Turn
from ray_app.storage import Fetcher
from tests.make.servers.s3 import S3Server

BLOCKS_PER_DECODER = 30
# A block takes up to this fraction more or less time than the mean.
SPREAD = 0.2
# Environment variables for the workers: mean milliseconds of an image in each stage, and the folder
# of their events.
DECODE_MS, SCORE_MS, EVENTS = "FLOW_DECODE_MS", "FLOW_SCORE_MS", "FLOW_EVENTS"


@dataclass(frozen=True)
class Case:
    """One simulated machine.

    Attributes:
        decoders: The number of decoders.
        scorers: The number of GPUs.
        store: `local` or `s3`, where the run directory is.
        detector: The detector, which determines the size of messages.
        block_members: Images in a block.
        decode_ms: Milliseconds in which a decoder reads an image.
        score_ms: Milliseconds in which a scorer scores an image.
        store_bytes: The size of the object store.
        blocks_per_decoder: The length of the run.
    """

    decoders: int
    scorers: int
    store: str
    detector: str
    block_members: int
    decode_ms: float
    score_ms: float
    store_bytes: int
    blocks_per_decoder: int = BLOCKS_PER_DECODER


class Event(NamedTuple):
    """The work of one process on one block, in seconds of the monotonic clock of the machine."""

    stage: str
    process: int
    block: int
    begin: float
    end: float


def sleep_over(stage: str, mean_s: float, block: int) -> None:
    """Sleep as long as a block takes a stage, and record the event."""
    varying = 1 + SPREAD * (2 * np.random.default_rng(block).random() - 1)
    begin = time.monotonic()
    time.sleep(mean_s * varying)
    event = Event(stage, os.getpid(), block, begin, time.monotonic())
    with Path(os.environ[EVENTS], f"{event.process}.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


class SleepingReader:
    """In place of `BlockReader`: sleeps, and gives as many pixels as a block has."""

    def __init__(self, job: ScoringJob) -> None:
        [preprocessing] = job.spec.preprocessings
        self._shape, self._slots = preprocessing.shape, job.spec.slots

    def read(self, members: Sequence[Any]) -> Iterator[Batch]:
        mean_s = len(members) * float(os.environ[DECODE_MS]) / 1000
        sleep_over("decode", mean_s, members[0].size_bytes)
        facts = ImageFileFacts("0" * 64, "JPEG", 1024, 768, "RGB", 1, 1, False)
        for start in range(0, len(members), self._slots):
            count = len(members[start : start + self._slots])
            pixels = np.zeros((self._slots, *self._shape, 3), np.uint8)
            outcomes = (DecodeResult(Status.OK, None, facts, None),) * count
            yield Batch(outcomes, (pixels,), ((1024, 768),) * count)


class SleepingDecoder(BlockDecoder):
    """`BlockDecoder` with a reader that sleeps."""

    def _load(self) -> None:
        self._reading = SleepingReader(self._job)  # type: ignore[assignment]


class SleepingScorer(TensorScorer):
    """`TensorScorer` with detectors that sleep."""

    def _load(self) -> None:
        self._describing = None
        self._decoding = self._scoring = self  # type: ignore[assignment]

    def complete(self, batch: Batch) -> Batch:
        return batch

    def score(self, batches: Iterable[Batch]) -> DetectorOutputs:
        count = sum(len(batch.outcomes) for batch in batches)
        sleep_over("score", count * float(os.environ[SCORE_MS]) / 1000, count)
        [name] = self._job.spec.cards
        return DetectorOutputs({OutputKey(CLEAN, name, SCORES): np.zeros(count, np.float32)})


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """Run one case in this process, and return its metrics."""
    import ray

    events = folder / "events"
    events.mkdir()
    os.environ |= {
        DECODE_MS: str(case.decode_ms),
        SCORE_MS: str(case.score_ms),
        EVENTS: str(events),
    }
    cores = case.decoders + case.scorers
    spec = make_spec(build_ensemble([case.detector]), limits=BatchLimits(), device="cuda")
    layout = plan_layout(
        ResourceEstimate.from_spec(spec),
        slots=default_slots("cuda"),
        cpus=cores,
        gpus=case.scorers,
        workers=None,
        block_members=case.block_members,
        store_bytes=case.store_bytes,
    )
    # The object store of a machine with so many cores would be larger.
    layout = replace(layout, block_members=case.block_members)
    with ExitStack() as ending:
        run = RunDirectory.open(_open_store(case.store, folder, ending))
        count = case.decoders * case.blocks_per_decoder
        blocks = write_manifest(run, count, layout.block_members)
        ray.init(
            address="local", num_cpus=cores, num_gpus=case.scorers, include_dashboard=False,
            object_store_memory=case.store_bytes, logging_level="ERROR", log_to_driver=False,
        )  # fmt: skip
        ending.callback(ray.shutdown)
        replaced = {
            "BlockDecoder": SleepingDecoder,
            "scorer_stages": lambda job: [(SleepingScorer, job.spec.pools)],
        }
        ending.enter_context(mock.patch.multiple(engine, **replaced))
        control = ending.enter_context(start_control(layout.max_open_blocks))
        job = ScoringJob(run, spec, Fetcher(), 1, folder, control, members=layout.block_members)
        begin, cpu_s = time.monotonic(), time.process_time()
        turn = Turn(run, control, control.begin_turn(), blocks)
        reports = [time.monotonic() for _ in engine.score_turn(turn, job, layout, _Unwatched())]
        driver_s = time.process_time() - cpu_s
        assert len(reports) == count, f"{len(reports)} reports for {count} blocks"
        metrics = measure(read_events(events), case, begin, layout.block_members)
    return metrics | {
        "block_members": layout.block_members,
        "message_mb": round(
            layout.block_members * ResourceEstimate.from_spec(spec).tensor_bytes / 1e6, 1
        ),
        "driver_ms_per_block": round(1000 * driver_s / count, 1),
        "first_result_s": round(reports[0] - begin, 1),
    }


class _Unwatched:
    """In place of the watchdog of a run."""

    def progressed(self) -> None:
        pass


def _open_store(kind: str, folder: Path, ending: ExitStack) -> str:
    if kind == "local":
        return str(folder / "run")
    server = ending.enter_context(S3Server.start(folder))
    os.environ |= server.environment
    return server.bucket("flow") + "/run"


def write_manifest(run: RunDirectory, count: int, members: int) -> BlockList:
    """Write a manifest of blocks, each in a file of its own, and return the blocks."""
    import pyarrow as pa

    refs = []
    for block in range(count):
        # The size tells the sleeping reader which block it is.
        listed = [
            ListedMember(f"s3://bucket/{block}/{number}.jpg", None, 0, "v", block)
            for number in range(members)
        ]
        refs.append(write_block(run, block, listed))
    return BlockList(pa.Table.from_pylist([asdict(ref) for ref in refs]))


def read_events(folder: Path) -> list[Event]:
    """Read the events of all processes."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [Event(*json.loads(line)) for line in lines]


def measure(
    events: Sequence[Event], case: Case, begin: float, block_members: int
) -> dict[str, Any]:
    """Return the metrics of a case from what its processes did."""
    decoding = [event for event in events if event.stage == "decode"]
    scoring = [event for event in events if event.stage == "score"]
    first = {
        process: min(event.begin for event in decoding if event.process == process)
        for process in {event.process for event in decoding}
    }
    # The last blocks, of which each decoder has two, are not divided evenly.
    begins = sorted(event.begin for event in decoding)
    window = max(first.values()), begins[-2 * case.decoders]
    length = window[1] - window[0]
    waiting = [(event.end, 1) for event in decoding] + [(event.end, -1) for event in scoring]
    level = np.cumsum([step for _, step in sorted(waiting)])
    return {
        "decoders_started": len(first),
        "all_decoders_work_after_s": round(window[0] - begin, 1),
        "steady_s": round(length, 1),
        "decoders_busy": round(_overlap(decoding, window) / length / len(first), 3),
        "scorers_busy": round(_overlap(scoring, window) / length / case.scorers, 3),
        "blocks_per_s": round(sum(window[0] <= event.end <= window[1] for event in decoding) / length, 1),
        "most_messages_in_store": int(level.max()),
    }  # fmt: skip


def _overlap(events: Sequence[Event], window: tuple[float, float]) -> float:
    return sum(
        max(0.0, min(event.end, window[1]) - max(event.begin, window[0])) for event in events
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flow", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--decoders", type=int, nargs="+", default=[15, 31, 63])
    parser.add_argument("--scorers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--stores", nargs="+", choices=["local", "s3"], default=["local", "s3"])
    parser.add_argument("--detector", default="community-forensics-vits384", help="[%(default)s]")
    parser.add_argument("--block-members", type=int, default=64, help="images of a block [64]")
    parser.add_argument("--decode-ms", type=float, default=21.25, help="of an image [%(default)s]")
    parser.add_argument("--score-ms", type=float, default=0.2, help="of an image [%(default)s]")
    parser.add_argument("--store-bytes", type=int, default=4 * 10**9)
    parser.add_argument("--blocks", type=int, default=BLOCKS_PER_DECODER, help="per decoder [30]")
    options = parser.parse_args(arguments)
    results = []
    for decoders in options.decoders:
        for scorers in options.scorers:
            for store in options.stores:
                case = Case(
                    decoders, scorers, store, options.detector, options.block_members, options.decode_ms, options.score_ms,
                    options.store_bytes, options.blocks,
                )  # fmt: skip
                results.append(asdict(case) | _run_apart(case))
                print(json.dumps(results[-1]), flush=True)
                content = {"machine": machine(), "cases": results}
                options.json.write_text(json.dumps(content, indent=2))


def _run_apart(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="flow-", dir="/tmp") as folder:
        command = [sys.executable, "-m", __spec__.name, "--case", json.dumps(asdict(case)), folder]
        # Ray reads its token when it is imported.
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_BACKEND_LOG_LEVEL": "fatal",
        }
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, timeout=600, check=False
        )
        if done.returncode:
            return {"failed": done.returncode}
        return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(run_case(Case(**json.loads(sys.argv[2])), Path(sys.argv[3]))))
    else:
        main()
