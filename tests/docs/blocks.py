"""The fenced blocks of the documents, the commands in them, and what a command line names:
`problems_of` says what of it does not exist.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from ray_app.cli.main import touchstone
from tests.groups import make_targets

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = ("console", "bash", "sh")
JOBS = {"score": ("score",), "train": ("train",), "evaluate": ("evaluate",), "collect": ("data", "collect"),
        "generate": ("data", "generate"), "pack": ("data", "pack")}  # fmt: skip
_FENCE = re.compile(
    r"^( *)```([\w-]*)(?: title=\"([^\"]+)\")? *\n(.*?)^\1``` *$", re.MULTILINE | re.DOTALL
)
_VARIABLE = re.compile(r"^\w+=")
_OPERATORS = {"|", "||", "&&", ";", "&", "<", ">", ">>", "2>"}
_FILES_OF_THE_TREE = re.compile(r"^(?:configs|jobs)/[\w./-]+$")


@dataclass(frozen=True)
class Block:
    """One fenced block. `title`: the name of the file that it is, if it is one; `line`: where it
    begins.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The command lines of a console block, continued lines joined, comments and `$ ` left out;
        of one that has `$ `, no output.
        """
        text = self.text.replace("\\\n", " ")
        prompted = any(line.startswith("$ ") for line in text.splitlines())
        lines = [
            line.removeprefix("$ ")
            for line in text.splitlines()
            if line.startswith("$ ") or not prompted
        ]
        return [
            command
            for line in lines
            if (command := _without_comment(line)) and not command.startswith("{")
        ]


def pages() -> list[Path]:
    """Every document whose blocks a reader may type."""
    return [
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "UPGRADING.md", "SECURITY.md")
        if (ROOT / name).exists()
    ] + sorted((ROOT / "docs").rglob("*.md"))


def blocks_of(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return [
        Block(
            name,
            text.count("\n", 0, one.start()) + 1,
            one[2],
            one[3] or "",
            re.sub(f"^{one[1]}", "", one[4], flags=re.MULTILINE),
        )
        for one in _FENCE.finditer(text)
    ]


def inline_commands(path: Path) -> list[str]:
    """Return the commands in backticks outside fenced blocks, without the retired ones that a row
    of UPGRADING.md replaces.
    """
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    retired = re.search(r"^## What 1\.0 retires$.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    if retired:
        text = text.replace(retired[0], re.sub(r"^\|[^|]*\|", "|", retired[0], flags=re.MULTILINE))
    return [" ".join(words.split()) for words in re.findall(r"`(touchstone [^`]+)`", text)]


def _without_comment(line: str) -> str:
    lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that a following line closes
        return line.strip()
    end = next((place for place, word in enumerate(words) if word.startswith("#")), None)
    return line.strip() if end is None else line[: line.index(words[end])].strip() if end else ""


def programs(line: str) -> Iterator[list[str]]:
    """The words of every program that a line starts, without redirections and what is set for it
    alone.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in ("<", ">", ">>", "2>"):
            skip = True
        elif word in _OPERATORS:
            if words:
                yield words
            words = []
        elif words or not _VARIABLE.match(word):
            words.append(word)


def problems_of(line: str, *, exact: bool = True) -> list[str]:
    """What a line names that does not exist: commands, options, files of the tree, extras, targets.
    With `exact`, values count, too.
    """
    found = []
    try:
        started = list(programs(line))
    except ValueError as error:
        return [f"no shell line: {error}"]
    for words in started:
        if "--" in words and words[0] == "ray":
            words = words[words.index("--") + 1 :]
        if words[0] in ("timeout", "time", "nohup", "exec"):
            words = words[
                next((place for place, word in enumerate(words) if word == "touchstone"), 0) :
            ]
        if words[0] == "touchstone":
            found += _of_touchstone(words[1:], exact)
        elif words[0] == "python" and len(words) > 1 and words[1].startswith("jobs/"):
            found += _of_touchstone(
                [*JOBS.get(Path(words[1]).stem, ("no job of that name",)), *words[2:]], exact
            )
        elif words[0] == "make":
            found += [
                f"make {target}: no such target"
                for target in words[1:]
                if target not in make_targets()
            ]
        elif "install" in words and words[0] in ("pip", "uv", "python"):
            found += _of_pip(words)
        found += [
            f"{word}: no such file"
            for word in words
            if _FILES_OF_THE_TREE.match(word) and not (ROOT / word).exists()
        ]
    return found


def _of_touchstone(words: list[str], exact: bool) -> list[str]:
    """Problems of a command of ours. Where it holds `…` or words in capitals for what a reader
    names, values are not looked at.
    """
    command: click.Command = touchstone
    path = ["touchstone"]
    while isinstance(command, click.Group):
        if not words:
            return (
                [] if not exact or path == ["touchstone"] else [f"{' '.join(path)}: a group alone"]
            )
        if words[0] in ("--help", "--version", "-h", "…"):
            return []
        if (below := command.get_command(click.Context(command), words[0])) is None:
            return (
                []
                if not exact and _is_blank(words[0])
                else [f"{' '.join(path)}: no command {words[0]!r}"]
            )
        command, words, path = below, words[1:], [*path, words[0]]
    if exact and not any("…" in word for word in words):
        try:
            command.make_context(" ".join(path), list(words), resilient_parsing=False)
        except click.exceptions.Exit:
            return []  # --help
        except click.ClickException as error:
            return (
                []
                if "does not exist" in error.format_message()
                else [f"{' '.join(path)}: {error.format_message()}"]
            )
        return []
    known = {
        name
        for option in command.get_params(click.Context(command))
        for name in (*option.opts, *option.secondary_opts)
    } | {"--help", "-h"}
    options = [word.partition("=")[0] for word in words if re.match(r"^--?[a-z]", word)]
    return [f"{' '.join(path)}: no option {option}" for option in options if option not in known]


def _is_blank(word: str) -> bool:
    return word.isupper() or "…" in word or "|" in word


def _of_pip(words: list[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for word in words:
        named = re.fullmatch(r"(touchstone[\w-]*|\.)(?:\[([\w,-]+)\])?(?:[=<>~].*)?", word)
        if named and named[1] not in (".", project["name"]):
            found.append(f"pip install {word}: the distribution is {project['name']}")
        if named and named[2]:
            unknown = sorted(set(named[2].split(",")) - set(project["optional-dependencies"]))
            found += [f"pip install {word}: no extra {', '.join(unknown)}"] if unknown else []
    return found
