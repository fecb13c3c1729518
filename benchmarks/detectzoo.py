"""DetectZoo's own `predict` beside our adapter: are the scores equal, and how many images a second does each do?

    python -m benchmarks.detectzoo --python VENV/bin/python --folder FOLDER --detector safe IMAGES

VENV has detectzoo, FOLDER its cache (`.detectzoo_data`; tests/detectors/detectzoo_seeds.py fills one). Theirs: one process that loads the
detector and calls `predict(path)` for one file after another, with its libraries' own threads. Ours: `load_detector(CARD).score(paths)`,
which decodes here and asks a child. Rounds take turns in one run; loading is not counted. Prints one JSON object.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

THEIRS = """
import json, sys, time
from detectzoo import load_detector
detector = load_detector(sys.argv[1])
print(flush=True)
for line in sys.stdin:
    paths, begun = json.loads(line), time.perf_counter()
    scores = [detector.predict(path).score for path in paths]
    print(json.dumps([time.perf_counter() - begun, scores]), flush=True)
"""


class TheirProcess:
    """DetectZoo in its own Python, by nothing but its public calls."""

    def __init__(self, python: str, folder: Path, name: str) -> None:
        self._process = subprocess.Popen(
            [python, "-c", THEIRS, name], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._read()

    def predict(self, paths: Sequence[str]) -> tuple[float, list[float]]:
        """Seconds, and a score per path."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(list(paths)) + "\n")
        self._process.stdin.flush()
        seconds, scores = json.loads(self._read())
        return seconds, scores

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("DetectZoo's process ended: try it by hand")
        return line


def compare(python: str, folder: Path, name: str, paths: Sequence[str], rounds: int) -> dict[str, Any]:
    """The largest difference of probabilities, and images a second of both, round by round."""
    from ray_app import load_detector
    from ray_app.detectors.foreign.addition import ForeignAddition, add_foreign

    added = add_foreign(ForeignAddition("detectzoo", name, python=python, folder=folder, licence="own"))
    ours, theirs = load_detector(added.path), TheirProcess(python, folder, name)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    largest = 0.0
    try:
        for _ in range(rounds):
            took, expected = theirs.predict(paths)
            seconds["theirs"].append(took)
            begun = time.perf_counter()
            found = list(ours.score(list(paths)))
            seconds["ours"].append(time.perf_counter() - begun)
            for one, probability in zip(found, expected, strict=True):
                score = next(iter(one.scores.values()))
                if score is None:
                    raise SystemExit(f"{one.source}: {one.status}: {one.detail}")
                largest = max(largest, abs(1 / (1 + math.exp(-score)) - probability))
    finally:
        theirs.close()
    rates = {who: len(paths) / statistics.median(each) for who, each in seconds.items()}
    return {"detector": name, "images": len(paths), "largest_difference": largest, "images_per_s": rates,
            "ratio": rates["ours"] / rates["theirs"], "seconds": seconds}  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--detector", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("images", nargs="+")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["TOUCHSTONE_CONFIG"] = f"{place}/config.yaml"
        json.dump(compare(given.python, given.folder.resolve(), given.detector, given.images, given.rounds), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
