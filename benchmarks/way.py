"""How far one image walks through `ray_app`: calls, functions, files, and moves between its packages.

    python -m benchmarks.way [FILE.jpg] [--list]

Two ways, both with the shipped ensemble `tiny`, in this process, without Ray: `load_ensemble().score` of one JPEG, and one block of one
JPEG from its reference to its committed part, as a worker of the fused layout does it. An image before it has warmed everything up.

Threads that are started here count too; a move is from one package to another within one thread. What a child process does is not seen: the
parent's side of a decoder process is counted, the decoding in the child is not.
"""

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType

import ray_app
from benchmarks.photographs import write_photographs
from benchmarks.work import QUALITY, SIZE
from ray_app.archives import BlockPlan, fetcher_of, list_members, open_source, read_blocks
from ray_app.images.provenance import ProvenanceConfig
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.identity import identity_of, resolve
from ray_app.scoring.stages import BlockScorer, ScoringJob

ROOT = f"{Path(ray_app.__file__).parent}/"
Call = tuple[str, str]  # file below ray_app, function


@dataclass(frozen=True)
class Way:
    """Every call of a function of `ray_app`, in order, by thread; a generator that goes on counts as a call."""

    name: str
    calls: tuple[tuple[Call, ...], ...]

    @property
    def functions(self) -> set[Call]:
        """Each function once."""
        return {call for thread in self.calls for call in thread}

    def figures(self) -> dict[str, int]:
        """What is printed."""
        moves = sum(here.split("/")[0] != there.split("/")[0] for thread in self.calls for (here, _), (there, _) in pairwise(thread))
        files = {file for file, _ in self.functions}
        return {"calls": sum(map(len, self.calls)), "functions": len(self.functions), "files": len(files), "moves between packages": moves}

    def listed(self) -> str:
        """The functions of each file."""
        of: dict[str, list[str]] = defaultdict(list)
        for file, function in sorted(self.functions):
            of[file].append(function)
        return "\n".join(f"  {file} ({len(functions)}): {', '.join(functions)}" for file, functions in of.items())


class Recorder:
    """Notes calls while `recording`. It is set before any thread starts, since Python tells a running thread's calls to nobody new."""

    def __init__(self) -> None:
        self._calls: dict[int, list[Call]] = defaultdict(list)
        self._records = False

    @contextmanager
    def installed(self) -> Iterator["Recorder"]:
        """While threads that start are noted."""
        threading.setprofile(self._note)
        try:
            yield self
        finally:
            threading.setprofile(None)  # type: ignore[arg-type]

    def way(self, name: str, act: Callable[[], object]) -> Way:
        """What `act` calls."""
        self._calls.clear()
        self._records = True
        sys.setprofile(self._note)
        try:
            act()
        finally:
            sys.setprofile(None)
            self._records = False
        return Way(name, tuple(map(tuple, self._calls.values())))

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if self._records and event == "call" and code.co_filename.startswith(ROOT):
            self._calls[threading.get_ident()].append((code.co_filename.removeprefix(ROOT), code.co_qualname))


def ensemble_way(recorder: Recorder, picture: Path, *, says: bool = False) -> Way:
    """One image in Python: `load_ensemble().score`; with `says`, what the file says of itself is read too."""
    ensemble = ray_app.load_ensemble("tiny", provenance=ProvenanceConfig(read=says))
    ensemble.score(picture)
    name = "load_ensemble().score" + (", with what the file says of itself" if says else "")
    return recorder.way(name, lambda: ensemble.score(picture))


def block_way(recorder: Recorder, picture: Path, folder: Path) -> Way:
    """One block of one image, from its reference to the part that is written and the report of it; the second block of a run."""
    archive = folder / "archive"
    archive.mkdir()
    for name in ("first.jpg", "second.jpg"):
        (archive / name).write_bytes(picture.read_bytes())
    config = ScoreConfig(source=(str(archive),), out=str(folder / "run"), ensemble="tiny")
    spec = resolve(config).spec(gpus=0)
    run = RunDirectory.open(str(config.out))
    run.claim(identity_of(config, spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    list_members(run.store, open_source(list(config.source)), BlockPlan(batch_slots=1, max_block_members=1))
    worker = BlockScorer(ScoringJob(run, spec, fetcher_of(config.source, config.retry), 1, folder / "crumbs", None))
    first, second = read_blocks(run.store, 0)
    with closing(worker._reading):
        worker.take(first)
        way = recorder.way("block to committed part", lambda: worker.take(second))
    run.publish(0)
    return way


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of all ways."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder, Recorder().installed() as recorder:
        picture = options.picture or photograph(Path(folder))
        said = ensemble_way(recorder, picture, says=True)
        for way in (ensemble_way(recorder, picture), said, block_way(recorder, picture, Path(folder))):
            print(f"{way.name}: {', '.join(f'{count} {what}' for what, count in way.figures().items())}")
            if options.list:
                print(way.listed())
    return 0


def photograph(folder: Path) -> Path:
    """The picture of the figures in docs: 1024 × 768 pixels, as a camera's."""
    write_photographs(folder / "photographs", 1, size=SIZE, quality=QUALITY)
    return next((folder / "photographs").iterdir())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.way", description=__doc__, formatter_class=as_written)
    parser.add_argument("picture", nargs="?", type=Path, metavar="FILE.jpg", help="a JPEG  [a photograph of 1024 × 768]")
    parser.add_argument("--list", action="store_true", help="the functions of each file too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
