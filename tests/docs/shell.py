"""A page's blocks as one shell session (`run_blocks`): what each command printed, how it ended, how
long it took.

Console lines run as they are written, Python blocks by the environment's `python`, a block with a
title becomes that file. Where a page shows `^C` in what a command prints, the command is
interrupted as a terminal does it, once its run has committed something.
"""

import os
import re
import resource
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.blocks import CONSOLE, ROOT, Block

INTERRUPT = "^C"
_MARK = "\x1e"
_PORT = 8000
# What differs from run to run and from machine to machine: decimals, durations, sizes, rates,
# shares, hashes.
_VARIES = re.compile(
    r"\b[0-9a-f]{8,}(?:\b|…)|[-+]?\d[\d,]*\.\d+|\b\d[\d,]*(?= ?(?:s|ms|min|h|%|MB|kB|KB|GB|B|bytes|img/s|images/s)(?:\W|$))"
)


@dataclass
class Step:
    """One command of a page. `shown`: what the page says one sees, line by line."""

    text: str
    shown: tuple[str, ...] = ()
    code: int | None = None
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        return INTERRUPT in self.shown


def steps_of(blocks: Sequence[Block]) -> list[Step]:
    """The commands of a page, in order. What a `text` block shows belongs to the last command
    before it.
    """
    steps: list[Step] = []
    for block in blocks:
        if block.language == "text" and steps:
            steps[-1].shown += tuple(line for line in block.text.splitlines() if line.strip())
        elif block.title:
            steps.append(Step(f"cat > {shlex.quote(block.title)} <<'FILE'\n{block.text}FILE"))
        elif block.language == "python":
            steps.append(Step(f"python - <<'PYTHON'\n{block.text}PYTHON"))
        elif block.language in CONSOLE:
            steps += [Step(line) for line in block.commands()]
    return steps


def run_blocks(
    blocks: Sequence[Block], folder: Path, programs: Path, *, timeout: float = 900
) -> list[Step]:
    """Run a page's blocks in `folder` with the programs of an environment. `pip install` is taken
    as done.
    """
    steps = [step for step in steps_of(blocks) if not step.text.startswith("pip install ")]
    port = _free_port()
    script = "\n".join(
        [
            "printf '\\036begin 0 %s\\n' $EPOCHREALTIME",
            *(_line(number, step, port) for number, step in enumerate(steps)),
        ]
    )
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(folder, programs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        printed = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
        process.wait()
    _take_apart(steps, printed.replace(str(port), str(_PORT)))
    return steps


def environment(folder: Path, programs: Path) -> dict[str, str]:
    """The variables of a reader's shell: the environment's programs first, nothing of these tests,
    a home that is empty.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "TOUCHSTONE_", "RAY_", "VIRTUAL_ENV"))
    }
    if programs == Path(sys.executable).parent:
        kept["PYTHONPATH"] = str(ROOT)  # the checkout, where no wheel is at hand
    else:
        kept.pop("PYTHONPATH", None)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    home = folder / ".home"
    home.mkdir(exist_ok=True)
    # the pages' counts are those of fp32
    ours = {"HF_HUB_OFFLINE": "1", "COLUMNS": "110", "TOUCHSTONE_CPU_PRECISION": "fp32"}
    return kept | {"PATH": path, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")} | ours


def _line(number: int, step: Step, port: int) -> str:
    text = step.text.replace(str(_PORT), str(port))
    if "touchstone serve" in text and "--port" not in text:
        text = text.replace("touchstone serve", f"touchstone serve --port {port}")
    if step.interrupted:
        out = shlex.split(text)[shlex.split(text).index("--out") + 1]
        # In a process group of its own, as a terminal's foreground job; the signal goes to the
        # group, as Ctrl-C does.
        committed = f"compgen -G '{out}/parts/*/*.parquet' > /dev/null"
        text = f"set -m\n{text} &\nuntil {committed} || ! kill -0 $!; do sleep 0.1; done\nkill -INT -- -$!\nwait $!"
        return f"{text}\nprintf '\\036%s %s %s\\n' {number} $? $EPOCHREALTIME\nset +m"
    return f"{text}\nprintf '\\036%s %s %s\\n' {number} $? $EPOCHREALTIME"


def _take_apart(steps: Sequence[Step], printed: str) -> None:
    pieces = re.split(rf"{_MARK}(\w+) (\d+) ([\d.]+)\n", printed)
    last = float(pieces[3])
    for text, number, code, ended in zip(
        pieces[4::4], pieces[5::4], pieces[6::4], pieces[7::4], strict=False
    ):
        step = steps[int(number)]
        step.code, step.seconds, last = int(code), float(ended) - last, float(ended)
        step.lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def missing(step: Step, folder: Path) -> list[str]:
    """The lines which the page shows and the command did not print, in order; `…` stands for
    anything.
    """
    there = [alike(line, folder) for line in step.lines]
    place, absent = 0, []
    for line in step.shown:
        if line.strip() in ("…", INTERRUPT):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in alike(line, folder).split("…")))
        found = next(
            (number for number in range(place, len(there)) if pattern.fullmatch(there[number])),
            None,
        )
        if found is None:
            absent.append(line)
        else:
            place = found + 1
    return absent


def alike(line: str, folder: Path) -> str:
    """A line without what differs between two runs; spaces are one."""
    here = line.replace(str(folder), "/home/you")
    return " ".join(_VARIES.sub("#", here).split())


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def report(steps: Sequence[Step]) -> Iterator[str]:
    """Seconds and exit code of every command, and how many there were."""
    for step in steps:
        yield f"{step.seconds:7.1f} s  {step.code}  {step.text.splitlines()[0]}"
    yield f"{sum(not step.text.startswith('cat >') for step in steps)} commands, {sum(step.seconds for step in steps):.0f} s"


def processor_seconds() -> float:
    """What the processes that ended below this one have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(page: str, folder: str) -> None:
    """Run a page, and write down beside its folder what each command printed: what the page's
    `text` blocks are cut from.
    """
    from tests.docs.blocks import blocks_of

    place = Path(folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    steps = run_blocks(
        blocks_of(Path(page).resolve()), place, Path(sys.executable).parent, timeout=3000
    )
    with place.with_suffix(".log").open("w", encoding="utf-8") as log:
        for step in steps:
            log.write(
                f"$ {step.text}\n"
                + "\n".join(step.lines)
                + f"\n[{step.code}, {step.seconds:.1f} s]\n\n"
            )
            log.writelines(f"MISSING {line}\n" for line in missing(step, place))
        log.write("\n".join([*report(steps), f"{processor_seconds():.0f} s of a processor"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
