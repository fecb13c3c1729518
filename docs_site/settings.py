"""The keys of every config and of every card, from its model: `pages`."""

import re
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
import click
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs_site.markdown import code, prose, table
from ray_app.cli.main import touchstone
from ray_app.datajobs.download.config import CollectConfig
from ray_app.datajobs.generate.config import GenerateConfig, PipelineCard
from ray_app.datajobs.shards.config import PackConfig
from ray_app.datasets.layouts.rules import PublishedLayout
from ray_app.datasets.split_index import SplitConfig
from ray_app.detectors import DetectorCard
from ray_app.ensembles import EnsembleCard
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.protocols import Protocol
from ray_app.identification.cards import DescriberCard, IdentifierCard
from ray_app.scoring.config import ClusterDescription, ScoreConfig
from ray_app.serving.config import ServeConfig
from ray_app.training.config import TrainConfig
from ray_app.transforms.perturbations import PerturbationList
from ray_app.transforms.registry import STEPS, Step

CONFIGS: dict[str, tuple[type[BaseModel], str]] = {
    "score": (ScoreConfig, "touchstone score"),
    "serve": (ServeConfig, "touchstone serve"),
    "train": (TrainConfig, "touchstone train"),
    "evaluate": (EvaluateConfig, "touchstone evaluate"),
    "calibrate": (CalibrateConfig, "touchstone detectors calibrate"),
    "split": (SplitConfig, "touchstone data split"),
    "collect": (CollectConfig, "touchstone data collect"),
    "generate": (GenerateConfig, "touchstone data generate"),
    "pack": (PackConfig, "touchstone data pack"),
}
# Other files that a user may write: the model, what it is, and where the shipped ones lie.
CARDS: dict[str, tuple[type[BaseModel], str, str]] = {
    "detector": (DetectorCard, "A detector's card", "configs/detectors"),
    "ensemble": (EnsembleCard, "An ensemble's card", "configs/ensembles"),
    "identifier": (IdentifierCard, "An identifier's card", "configs/identifiers"),
    "describer": (DescriberCard, "A describer's card", "configs/describers"),
    "pipeline": (PipelineCard, "A pipeline's card", "configs/generate"),
    "protocol": (Protocol, "A protocol of evaluation", "configs/evaluate"),
    "perturbations": (PerturbationList, "A list of perturbations", "configs/perturb"),
    "layout": (PublishedLayout, "A layout of a data set", "configs/layouts"),
    "cluster": (ClusterDescription, "A cluster, for touchstone plan", "configs/clusters"),
}
_PAGES = {model: f"config-{name}" for name, (model, _) in CONFIGS.items()} | {
    model: f"card-{name}" for name, (model, *_) in CARDS.items()
}
_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = {
    "gt": ">",
    "ge": "≥",
    "lt": "<",
    "le": "≤",
    "min_length": "at least",
    "max_length": "at most",
}


# Of keys that many cards have, and whose models say no more than the name.
_PLAIN = {
    "name": "what it is called, in commands and results",
    "title": "what it is called, for people",
    "family": "which code builds the network: one of `ray_app/detectors/families`, or an entry point of the group `touchstone.families`",
    "arguments": "what it is built with, by name",
    "licence": "an SPDX identifier, or a name",
    "licence_note": "what the licence leaves open",
    "citation": "whom to cite",
    "source": "where that is published",
    "note": "what a reader should know of it",
    "notes": "what a reader should know, a sentence each",
    "demonstration": "not for decisions about any image; every result says so",
    "sha256": "of the file, in hex",
    "n_real": "real images that this rests on",
    "n_fake": "generated images that this rests on",
    "seed": "what is drawn follows from it",
}
_SENTENCE_ENDS = re.compile(r"(?<=[.;]) (?=[A-Z`])")
_READING = "A dot is a level of indentation in YAML, `[]` stands for each entry of a list, and `NAME` for a name of yours."


def pages() -> dict[str, str]:
    """A page for each config and each card, by its name."""
    made = {}
    for name, (model, command) in CONFIGS.items():
        told = f"The keys of `{model.__name__}`, for a YAML file or, where the command has it, for `--set KEY=VALUE`. {_READING}"
        made[f"config-{name}"] = "\n\n".join(
            [f"# Settings of {command}", told, *_parts(model, command)]
        )
    for name, (model, title, folder) in CARDS.items():
        told = f"The keys of `{model.__name__}`, a YAML file; those that are shipped lie in `{folder}`. {_READING}"
        made[f"card-{name}"] = "\n\n".join(
            [f"# {title}", told, prose(_lead(model)), *_parts(model)]
        )
    return made


class ConfigKey(NamedTuple):
    """A key by its path, the field that it is, and the model that the field belongs to."""

    path: str
    field: FieldInfo
    owner: type[BaseModel]


def _parts(
    model: type[BaseModel], command: str = "", prefix: str = "", told: set[type] | None = None
) -> Iterator[str]:
    """A table of the keys, and below it each section under its own heading; what a section is for
    is told once.
    """
    told = {model} if told is None else told
    keys = [
        ConfigKey(prefix + (field.alias or name), field, model)
        for name, field in model.model_fields.items()
    ]
    rows = [
        [code(key.path), _type(key.field), _default(key.field), prose(meaning_of(key, command))]
        for key in keys
    ]
    yield table(["key", "value", "default", "meaning"], rows)
    for key in keys:
        sections = [
            (section, key.path + below)
            for section, below in _sections(key.field.annotation)
            if section not in _PAGES
        ]
        if any(issubclass(section, Step) for section, _ in sections):
            yield f"## {sections[0][1]}"
            yield _steps_table()
            continue
        for section, path in sections:
            yield f"## {path}" + f" ({section.__name__})" * (len(sections) > 1)
            yield "" if section in told else prose(_lead(section))
            told.add(section)
            yield from _parts(section, command, f"{path}.", told)


def _steps_table() -> str:
    """Return all steps of perturbations, with their parameters."""
    rows = []
    for op, step in STEPS.items():
        first, *others = [
            [
                code(name),
                _type(field),
                _default(field),
                prose(field.description or _described(field.annotation)),
            ]
            for name, field in step.model_fields.items()
            if name != "op"
        ]
        effect = " ".join((step.__doc__ or "").partition("\n\n")[0].split())
        rows.append([code(op), prose(effect), *first])
        rows += [["", "", *parameter] for parameter in others]
    return table(["op", "effect", "parameter", "value", "default", "meaning"], rows)


def _described(annotation: Any) -> str:
    """Return the description in the metadata of a type or of its first alternative."""
    notes = [one for one in get_args(annotation) if isinstance(one, FieldInfo)]
    if notes:
        return notes[0].description or ""
    return next(filter(None, map(_described, get_args(annotation))), "")


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[ConfigKey]:
    """Every key; sections are followed by their own keys, unless they are a config with a page of
    its own. A parameter of a step stands by its name, as in the table of the steps.
    """
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        yield ConfigKey(path, field, model)
        for section, below in _sections(field.annotation):
            if section not in _PAGES:
                is_step = issubclass(section, Step)
                yield from keys_of(section, "" if is_step else f"{path}{below}.")


def meaning_of(key: ConfigKey, command: str) -> str:
    """What the field, the option of this name, its model's docstring (`key`: …), of a section its
    own, or a sentence with the key says.
    """
    if key.field.description:
        return key.field.description
    name = key.path.rpartition(".")[2]
    if key.path == name and (said := _option_help(command, name)):
        return said
    models = [model for model in key.owner.__mro__ if issubclass(model, BaseModel)]
    if stated := next((words[name] for words in map(_told, models) if name in words), None):
        return stated
    sections = [_words_of(section) for section, _ in _sections(key.field.annotation)]
    if sections:
        return _SENTENCE_ENDS.split(sections[0])[0].rstrip(".")
    if sentence := next(
        (
            one
            for model in models
            for one in _SENTENCE_ENDS.split(_words_of(model))
            if f"`{name}`" in one
        ),
        None,
    ):
        return sentence.rstrip(".;")
    # a section's `name` is whose the section says
    return _PLAIN.get(name, "") if key.path == name or name != "name" else ""


def _lead(model: type[BaseModel]) -> str:
    """What a docstring says before it comes to single keys."""
    return re.split(rf"(?:^|(?<=[.;] )){_keys(model)}: ", _words_of(model))[0].strip()


def _told(model: type[BaseModel]) -> dict[str, str]:
    """What a docstring says of single keys (`key`: …, or `one`, `other`: …)."""
    _, *rest = re.split(f"({_keys(model)}): ", _words_of(model))
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return {
        name: text.strip().rstrip(".;")
        for keys, text in pairs
        for name in re.findall(r"`(\w+)`", keys)
    }


def _keys(model: type[BaseModel]) -> str:
    names = "|".join(model.model_fields) or "-"
    return f"(?:`(?:{names})`(?:, | and ))*`(?:{names})`"


def _words_of(model: type) -> str:
    """A model's docstring in one line, without its sources."""
    return " ".join((vars(model).get("__doc__") or "").partition("Source: ")[0].split())


def _option_help(command: str, name: str) -> str:
    found: click.Command = touchstone
    for word in command.split()[1:]:
        found = found.commands[word] if isinstance(found, click.Group) else found
    said = next(
        (
            one.help
            for one in found.get_params(click.Context(found))
            if isinstance(one, click.Option) and one.name == name
        ),
        None,
    )
    return (said or "").partition("  [default")[0].rstrip(".")


def _sections(annotation: Any, below: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, below
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        arguments = arguments[:1]
    elif origin in (tuple, list, frozenset):
        below = f"{below}[]"
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        below, arguments = f"{below}.NAME", arguments[1:]
    elif origin not in (typing.Union, types.UnionType):
        return
    for argument in arguments:
        yield from _sections(argument, below)


def _type(field: FieldInfo) -> str:
    bounds = [_bound(given) for given in field.metadata]
    return ", ".join([_words(field.annotation), *(bound for bound in bounds if bound)])


def _bound(given: Any) -> str:
    stated = [
        (sign, getattr(given, name))
        for name, sign in _BOUNDS.items()
        if isinstance(given, annotated_types.BaseMetadata) and hasattr(given, name)
    ]
    return " and ".join(f"{sign} {value:,}" for sign, value in stated if value is not None)


def _words(annotation: Any) -> str:
    """A type for readers who write YAML."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(code(str(one)) for one in arguments)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(one) for one in arguments))
    if origin in (tuple, list, frozenset):
        items = [one for one in arguments if one is not Ellipsis]
        return (
            f"[{', '.join(map(_words, items))}]"
            if origin is tuple and len(items) > 1
            else f"list of {_words(items[0])}"
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"keys with {_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (
            f"[{_PAGES[annotation].partition('-')[2]}]({_PAGES[annotation]}.md)"
            if annotation in _PAGES
            else "section"
        )
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(code(str(one.value)) for one in annotation)
    return code(getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (
        isinstance(value, tuple) and any(isinstance(one, BaseModel) for one in value)
    ):
        return ""
    if isinstance(value, tuple | frozenset | set):
        value = [str(one.value) if isinstance(one, Enum) else one for one in value]
    return code(
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )
