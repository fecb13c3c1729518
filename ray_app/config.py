"""Read and validate YAML configs, and find those that are shipped or that the user has added.

`load_yaml` reads a YAML file into a pydantic model. If a key or a value is wrong, the error names
the file, the key, the value, and the nearest valid key. `find_config` returns the file for a name
such as `default`. `Frozen` is the base of the models of files that people write. `Section` is the
base of the models of JSON documents that commands write.
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
# The limit for libyaml, in characters. A text cannot have more levels than characters. libyaml
# handles 16,384 levels on a stack of 8 MiB, and crashes at 65,536.
_SHALLOW = 10_000


class Frozen(BaseModel):
    """Base of the models of YAML files that people write, and of their sections.

    Examples are the settings of a command, and the card that describes a detector. Objects are
    immutable. An unknown key is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    retired_keys: ClassVar[Mapping[str, str]] = {}
    """Keys that version 1.0 removed, each with an instruction what to use instead."""


class FileConfig(Frozen):
    """Base of the models of YAML files that contain relative paths, such as paths of weights.

    The paths are relative to `folder`. Examples are cards, the files that describe a detector or an
    ensemble.
    """

    _folder: Path = PrivateAttr(default=Path())
    _loaded_as: str = PrivateAttr(default="")

    @property
    def folder(self) -> Path:
        """The folder of the YAML file from which this object was read, for its relative paths."""
        return self._folder

    @property
    def loaded_as(self) -> str:
        """Name, path, or URL that loads this file again, without a variant. "" if not known."""
        return self._loaded_as


_T = TypeVar("_T")
OptionalKey = Annotated[_T | None, Field(exclude_if=lambda value: value is None)]
"""An optional field whose key is left out of the document if its value is None."""


class Section(BaseModel):
    """Base of the models of JSON documents that commands write, such as `summary.json`.

    The parts of such a document have this base, too. Reading is tolerant, so that reports can be
    rendered from partial documents and from documents of other versions. Unknown keys are ignored.
    A null is treated as an absent key, unless the field allows null.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were set, as plain JSON in the order of the fields.

        A field that was left at its default has no key.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def get_set_fields(self) -> dict[str, Any]:
        """Return the fields that were set, by key, as Python objects such as nested sections.

        Use it to pass the values to the constructor of another section. `to_dict` returns JSON.
        """
        fields = type(self).model_fields.items()
        return {
            field.alias or name: getattr(self, name)
            for name, field in fields
            if name in self.model_fields_set
        }


@cache
def _nullable(model: type[BaseModel]) -> frozenset[str]:
    """Return the keys that may be null."""
    fields = ((field.alias or name, field.annotation) for name, field in model.model_fields.items())
    return frozenset(
        key for key, annotation in fields if annotation is Any or NoneType in get_args(annotation)
    )


_SPAN, _UNITS = (
    re.compile(r"(\d+(?:\.\d+)?) ?([smhd]?)"),
    {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400},
)


def parse_duration(value: Any) -> Any:
    """Convert a time span such as "90", "90s", "5m", "1.5h", or "1d" to seconds.

    A value of another type or form is returned unchanged. pydantic then validates it, and reports
    an error if it is not a number.
    """
    match = _SPAN.fullmatch(value.strip()) if isinstance(value, str) else None
    return value if match is None else float(match[1]) * _UNITS[match[2]]


# The type of a time span in a config: a number, or a text such as 5m.
Seconds = Annotated[float, BeforeValidator(parse_duration)]

Model = TypeVar("Model", bound=BaseModel)
CACHE_VARIABLE = "TOUCHSTONE_CACHE"


def config_root() -> Path:
    """Return the folder of the shipped YAML files.

    It is next to the package in a checkout, and inside the package in an installation.
    """
    package = Path(__file__).resolve().parent
    shipped = package / "_configs"
    return shipped if shipped.is_dir() else package.parent / "configs"


def cache_folder(kind: str) -> Path:
    """Return this user's cache folder for one kind of files, such as "weights" or "trust".

    The folder is in $TOUCHSTONE_CACHE, or in ~/.cache/touchstone by default. It may not exist yet.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or os.path.expanduser("~/.cache/touchstone")) / kind


def named_configs(kind: str) -> dict[str, Path]:
    """Return the paths of all shipped YAML files of one kind, by name.

    The kind is a subfolder of `config_root`, such as `detectors`, `ensembles`, or `score`.
    """
    return {path.stem: path for path in sorted((config_root() / kind).glob("*.yaml"))}


def config_file() -> Path | None:
    """Return the path of the user's own config file, or None if the user has no home folder.

    It is $TOUCHSTONE_CONFIG, or else touchstone/config.yaml in $XDG_CONFIG_HOME or ~/.config.
    """
    if path := os.environ.get(CONFIG_VARIABLE):
        return Path(path)
    if root := os.environ.get("XDG_CONFIG_HOME"):
        return Path(root) / "touchstone" / "config.yaml"
    try:
        return Path.home() / ".config" / "touchstone" / "config.yaml"
    except RuntimeError:  # The user of a container may have no home folder.
        return None


def added_configs(kind: str) -> dict[str, Path]:
    """Return the paths of the YAML files of one kind that this user has added, by name.

    The kind is a folder next to the user's own config file (`config_file`), such as `detectors` or
    `ensembles`.
    """
    file = config_file()
    try:
        return (
            {path.stem: path for path in sorted((file.parent / kind).glob("*.yaml"))}
            if file
            else {}
        )
    # Under sudo the home folder is that of another user. Nothing in it belongs to this user.
    except PermissionError:
        return {}


def list_detectors() -> list[str]:
    """Return the names of the shipped detectors, which `load_detector` accepts.

    Returns:
        The names in alphabetical order.

    Examples:
        >>> "touchstone-tiny" in ray_app.list_detectors()
        True
    """
    return list(named_configs("detectors"))


def list_ensembles() -> list[str]:
    """Return the names of the shipped ensembles, which `load_ensemble` accepts.

    Returns:
        The names in alphabetical order.

    Examples:
        >>> "default" in ray_app.list_ensembles()
        True
    """
    return list(named_configs("ensembles"))


def is_named(kind: str, name: str | Path) -> bool:
    """Return whether a name belongs to a YAML file that is shipped or that the user has added.

    A file in the current folder does not count.
    """
    return str(name) in named_configs(kind) or str(name) in added_configs(kind)


def absolute_name(kind: str, name_or_path: str) -> str:
    """Make the path of an existing file absolute, so that processes in other folders find it.

    Any other text, such as the name of a shipped file, is returned unchanged.
    """
    is_path = not is_named(kind, name_or_path) and os.path.exists(name_or_path)
    return os.path.abspath(name_or_path) if is_path else name_or_path


_KINDS = {
    "score": "settings of a run",
    "train": "recipe",
    "evaluate": "protocol",
    "serve": "settings of an endpoint",
}
_MISTAKEN_FOR = {"detectors": "ensembles", "ensembles": "detectors"}


def find_config(kind: str, name_or_path: str | Path) -> Path:
    """Find the YAML file that a user has named on the command line or in a config.

    A name takes precedence over a file in the current folder. Raises ConfigError, which suggests a
    similar name, if there is no such file.
    """
    configs = added_configs(kind) | named_configs(kind)
    if str(name_or_path) in configs:
        return configs[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_file():
        return path
    singular = _KINDS.get(kind, kind.removesuffix("s"))
    other = _MISTAKEN_FOR.get(kind)
    hint = f"use one that is shipped: {', '.join(named_configs(kind))}"
    if other and is_named(other, name_or_path):
        hint = f"pass it to --{other.removesuffix('s')}, or run touchstone {other} show {name_or_path}: it is one of the {other}"
    raise ConfigError(
        f"{name_or_path}: there is no such file, and no {singular} of that name{did_you_mean(str(name_or_path), configs)}",
        hint=hint,
    )


def load_yaml(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file, apply overrides, and validate the result.

    Overrides are texts such as `a.b=c`, whose values are YAML. If the model is a `FileConfig`, it
    knows the folder of the file. Raises ConfigError if the file cannot be read, is not YAML, or
    does not fit the model.
    """
    config = validate(read_mapping(path), model, where=str(path), overrides=overrides)
    if isinstance(config, FileConfig):
        config._folder = path.resolve().parent
    return config


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file without validating its keys; `{}` for an empty file.

    Raises ConfigError if the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        return parse_mapping(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def parse_mapping(content: bytes, where: str) -> dict[str, Any]:
    """Parse YAML without validating its keys; `{}` for an empty text.

    Raises ConfigError if the text is not YAML or is not a mapping.
    """
    try:
        data = _yaml(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not YAML: {error}", hint="save the file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{position}: not YAML: {_explain_yaml(error)}") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(
            f"{where}: expected keys and values, found {type(data).__name__}",
            hint="write each setting on a line of its own as KEY: VALUE",
        )
    return data or {}


def _explain_yaml(error: yaml.YAMLError) -> str:
    """Return what the parser failed on, and the line with an arrow below the column."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    problem = ", ".join(part for part in (error.problem, error.context) if part)
    snippet = error.problem_mark.get_snippet() if error.problem_mark else None
    return f"{problem}\n{snippet}" if snippet else problem


def _yaml(text: str) -> Any:
    """Parse a YAML text. Raises YAMLError.

    libyaml is eight times as fast as the parser in Python, but only the stack limits its depth.
    Errors come from the parser in Python, because they show the line.
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
    """Apply overrides to keys and values, and return them as a model.

    `~` at the start of a text is replaced by the home folder (`expand_home`). Overrides are texts
    such as `a.b=c`, whose values are YAML. Raises ConfigError with one line for each wrong key if
    the data do not fit the model, or if an override is malformed.
    """
    merged = _copy_with_home(data)
    for override in overrides:
        _apply(merged, override)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not _is_consequence(detail, error)]
        lines = [_explain(detail, model, where) for detail in details]
        raise ConfigError("\n".join(lines)) from None


def complete_from_run(config: Model, begun: Mapping[str, Any], *, where: str) -> Model:
    """Replace the defaults in a config by the values with which an existing job was started.

    A job is a training or a `touchstone data` command, which can be continued in its output
    directory. Its values apply even if the defaults of Touchstone have changed since then. Keys
    that the user wrote stay. Sections are completed key by key. The config is returned unchanged if
    the completed config would be invalid. So the caller still has to check that it fits the job
    (`runs.directory.claim_directory`).
    """
    try:
        return validate(merge_mappings(begun, get_set_values(config)), type(config), where=where)
    except ConfigError:
        return config


def get_set_values(config: BaseModel) -> dict[str, Any]:
    """Return the keys of a config that the user wrote, with their values.

    Keys that the user did not write are left out. Values that are sections are returned as
    dictionaries of their own.
    """
    values = {name: getattr(config, name) for name in config.model_fields_set}
    return {
        name: get_set_values(value) if isinstance(value, BaseModel) else value
        for name, value in values.items()
    }


def merge_mappings(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `change`, as a new dictionary.

    If both have a mapping under the same key, the two mappings are merged recursively. A list is
    replaced as a whole.
    """
    sections = {
        key: merge_mappings(base[key], value)
        for key, value in change.items()
        if isinstance(base.get(key), Mapping) and isinstance(value, Mapping)
    }
    return {**base, **change, **sections}


_HOME = re.compile(r"(?P<kind>[\w-]+::)?(?P<path>~.*)", re.DOTALL)


def expand_home(text: str) -> str:
    """Replace `~` at the start of a path, also after `KIND::`, by the home folder.

    A shell expands it only at the start of a word, so not in `--out=~/run` or in a YAML file.
    """
    match = _HOME.fullmatch(text)
    return text if match is None else (match["kind"] or "") + os.path.expanduser(match["path"])


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(
            f"--set {override}: a key and a value are needed, with = between them",
            hint="write it like --set batch_slots=8",
        )
    *parents, leaf = key.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set {override}: '{parent}' is a single value, not a section of keys"
            )
        data = child
    try:
        data[leaf] = _copy_with_home(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not YAML: {_explain_yaml(error)}",
            hint="quote the value for your shell and for YAML",
        ) from None


def _copy_with_home(value: Any) -> Any:
    """Return a copy with `~` expanded in texts. Lists in lists have no paths, and may be deep."""
    if isinstance(value, Mapping):
        return {key: _copy_with_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [item if isinstance(item, list) else _copy_with_home(item) for item in value]
    return expand_home(value) if isinstance(value, str) else value


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
    keys = [str(part) for part in detail["loc"] if not _ALTERNATIVE.match(str(part))]
    location = f"{where}: {'.'.join(keys)}" if keys else where
    if detail["type"] == "extra_forbidden":
        *parents, key = detail["loc"]
        models = _models_at(model, parents)
        for candidate in models:
            if replacement := getattr(candidate, "retired_keys", {}).get(key):
                return f"{location}: retired: {replacement}"
        return f"{location}: unknown key" + _nearest(
            str(key), [name for candidate in models for name in candidate.model_fields]
        )
    if detail["type"] == "missing":
        return f"{location}: missing"
    if detail["type"] == "union_tag_invalid":
        tag, valid = detail["ctx"]["tag"], re.findall(r"'([^']+)'", detail["ctx"]["expected_tags"])
        key = detail["ctx"]["discriminator"].strip("'")
        return f"{where}: {'.'.join([*keys, key])}: {tag!r} is not valid{_nearest(tag, valid)}"
    problem = detail["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    if problem.startswith("Input should"):
        return f"{location}: {detail['input']!r} does not fit: it{problem.removeprefix('Input')}"
    # A rule about several keys names them itself.
    if isinstance(detail["input"], Mapping | BaseModel):
        return f"{location}: {problem}"
    return f"{location}: {problem} (got {detail['input']!r})"


def _models_at(model: Any, location: Sequence[int | str]) -> list[Any]:
    """Return the models of the annotations at a location in the tree of models."""
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
    """Return a question that suggests the nearest valid word, to append to an error message.

    The text is empty if no valid word is near.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" — did you mean '{close[0]}'?" if close else ""


def _nearest(word: str, valid: Sequence[str] | Mapping[str, Any]) -> str:
    return did_you_mean(word, valid) or (f" (valid: {', '.join(valid)})" if valid else "")
