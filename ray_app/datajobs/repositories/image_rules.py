"""Which images of which repositories: the settings of `touchstone data collect --git` (`RepositoriesConfig`) and its list (`read_rules`).

A row of the list is an `ImageRule`: repository, commit, a rule on paths, and what is known of the pictures that it chooses.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from pydantic import Field

from ray_app.config import Frozen
from ray_app.datasets.labels import Label, parse_label
from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonical, strip_secrets

MAX_BYTES = 4_000_000  # of one file: public mirrors leave out larger ones, so that a clone and a mirror give the same images
MIN_SIDE = 256
MAX_ASPECT = 3.0
SHEET = "grid2x2"
NOT = " NOT "
NO_LICENCE = "none stated"

_REQUIRED = ("repo", "commit", "path_rule", "label", "source")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]*[\w-][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_SOURCE = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
_CAPPED = re.compile(r"capped at (\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMS = (("repo", _REPOSITORY, "OWNER/NAME"), ("commit", _COMMIT, "a commit's 40 digits"), ("source", _SOURCE, "a name"))
_MOST_BYTES = 64 * 2**20  # of a list


class RepositoriesConfig(Frozen):
    """One collection of images from repositories."""

    rules: str = Field(description="CSV: repo, commit, path_rule, label, source, and more (docs/collecting.md); any fsspec URL")
    out: str = Field(description="the directory to write; any fsspec URL")
    mirror: str = Field(description="local folder of bare mirrors, owner+name/repo or owner/name.git; what is not there is cloned into it")
    refuse: str | None = Field(default=None, description="a list of SHA-256, one to a line: such files are left out")
    allow_missing: bool = Field(default=False, description="build without the repositories and commits that are gone, and record which")
    git_host: str = Field(default="https://github.com", description="where owner/name is cloned from; also file:///FOLDER")
    unguarded: bool = False


@dataclass(frozen=True)
class ImageRule:
    """One row of the list. `label`: of the pictures; `is_sheet`: each file is four pictures. `expected`: how many its writer counted."""

    repo: str
    commit: str
    path_rule: str
    label: Label
    source: str
    made_by: str
    licence: str
    covers_pictures: bool
    family: str
    graphics: bool
    is_sheet: bool = False
    cap: int | None = None
    expected: int | None = None
    split: str | None = None

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
        wanted, mark, unwanted = self.path_rule.partition(NOT)
        return re.compile(wanted, re.IGNORECASE), re.compile(unwanted, re.IGNORECASE) if mark else None

    def chooses(self, path: str) -> bool:
        """Whether the rule is about the file of this path."""
        wanted, unwanted = self._patterns
        return wanted.search(path) is not None and (unwanted is None or unwanted.search(path) is None)

    def drawn(self, paths: Sequence[str]) -> list[str]:
        """The paths in the order in which they are taken until `cap` are: that of the SHA-256 of source and path; else as they stand."""
        if self.cap is None:
            return list(paths)
        return sorted(paths, key=lambda path: hashlib.sha256(f"{self.source}\n{path}".encode()).digest())

    @property
    def generator(self) -> str:
        """As an index has it: who made a fake, and of a real its source."""
        return f"real:{self.source}" if self.label == "real" else self.made_by or "unknown"

    def digest(self, refused: str) -> str:
        """What decides which files are taken, and nothing else; `refused`: the digest of the refused ones."""
        facts = [self.repo, self.commit, self.path_rule, self.source, self.cap, self.is_sheet, MAX_BYTES, MIN_SIDE, MAX_ASPECT, refused]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def facts(self) -> dict[str, object]:
        """As plain JSON."""
        return asdict(self)


def read_rules(place: str) -> list[ImageRule]:
    """The rows of a list. Raises ConfigError, naming the file and the line, for what is no rule."""
    where, found = _shown(place), []
    lines = csv.DictReader(io.StringIO(_read(place).decode("utf-8-sig", "replace"), newline=""))
    if missing := [name for name in _REQUIRED if name not in (lines.fieldnames or ())]:
        raise ConfigError(f"{where}: no column {', '.join(missing)}", hint=f"its first line names {', '.join(_REQUIRED)}, and more")
    for row in lines:
        if any(row.get(name) for name in _REQUIRED):
            found.append(
                _rule({name: " ".join(str(value or "").split()) for name, value in row.items()}, f"{where}, line {lines.line_num}")
            )
    _check_sources(found, where)
    return found


def read_refused(place: str | None) -> tuple[frozenset[str], str]:
    """The SHA-256 that are left out, and the digest of them all. Raises ConfigError for a line that is none."""
    if place is None:
        return frozenset(), ""
    words = [line.split()[0].lower() for line in _read(place).decode("utf-8-sig", "replace").splitlines() if line.split()]
    if wrong := [word for word in words if not _SHA256.fullmatch(word)]:
        raise ConfigError(f"{_shown(place)}: {wrong[0][:80]!r} is no SHA-256", hint="64 hexadecimal digits to a line, as sha256sum has it")
    return frozenset(words), hashlib.sha256("\n".join(sorted(set(words))).encode()).hexdigest()


def _rule(row: Mapping[str, str], where: str) -> ImageRule:
    wanted, mark, unwanted = row["path_rule"].partition(NOT)
    for pattern in (wanted, unwanted if mark else wanted):
        try:
            re.compile(pattern, re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"{where}: {pattern!r} is no regular expression: {error}") from None
    for name, form, what in _FORMS:
        if not form.fullmatch(row[name]):
            raise ConfigError(f"{where}: {name} {row[name]!r} is not {what}")
    is_sheet = row["label"].lower() == SHEET
    cap = _number(row, "cap", where)
    if "cap" not in row and (capped := _CAPPED.search(row.get("note", ""))):
        cap = int(capped.group(1))
    return ImageRule(
        row["repo"],
        row["commit"],
        row["path_rule"],
        "fake" if is_sheet else parse_label(row["label"], f"{where}, column 'label'"),
        row["source"],
        row.get("generator_or_camera", ""),
        row.get("licence") or row.get("licence_file_head") or NO_LICENCE,
        _truth(row, "covers_pictures", where),
        row.get("family") or row["repo"].partition("/")[0],
        _truth(row, "graphics", where),
        is_sheet,
        cap,
        _number(row, "n", where),
        row.get("split") or None,
    )


def _check_sources(rules: Sequence[ImageRule], where: str) -> None:
    """Raises ConfigError where a source is of both labels or two families, or where there is no source."""
    known: dict[str, ImageRule] = {}
    for rule in rules:
        first = known.setdefault(rule.source, rule)
        if (first.label, first.family, first.split) != (rule.label, rule.family, rule.split):
            raise ConfigError(f"{where}: the source {rule.source} has two labels, families or splits", hint="make two sources of it")
    if not rules:
        raise ConfigError(f"{where}: no row")


def _number(row: Mapping[str, str], name: str, where: str) -> int | None:
    text = row.get(name, "")
    if text and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{where}: {name} {text!r} is no number")
    return int(text) if text else None


_WORDS: Mapping[str, bool] = {"yes": True, "true": True, "1": True, "": False, "no": False, "false": False, "0": False}


def _truth(row: Mapping[str, str], name: str, where: str) -> bool:
    word = row.get(name, "").lower()
    if word not in _WORDS:
        raise ConfigError(f"{where}: {name} {word!r} is neither yes nor no")
    return _WORDS[word]


def _read(place: str) -> bytes:
    try:
        return Fetcher(signed=[place]).fetch(_shown(place), "", _MOST_BYTES)
    except InputError as error:
        raise ConfigError(f"{_shown(place)}: {error.detail}") from None


def _shown(place: str) -> str:
    return strip_secrets(canonical(place))
