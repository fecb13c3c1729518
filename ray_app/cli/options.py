"""Options that several commands share, and `load_config`, which merges them with a config file.

Settings come from defaults, the config file, options, and `--set`. A later source in this order
overrides the earlier ones.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from ray_app.config import Model
    from ray_app.detectors.licences import Acceptance

Command = TypeVar("Command", bound=Callable[..., Any])


class RateParam(click.ParamType[float]):
    """A click parameter type for a rate, given as a fraction such as 0.05."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Convert the text of a rate, such as "0.05", to a float.

        Args:
            value: The text that the user gave.
            param: The parameter.
            ctx: Context of the command.

        Returns:
            The rate. Its range is not checked.

        Raises:
            click.BadParameter: If the text is not a number, for example if it is a percentage.
        """
        try:
            return float(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a number; write 5 % as 0.05", param, ctx)


class ShippedName(click.ParamType[str]):
    """A click parameter type for a config file, given as a path or by its name.

    Files that are shipped with Touchstone or that the user added have names, such as `quick`. Shell
    completion offers the names, or files if no name matches.

    Args:
        *kinds: Kinds of config files whose names are offered, such as `detectors`, `ensembles`, or
            `train`. Without a kind, the value is any path.
    """

    name = "text"

    def __init__(self, *kinds: str) -> None:
        self._kinds = kinds

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Return the shell completions of a value that the user has started to type.

        Args:
            ctx: Context of the command.
            param: The parameter.
            incomplete: The start of the value.

        Returns:
            The names that start with `incomplete`, or a request to complete files if there are none.
        """
        from click.shell_completion import CompletionItem

        names = list[str]()
        if self._kinds:
            from ray_app.config import added_configs, named_configs

            names = [
                name
                for kind in self._kinds
                for name in (*named_configs(kind), *added_configs(kind))
                if name.startswith(incomplete)
            ]
        return [CompletionItem(name) for name in dict.fromkeys(names)] or [
            CompletionItem(incomplete, type="file")
        ]


PATH = ShippedName()
DETECTOR, ENSEMBLE, RECIPE, PROTOCOL, SCORE = map(
    ShippedName, ("detectors", "ensembles", "train", "evaluate", "score")
)

out_option = click.option(
    "--out",
    metavar="DIR",
    help="Output directory; any fsspec URL. Run the same command again to resume.",
)
ensemble_option = click.option(
    "--ensemble",
    type=ENSEMBLE,
    metavar="NAME|PATH",
    help="The ensemble that scores and decides.  [default: default]",
)
detectors_option = click.option(
    "--detector",
    "detectors",
    type=DETECTOR,
    multiple=True,
    metavar="NAME|PATH",
    help="Score with this detector instead of an ensemble; repeatable.",
)
fpr_option = click.option(
    "--fpr",
    type=RateParam(),
    metavar="RATE",
    help="Use the ensemble's operating point for this false-positive rate, such as 0.05.  "
    "[default: the thresholds of its card]",
)
retry_shards_option = click.option(
    "--retry",
    is_flag=True,
    help="Rewrite the shards with files that could not be read from storage.",
)
_SOURCE_OPTIONS = (
    click.argument("source", nargs=-1),
    click.option(
        "--config",
        "config_file",
        type=SCORE,
        metavar="FILE",
        help="YAML file with the settings of a run, or the name of a shipped one: laptop, overnight, follow.",
    ),
    ensemble_option,
    detectors_option,
)


overrides = click.option(  # The value is YAML.
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any key of the config; repeatable. `touchstone config show` lists the keys of a run.",
)


def source_options(command: Command) -> Command:
    """Add the argument SOURCE and the options `--config`, `--ensemble`, and `--detector`.

    These are the parameters that the commands `touchstone plan` and `touchstone score` share.

    Args:
        command: The function of the command.

    Returns:
        The function with the parameters.
    """
    for option in reversed(_SOURCE_OPTIONS):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
unguarded_option = click.option(
    "--unguarded",
    is_flag=True,
    help="Continue if the run's store has no conditional writes. Two commands can then write at the same time.",
)


def echo_document(document: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print the result of a command.

    Args:
        document: The result as a document that JSON can represent.
        lines: The result as lines of text.
        as_json: Whether to print the document instead of the lines.
    """
    click.echo(to_json(document, indent=2) if as_json else "\n".join(lines))


def to_json(
    document: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Return a document as JSON that is safe to print on a terminal.

    Non-ASCII characters stay as they are. If the text contains a character that is not printable,
    such as one that moves the text of a terminal, or that the encoding of stdout lacks, all
    non-ASCII characters are escaped.

    Args:
        document: The document.
        indent: Spaces per level. None for one line.
        default: Function that converts a value that `json.dumps` cannot represent.
    """
    text = json.dumps(document, indent=indent, default=default, ensure_ascii=False)
    is_shown = text.replace("\n", "").isprintable() and _is_encodable(text)
    return text if is_shown else json.dumps(document, indent=indent, default=default)


def _is_encodable(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _accept(
    context: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    if not names:
        return ()
    from ray_app.detectors.licences import accept_licence

    return accept_licences(accept_licence, names)


licence_option = click.option(  # Passes `accepted`: names of detectors or licences.
    "--accept-licence",
    "accepted",
    multiple=True,
    metavar="NAME",
    callback=_accept,
    help="Accept the licence of this detector, or the licence with this id, and remember that; repeatable.",
)


def accept_licences(accept: "Callable[[str], Acceptance]", names: Sequence[str]) -> tuple[str, ...]:
    """Accept licences, and print to stderr in which file each acceptance is stored.

    Args:
        accept: Function that records that the user accepts the licence with this name, or the
            licence of the detector or pipeline with this name.
        names: Names of detectors or pipelines, or ids of licences.

    Returns:
        The names of the accepted detectors, pipelines, or licences.

    Raises:
        ConfigError: If a name is unknown, or the file of accepted licences is damaged.
    """
    acceptances = [accept(name) for name in names]
    for acceptance in acceptances:
        scope = (
            f"remembered in {acceptance.file}"
            if acceptance.file
            else "for this command only: no config file can be written"
        )
        click.echo(f"accepted: {acceptance.name}, licence {acceptance.licence}; {scope}", err=True)
    return tuple(acceptance.name for acceptance in acceptances)


def parse_time(text: str) -> "datetime":
    """Parse an ISO time such as "2026-11-26T08:30", or a duration before now such as "24h".

    A time without a time zone is in UTC.

    Returns:
        The time, with its time zone.

    Raises:
        BadParameter: If the text is neither.
    """
    from datetime import UTC, datetime, timedelta

    from ray_app.config import parse_duration

    span = parse_duration(text)
    try:
        time = (
            datetime.fromisoformat(text)
            if span == text
            else datetime.now(UTC) - timedelta(seconds=span)
        )
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time such as 2026-11-26T08:30 nor a duration such as 24h"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def load_config(
    kind: str,
    name_or_path: str | None,
    model: "type[Model]",
    values: Mapping[str, Any],
    assignments: Sequence[str],
) -> "Model":
    """Load the config of a command from a config file, the options, and `--set`.

    Options override the file, and `--set` overrides both.

    Args:
        kind: The kind of config file, such as `score`.
        name_or_path: The name or the path of the config file. None for no file.
        model: The class of the config.
        values: Values of options by config key. None and () mean that an option was not set. Two
            underscores separate a section from its key, such as `data__name`.
        assignments: The values of `--set`, such as `loop.batch=64`.

    Returns:
        The validated config.

    Raises:
        ConfigError: If the file does not exist, or a value is invalid. An error without a hint gets
            one that refers to the help of the command.
    """
    from ray_app.config import find_config, read_mapping, validate
    from ray_app.errors import ConfigError

    path = find_config(kind, name_or_path) if name_or_path else None
    data = read_mapping(path) if path else {}
    set_values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value not in (None, ())
    }
    data |= {key: value for key, value in set_values.items() if "__" not in key}
    section_assignments = [
        f"{key.replace('__', '.')}={json.dumps(value)}"
        for key, value in set_values.items()
        if "__" in key
    ]
    try:
        return validate(
            data,
            model,
            where=str(path) if path else "command line",
            overrides=[*section_assignments, *assignments],
        )
    except ConfigError as error:
        error.hint = error.hint or f"run {click.get_current_context().command_path} --help"
        raise


def to_yaml(model: Any) -> str:
    """Return the values of a pydantic model as YAML, in the order of its fields."""
    import yaml

    text: str = yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def make_local_folder(path: "str | Path") -> "Path":
    """Return the local output folder at `path`, and create it if it does not exist.

    Raises:
        ConfigError: If the path is a URL, or the folder cannot be created.
    """
    from pathlib import Path

    from ray_app.errors import ConfigError

    folder = Path(path)
    try:
        if "://" in str(path):
            raise ConfigError(
                f"the output folder must be a local folder, got {path}",
                hint="choose a local folder: this command cannot write to URLs",
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot create this folder: {error.strerror}",
            hint="choose a local folder that you can write to",
        ) from None
    return folder
