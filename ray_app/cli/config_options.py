"""Make the options of a click command from the fields of a pydantic config class.

A command uses the class `ConfigCommand`.
"""

import types
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click

from ray_app.cli.options import PATH

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class ConfigCommand(click.Command):
    """A click command whose options are made from fields of a config class.

    The type, the default, and the help of an option come from the field. The options are made when
    the command is used, so that `touchstone --help` does not import the config.

    Args:
        *args: Positional arguments of `click.Command`.
        config: Module and name of the config class, such as `package.module:Class`.
        fields: Names of config fields, each with the flag of its option, such as
            `{"out": "--out DIR", "politeness.per_host": "--per-host"}`. A dot separates a section
            of the config from a field in it. A placeholder for the value, such as `DIR`, may follow
            the flag.
        **kwargs: Keyword arguments of `click.Command`.
    """

    def __init__(self, *args: Any, config: str, fields: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._config, self._fields = config, fields
        self._options: list[click.Option] = []

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options made from the config fields, then the other parameters."""
        if not self._options:
            module, _, name = self._config.partition(":")
            model = getattr(import_module(module), name)
            self._options = [make_option(model, path, flag) for path, flag in self._fields.items()]
        return [*self._options, *super().get_params(ctx)]


def make_option(model: "type[BaseModel]", path: str, flag: str) -> click.Option:
    """Make the click option of a config field.

    The option passes None if the user does not set it, so that the config file keeps its value. The
    help of the option is the description of the field. If the description ends in `; null = TEXT`,
    the help shows TEXT as the default.

    Args:
        model: The config class.
        path: The field. A dot separates each section from the next name.
        flag: The flag, such as `--per-host`, `--out DIR`, or `--mark/--no-mark`.

    Returns:
        An option that is repeatable if the field is a tuple. In the name of its parameter, two
        underscores replace each dot of the path.
    """
    flag, _, metavar = flag.partition(" ")
    *sections, name = path.split(".")
    for section in sections:
        model = _plain_type(model.model_fields[section].annotation)
    field = model.model_fields[name]
    kind, default = _plain_type(field.annotation), field.get_default(call_default_factory=True)
    is_repeatable = get_origin(kind) is tuple
    text, _, default_text = (field.description or "").partition("; null = ")
    text = f"{text[:1].upper()}{text[1:]}{'; repeatable' if is_repeatable else ''}."
    if not (field.is_required() or default is None or default is False or default == ()):
        default_text = f"{default:g}" if isinstance(default, float) else str(default)
    if default_text and "/" not in flag:
        text += f"  [default: {default_text}]"
    declarations = [flag, path.replace(".", "__")]
    if kind is bool:
        return click.Option(declarations, is_flag=True, default=None, help=text)
    if is_repeatable:
        kind = _plain_type(get_args(kind)[0])
    return click.Option(
        declarations,
        type=_option_type(kind, field),
        default=None,
        multiple=is_repeatable,
        metavar=metavar or None,
        help=text,
    )


def _plain_type(annotation: Any) -> Any:
    """Return the type without `Annotated` and without None; merge a union of literals."""
    if get_origin(annotation) is Annotated:
        return _plain_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(kinds) > 1 and all(get_origin(kind) is Literal for kind in kinds):
            return Literal[tuple(value for kind in kinds for value in get_args(kind))]
        [kind] = kinds
        return _plain_type(kind)
    return annotation


def _option_type(kind: Any, field: "FieldInfo") -> click.ParamType[Any]:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    bounds: dict[str, Any] = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(limit, name, None) is not None
    }
    lowest, highest = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if kind in (int, float):
        if not bounds:
            return click.INT if kind is int else click.FLOAT
        make = click.IntRange if kind is int else click.FloatRange
        return make(lowest, highest, min_open="gt" in bounds, max_open="lt" in bounds)
    return PATH
