"""Read one YAML file into one frozen model; every error names file, key, value and the nearest
valid key.

`Frozen` is the base of what people write, `Section` that of the JSON documents that commands write
and reports read.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from ray_app.errors import ConfigError

CONFIG_VARIABLE = "TOUCHSTONE_CONFIG"
# characters, so at most as many levels: libyaml takes 16,384 on a stack of 8 MiB, and crashes at
# 65,536
_SHALLOW = 10_000


class Frozen(BaseModel):
    """Base of every config, card and limit: immutable, no unknown keys, no silent coercion of
    extras.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    retired_keys: ClassVar[Mapping[str, str]] = {}
    """Keys that 1.0 retires, each with what to use instead."""


class Placed(Frozen):
    """Base of cards, which know where they were read from: what they name by relative places lies
    there.
    """

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The folder of the file."""
        return self._folder


_T = TypeVar("_T")
OptionalKey = Annotated[_T | None, Field(exclude_if=lambda value: value is None)]
"""What a document has no key for where there is none of it, in a field whose default is None."""


class Section(BaseModel):
    """Base of every JSON document and its parts: the producer fills it, reports and tests read it.

    Reading is tolerant, so that documents of other versions and partial ones still render: unknown
    keys pass, and a null means the same as an absent key where the field knows no null.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            key: value for key, value in data.items() if value is not None or key in _nullable(cls)
        }

    def written(self) -> dict[str, Any]:
        """What was given of it, as plain JSON in the order of the fields; what was left open has no
        key.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def given(self) -> dict[str, Any]:
        """What was given of it, by key, to build another section of."""
        fields = type(self).model_fields.items()
        return {
            field.alias or name: getattr(self, name)
            for name, field in fields
            if name in self.model_fields_set
        }


@cache
def _nullable(model: type[BaseModel]) -> frozenset[str]:
    """Keys that may be null."""
    fields = ((field.alias or name, field.annotation) for name, field in model.model_fields.items())
    return frozenset(
        key for key, annotation in fields if annotation is Any or NoneType in get_args(annotation)
    )


_SPAN, _UNITS = (
    re.compile(r"(\d+(?:\.\d+)?) ?([smhd]?)"),
    {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400},
)


def seconds_of(given: Any) -> Any:
    """The seconds of a time span such as 90, 90s, 5m, 1.5h or 1d; anything else as it is."""
    found = _SPAN.fullmatch(given.strip()) if isinstance(given, str) else None
    return given if found is None else float(found[1]) * _UNITS[found[2]]


# of a config: a number, or a text such as 5m
Seconds = Annotated[float, BeforeValidator(seconds_of)]

Model = TypeVar("Model", bound=BaseModel)
CACHE_VARIABLE = "TOUCHSTONE_CACHE"


def config_root() -> Path:
    """The folder of shipped YAML: beside the package in a checkout, inside it after `pip install`."""
    package = Path(__file__).resolve().parent
    shipped = package / "_configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def cache_folder(kind: str) -> Path:
    """Where this user's copies of one kind of file lie, fetched or made: in $TOUCHSTONE_CACHE, else
    in ~/.cache/touchstone.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or os.path.expanduser("~/.cache/touchstone")) / kind


def named_configs(kind: str) -> dict[str, Path]:
    """All shipped files of one kind (`detectors`, `ensembles`, `score`), by name."""
    return {path.stem: path for path in sorted((config_root() / kind).glob("*.yaml"))}


def config_file() -> Path | None:
    """The user's own config file: $TOUCHSTONE_CONFIG, else touchstone/config.yaml in
    $XDG_CONFIG_HOME or ~/.config; None without a home.
    """
    if given := os.environ.get(CONFIG_VARIABLE):
        return Path(given)
    if root := os.environ.get("XDG_CONFIG_HOME"):
        return Path(root) / "touchstone" / "config.yaml"
    try:
        return Path.home() / ".config" / "touchstone" / "config.yaml"
    except RuntimeError:  # a container's user may have no home
        return None


def added_configs(kind: str) -> dict[str, Path]:
    """What this user has added of one kind, by name: files of a folder beside the user's own config
    file.
    """
    file = config_file()
    try:
        return (
            {path.stem: path for path in sorted((file.parent / kind).glob("*.yaml"))}
            if file
            else {}
        )
    # the home of somebody else, as under sudo: nothing there is this user's
    except PermissionError:
        return {}


def list_detectors() -> list[str]:
    """Return the names of the shipped detectors, which `load_detector` accepts."""
    return list(named_configs("detectors"))


def list_ensembles() -> list[str]:
    """Return the names of the shipped ensembles, which `load_ensemble` accepts."""
    return list(named_configs("ensembles"))


def is_named(kind: str, name: str | Path) -> bool:
    """Return whether a name means a shipped file or one that the user added, whatever files the
    current folder contains.
    """
    return str(name) in named_configs(kind) or str(name) in added_configs(kind)


def absolute_name(kind: str, name_or_path: str) -> str:
    """Return a name as it is, and the path of a file as an absolute path."""
    is_path = not is_named(kind, name_or_path) and os.path.exists(name_or_path)
    return os.path.abspath(name_or_path) if is_path else name_or_path


_KINDS = {
    "score": "settings of a run",
    "train": "recipe",
    "evaluate": "protocol",
    "serve": "settings of an endpoint",
}


def find_config(kind: str, name_or_path: str | Path) -> Path:
    """The file that a user means by a shipped name or by a path. Raises ConfigError."""
    named = added_configs(kind) | named_configs(kind)
    if str(name_or_path) in named:
        return named[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    singular = _KINDS.get(kind, kind.removesuffix("s"))
    raise ConfigError(
        f"{name_or_path}: there is no such file, and no {singular} of that name{did_you_mean(str(name_or_path), named)}",
        hint=f"shipped: {', '.join(named_configs(kind))}",
    )


def load_yaml(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read `path`, apply `a.b=c` overrides (values are YAML), validate. Raises ConfigError."""
    read = validate(read_mapping(path), model, where=str(path), overrides=overrides)
    if isinstance(read, Placed):
        read._folder = path.resolve().parent
    return read


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none. Raises ConfigError."""
    try:
        return parse_mapping(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def parse_mapping(content: bytes, where: str) -> dict[str, Any]:
    """The same of a file's content; `where` names it in errors. Raises ConfigError."""
    try:
        data = _yaml(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not YAML: {error}", hint="save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: not YAML: {_fault(error)}") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{where}: expected keys and values, found {type(data).__name__}")
    return data or {}


def _fault(error: yaml.YAMLError) -> str:
    """What the parser stumbled over, and the line with an arrow below the place."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    words = ", ".join(part for part in (error.problem, error.context) if part)
    snippet = error.problem_mark.get_snippet() if error.problem_mark else None
    return f"{words}\n{snippet}" if snippet else words


def _yaml(text: str) -> Any:
    """What a YAML text holds. Raises YAMLError.

    libyaml is eight times as fast, but only the stack limits its depth. Errors are those of the
    parser in Python, which show the line.
    """
    if len(text) <= _SHALLOW:
        with suppress(yaml.YAMLError):
            return yaml.load(text, Loader=yaml.CSafeLoader)
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None


def validate(
    data: Mapping[str, Any], model: type[Model], *, where: str, overrides: Sequence[str] = ()
) -> Model:
    """Check a mapping against a model; `where` names the file in errors. Raises ConfigError."""
    merged = _deep_copy(data)
    for override in overrides:
        _apply(merged, override)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not _is_consequence(detail, error)]
        lines = [_explain(detail, model, where) for detail in details]
        raise ConfigError("\n".join(lines)) from None


def as_begun(config: Model, begun: Mapping[str, Any], *, where: str) -> Model:
    """A config with what its user did not write, in whatever section, as it was `begun` with: plain
    JSON of the same model.

    Where what was begun and what is written are no config together, it stays as it is: they differ,
    which its directory will say.
    """
    try:
        return validate(overlaid(begun, written(config)), type(config), where=where)
    except ConfigError:
        return config


def written(config: BaseModel) -> dict[str, Any]:
    """What its user wrote of a config, section by section; all else are defaults."""
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return {
        name: written(value) if isinstance(value, BaseModel) else value
        for name, value in given.items()
    }


def overlaid(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; a list is one value."""
    both = {
        key: overlaid(base[key], value)
        for key, value in change.items()
        if isinstance(base.get(key), Mapping) and isinstance(value, Mapping)
    }
    return {**base, **change, **both}


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override}: a key and a value are needed, with = between them",
            hint="for example --set batch_slots=8",
        )
    *parents, leaf = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
        data = child
    try:
        data[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not YAML: {_fault(error)}",
            hint="quote it for your shell and for YAML",
        ) from None


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def _is_consequence(detail: ErrorDetails, error: ValidationError) -> bool:
    """Return whether a list is too short because its items are invalid, which has its own error."""
    location = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(location) and other["loc"][: len(location)] == location
        for other in error.errors()
    )


# Alternatives of a type as pydantic names them, such as constrained-int or tuple[int, int].
_ALTERNATIVE = re.compile(r"\(|constrained-|.*\[")


def _explain(detail: ErrorDetails, model: type[BaseModel], where: str) -> str:
    location = ".".join(str(part) for part in detail["loc"] if not _ALTERNATIVE.match(str(part)))
    if detail["type"] == "extra_forbidden":
        *parents, key = detail["loc"]
        models = _models_at(model, parents)
        for candidate in models:
            if replacement := getattr(candidate, "retired_keys", {}).get(key):
                return f"{where}: {location}: retired: {replacement}"
        return f"{where}: {location}: unknown key" + _nearest(
            str(key), [name for found in models for name in found.model_fields]
        )
    if detail["type"] == "missing":
        return f"{where}: {location}: missing"
    if detail["type"] == "union_tag_invalid":
        tag, valid = detail["ctx"]["tag"], re.findall(r"'([^']+)'", detail["ctx"]["expected_tags"])
        key = detail["ctx"]["discriminator"].strip("'")
        return f"{where}: {location}.{key}: {tag!r} is not valid{_nearest(tag, valid)}"
    wanted = detail["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    if wanted.startswith("Input should"):
        return f"{where}: {location}: {detail['input']!r} does not fit: it{wanted.removeprefix('Input')}"
    return f"{where}: {location}: {wanted} (got {detail['input']!r})"


def _models_at(model: Any, location: Sequence[int | str]) -> list[Any]:
    """Return the models that the annotations have at a place in the tree."""
    candidates = [model]
    for part in location:
        fields = [
            c.model_fields[part].annotation
            for c in candidates
            if part in getattr(c, "model_fields", {})
        ]
        candidates = [m for f in fields for m in _models_in(f)] if fields else candidates
    return candidates


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [
        model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)
    ]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What an error's message ends with: the nearest known word as a question, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" — did you mean '{close[0]}'?" if close else ""


def _nearest(word: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    return did_you_mean(word, valid) or (f" (valid: {', '.join(valid)})" if valid else "")
