"""Somebody with the wheel, an empty folder and an empty home, who types the documents' own lines
(`Person`).

    done = owner.types("README.md", "touchstone results run --out", {"verdicts.csv": "tonight.csv"})
    done = owner.types(owner.asks("touchstone check --help"), "touchstone check --html", {"holiday/": "desk"})

A line is looked up by words that it holds, in their order, in a document or in what a command
printed; all else in it is theirs, so a journey goes the way that the documents say today. What the
reader has to name is put in its place; a name that is not there is an error.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.docs.blocks import CONSOLE, ROOT, blocks_of, inline_commands, pages
from tests.make.waiting import kill_family
from tests.make.wheel import WheelEnvironment

Done = subprocess.CompletedProcess[str]
NO_NAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Person:
    """`folder`: where lines are typed. `home` and `wheel` are all else that there is."""

    wheel: WheelEnvironment
    folder: Path
    home: Path

    @classmethod
    def with_nothing(cls, wheel: WheelEnvironment, place: Path) -> "Person":
        """In new folders below `place`. What is imported is the wheel, not the checkout."""
        person = cls(wheel, place / "work", place / "home")
        person.folder.mkdir()
        person.home.mkdir()
        found = person.asks('python -c "import ray_app; print(ray_app.__file__)"').stdout
        assert Path(found.strip()).is_relative_to(wheel.folder), f"not the wheel: {found}"
        return person

    def environment(self) -> dict[str, str]:
        """Of every line."""
        ours = ("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
        kept = {name: value for name, value in self.wheel.environment().items() if name not in ours}
        return kept | {"HOME": str(self.home), "COLUMNS": "160", "RAY_USAGE_STATS_ENABLED": "0"}

    def asks(self, line: str, *, code: int = 0) -> Done:
        """Run a line; its exit code has to be `code`."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, (
            f"{line}\nended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done

    def types(
        self, place: str | Done, words: str, names: Mapping[str, str] = NO_NAMES, *, code: int = 0
    ) -> Done:
        """Run the line of a document, or of what a command printed, that holds these words."""
        return self.asks(line_of(place, words, names), code=code)

    @contextmanager
    def begins(
        self, place: str | Done, words: str, names: Mapping[str, str] = NO_NAMES
    ) -> Iterator["Begun"]:
        """The same line while it runs; what is left of it in the end is killed."""
        line, log = (
            line_of(place, words, names).removesuffix("&").strip(),
            self.folder.parent / "begun.log",
        )
        with log.open("w") as both:
            process = subprocess.Popen(
                ["bash", "-c", line],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=both,
                stderr=both,
            )
        try:
            yield Begun(process, log)
        finally:
            kill_family(process)


@dataclass(frozen=True)
class Begun:
    """A line that runs, and the file of what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    def runs(self) -> bool:
        """True; it has to be running still."""
        assert self.process.poll() is None, (
            f"ended with {self.process.returncode}\n{self.log.read_text()[-4000:]}"
        )
        return True

    def said(self, pattern: str) -> bool:
        """Whether it has printed a line that matches."""
        return self.runs() and re.search(pattern, self.log.read_text(), re.MULTILINE) is not None

    def ends(self, signal: int) -> int:
        """Its exit code after a signal."""
        os.kill(self.process.pid, signal)
        return self.process.wait(180)


def line_of(place: str | Done, words: str, names: Mapping[str, str] = NO_NAMES) -> str:
    """The command line there that is these words, else the one that holds them, with the reader's
    names.
    """
    lines = _lines(place)
    found = [line for line in lines if line == words] or [
        line for line in lines if _holds(line, words)
    ]
    if len(found) != 1:
        here = place if isinstance(place, str) else place.args[-1]
        elsewhere = {
            str(page.relative_to(ROOT)): one
            for page in pages()
            for one in _lines(page)
            if _holds(one, words)
        }
        raise AssertionError(
            f"{len(found)} lines of {here} hold {words!r}: {found}; of all documents: {elsewhere}; there are: {lines}"
        )
    line = found[0]
    for name, theirs in names.items():
        pattern = (
            rf"(?<![\w/-]){re.escape(name)}(?![\w-])" if name[-1].isalnum() else re.escape(name)
        )
        line, times = re.subn(pattern, lambda _, theirs=theirs: theirs, line)
        assert times, f"{found[0]!r} of {place} does not name {name!r}"
    return line


def _lines(place: str | Path | Done) -> list[str]:
    """Each command line once, in order."""
    if isinstance(place, subprocess.CompletedProcess):
        found = re.findall(
            r"^(?!Usage).*?((?:[A-Z_]+=\S+ )?touchstone .*?)(?: {3,}.*)?$",
            place.stdout,
            re.MULTILINE,
        )
    else:
        found = [
            line
            for block in blocks_of(ROOT / place)
            if block.language in CONSOLE
            for line in block.commands()
        ]
        found += inline_commands(ROOT / place)
    return list(dict.fromkeys(found))


def _holds(line: str, words: str) -> bool:
    try:
        there = iter(shlex.split(line))
    except ValueError:  # a quote that a following line closes
        return False
    return all(word in there for word in shlex.split(words))
