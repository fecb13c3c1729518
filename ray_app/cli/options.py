"""Options that several commands share, and how they meet a config file: defaults < file < options < --set."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ray_app.config.loading import Model

Command = TypeVar("Command", bound=Callable[..., Any])


def overrides(command: Command) -> Command:
    """`--set a.b=value`, repeatable; the value is YAML."""
    told = "Any config key, for example --set batch_slots=8; `touchstone config show` lists them."
    return click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help=told)(command)


def as_json(command: Command) -> Command:
    """`--json`, for machines."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def configured(kind: str, name_or_path: str | None, model: "type[Model]", given: Mapping[str, Any], assignments: Sequence[str]) -> "Model":
    """The model from a config file (if any), the options that were given, and `--set`. Raises ConfigError."""
    from ray_app.config import find_config
    from ray_app.config.loading import read_mapping, validate

    path = find_config(kind, name_or_path) if name_or_path else None
    data = read_mapping(path) if path else {}
    data |= {key: list(value) if isinstance(value, tuple) else value for key, value in given.items() if value not in (None, ())}
    return validate(data, model, where=str(path) if path else "command line", overrides=assignments)


def shown(model: Any) -> str:
    """A model as YAML."""
    import yaml

    text: str = yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
