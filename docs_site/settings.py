"""Generate the pages of the keys of every config and every card: enter at `pages`."""

import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs_site.markdown import code, prose, table
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
# Other files that a user may write: the model, the title, and the folder of the shipped files.
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
_TYPE_NAMES = {
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


_READING = "A dot is a level of indentation in YAML, `[]` stands for each entry of a list, and `NAME` for a name that you choose."


def pages() -> dict[str, str]:
    """Return a page for each config and each card, by its name."""
    texts = {}
    for name, (model, command) in CONFIGS.items():
        introduction = f"This page lists the keys of `{model.__name__}`, for a YAML file or for `--set KEY=VALUE` if the command has it. {_READING}"
        texts[f"config-{name}"] = "\n\n".join(
            [f"# Settings of {command}", introduction, *_parts(model)]
        )
    for name, (model, title, folder) in CARDS.items():
        introduction = f"This page lists the keys of `{model.__name__}`, a YAML file. The shipped files are in `{folder}`. {_READING}"
        texts[f"card-{name}"] = "\n\n".join(
            [f"# {title}", introduction, prose(_summary(model)), *_parts(model)]
        )
    return texts


class ConfigKey(NamedTuple):
    """The path of a key, and its field."""

    path: str
    field: FieldInfo


def _parts(
    model: type[BaseModel], prefix: str = "", described: set[type] | None = None
) -> Iterator[str]:
    """Yield a table of the keys, then each section under its own heading.

    Args:
        model: The model of the config or section.
        prefix: The path of the section, with a dot at its end.
        described: The sections whose docstring is on the page already.
    """
    described = {model} if described is None else described
    keys = [
        ConfigKey(prefix + (field.alias or name), field)
        for name, field in model.model_fields.items()
    ]
    rows = [
        [code(key.path), _type(key.field), _default(key.field), prose(describe_key(key))]
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
            yield "" if section in described else prose(_summary(section))
            described.add(section)
            yield from _parts(section, f"{path}.", described)


def _steps_table() -> str:
    """Return all steps of perturbations, with their parameters."""
    rows = []
    for op, step in STEPS.items():
        first, *others = [
            [
                code(name),
                _type(field),
                _default(field),
                prose(_describe_field(field)),
            ]
            for name, field in step.model_fields.items()
            if name != "op"
        ]
        effect = " ".join((step.__doc__ or "").partition("\n\n")[0].split())
        rows.append([code(op), prose(effect), *first])
        rows += [["", "", *parameter] for parameter in others]
    return table(["op", "effect", "parameter", "value", "default", "meaning"], rows)


def _describe_field(field: FieldInfo) -> str:
    """Return the description of a field, or else the description of its type."""
    return field.description or _describe_type(field.annotation)


def _describe_type(annotation: Any) -> str:
    """Return the description in the metadata of a type or of its first alternative."""
    fields = [argument for argument in get_args(annotation) if isinstance(argument, FieldInfo)]
    if fields:
        return fields[0].description or ""
    return next(filter(None, map(_describe_type, get_args(annotation))), "")


def iter_keys(model: type[BaseModel], prefix: str = "") -> Iterator[ConfigKey]:
    """Yield every key, and the keys of its sections that have no page of their own.

    The path of a parameter of a perturbation step is its name, as in the table of the steps.
    """
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        yield ConfigKey(path, field)
        for section, below in _sections(field.annotation):
            if section not in _PAGES:
                is_step = issubclass(section, Step)
                yield from iter_keys(section, "" if is_step else f"{path}{below}.")


def describe_key(key: ConfigKey) -> str:
    """Return the description of the field of a key, or the summary of the section that it holds."""
    if description := _describe_field(key.field):
        return description
    return next(
        (_summary(section).rstrip(".") for section, _ in _sections(key.field.annotation)), ""
    )


def _summary(model: type[BaseModel]) -> str:
    """Return the first paragraph of a model's own docstring in one line."""
    docstring = vars(model).get("__doc__") or ""
    return " ".join(docstring.strip().partition("\n\n")[0].split())


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
    bounds = filter(None, map(_bound, field.metadata))
    return ", ".join([_type_name(field.annotation), *bounds])


def _bound(constraint: Any) -> str:
    bounds = [
        (sign, getattr(constraint, name))
        for name, sign in _BOUNDS.items()
        if isinstance(constraint, annotated_types.BaseMetadata) and hasattr(constraint, name)
    ]
    return " and ".join(f"{sign} {value:,}" for sign, value in bounds if value is not None)


def _type_name(annotation: Any) -> str:
    """Return the name of a type for readers who write YAML."""
    if annotation in _TYPE_NAMES:
        return _TYPE_NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(code(str(value)) for value in arguments)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_name, arguments)))
    if origin in (tuple, list, frozenset):
        items = [argument for argument in arguments if argument is not Ellipsis]
        return (
            f"[{', '.join(map(_type_name, items))}]"
            if origin is tuple and len(items) > 1
            else f"list of {_type_name(items[0])}"
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"keys with {_type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (
            f"[{_PAGES[annotation].partition('-')[2]}]({_PAGES[annotation]}.md)"
            if annotation in _PAGES
            else "section"
        )
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(code(str(member.value)) for member in annotation)
    return code(getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (
        isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value)
    ):
        return ""
    if isinstance(value, tuple | frozenset | set):
        value = [str(item.value) if isinstance(item, Enum) else item for item in value]
    return code(
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )
