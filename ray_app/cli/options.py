"""Options that several commands share, and how they meet a config file: defaults < file < options <
--set.
"""

import json
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


class ShippedName(click.ParamType[str]):
    """The name of a file of these kinds (`detectors`, `ensembles`, `train`, …), shipped or added,
    or a path: a shell completes either.
    """

    name = "text"

    def __init__(self, *kinds: str) -> None:
        self._kinds = kinds

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """The names that begin so, else files."""
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


PLACE = ShippedName()  # a path alone
DETECTOR, ENSEMBLE, RECIPE, PROTOCOL, SCORE = map(
    ShippedName, ("detectors", "ensembles", "train", "evaluate", "score")
)

# Options that several commands have, word for word.
out_option = click.option(
    "--out", metavar="DIR", help="Where to write; any fsspec URL. The same command resumes there."
)
ensemble_option = click.option(
    "--ensemble",
    type=ENSEMBLE,
    metavar="NAME|PATH",
    help="Which ensemble decides.  [default: default]",
)
detectors_option = click.option(
    "--detector",
    "detectors",
    type=DETECTOR,
    multiple=True,
    metavar="NAME|PATH",
    help="Score with these detectors instead; repeatable.",
)
fpr_option = click.option(
    "--fpr",
    type=float,
    metavar="RATE",
    help="Decide at the operating point of the ensemble for this false-positive rate, such as 0.05.  "
    "[default: the thresholds of its card]",
)
retry_shards_option = click.option(
    "--retry",
    is_flag=True,
    help="Write again the shards in which files could not be read from storage.",
)
_WHAT_IS_SCORED = (
    click.argument("source", nargs=-1),
    click.option(
        "--config",
        "config_file",
        type=SCORE,
        metavar="FILE",
        help="YAML of a run, or a name (laptop, overnight, follow).",
    ),
    ensemble_option,
    detectors_option,
)


overrides = click.option(  # the value is YAML
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any key of the config, for example cluster.workers=2; `touchstone config show` lists those of a run. Repeatable.",
)


def what_is_scored(command: Command) -> Command:
    """SOURCE, the config file, the detectors, and which files of the source: the same for every
    command on a run to be made.
    """
    for option in reversed(_WHAT_IS_SCORED):
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
unguarded_option = click.option(
    "--unguarded",
    is_flag=True,
    help="Go on although the run's store has no conditional writes; then nothing stops two commands from writing at once.",
)


def echo_document(document: Any, lines: Iterable[str], as_json: bool) -> None:
    """Print a command's result: as JSON, or in lines for people."""
    click.echo(json_text(document, indent=2) if as_json else "\n".join(lines))


def json_text(
    document: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """JSON as `json.dumps` has it; with an escape for all that is not ASCII where something in it
    would move a terminal's text.
    """
    text = json.dumps(document, indent=indent, default=default, ensure_ascii=False)
    return (
        text
        if text.replace("\n", "").isprintable()
        else json.dumps(document, indent=indent, default=default)
    )


def _accept(
    context: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    if not names:
        return ()
    from ray_app.detectors.licences import accept_licence

    return accepted_by(accept_licence, names)


licence_option = click.option(  # as `accepted`: names of detectors or licences
    "--accept-licence",
    "accepted",
    multiple=True,
    metavar="NAME",
    callback=_accept,
    help="Accept the licence of this detector (or a licence by its id) and remember that; repeatable.",
)


def accepted_by(accept: "Callable[[str], Acceptance]", names: Sequence[str]) -> tuple[str, ...]:
    """Accept licences, saying on stderr where that is remembered; their names. Raises ConfigError."""
    accepted = [accept(name) for name in names]
    for one in accepted:
        where = (
            f"remembered in {one.file}"
            if one.file
            else "for this command only: no config file can be written"
        )
        click.echo(f"accepted: {one.name}, licence {one.licence}; {where}", err=True)
    return tuple(one.name for one in accepted)


def moment(text: str) -> "datetime":
    """A time in UTC, as ISO writes it, or so long ago as a time span says. Raises BadParameter."""
    from datetime import UTC, datetime, timedelta

    from ray_app.config import seconds_of

    span = seconds_of(text)
    try:
        found = (
            datetime.fromisoformat(text)
            if span == text
            else datetime.now(UTC) - timedelta(seconds=span)
        )
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time such as 2026-11-26T08:30 nor a time span such as 24h"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def configured(
    kind: str,
    name_or_path: str | None,
    model: "type[Model]",
    given: Mapping[str, Any],
    assignments: Sequence[str],
) -> "Model":
    """Return the config from a file, the options, and `--set`; the last of them wins.

    Args:
        kind: The kind of config file, such as `score`.
        name_or_path: The name or the path of the config file. None for no file.
        model: The config.
        given: Values of options by key. Two underscores separate a section from its key.
        assignments: The values of `--set`.

    Returns:
        The validated config.

    Raises:
        ConfigError: A value is invalid. The hint is the help of the command.
    """
    from ray_app.config import find_config, read_mapping, validate
    from ray_app.errors import ConfigError

    path = find_config(kind, name_or_path) if name_or_path else None
    data = read_mapping(path) if path else {}
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in given.items()
        if value not in (None, ())
    }
    data |= {key: value for key, value in values.items() if "__" not in key}
    in_sections = [
        f"{key.replace('__', '.')}={json.dumps(value)}"
        for key, value in values.items()
        if "__" in key
    ]
    try:
        return validate(
            data,
            model,
            where=str(path) if path else "command line",
            overrides=[*in_sections, *assignments],
        )
    except ConfigError as error:
        error.hint = error.hint or f"{click.get_current_context().command_path} --help"
        raise


def shown(model: Any) -> str:
    """A model as YAML."""
    import yaml

    text: str = yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def local_folder(path: "str | Path") -> "Path":
    """A folder of this machine for what a command writes, made if it is not there. Raises
    ConfigError.
    """
    from pathlib import Path

    from ray_app.errors import ConfigError

    folder = Path(path)
    try:
        if "://" in str(path):
            raise ConfigError(
                f"--out {path}: not a folder of this machine",
                hint="this command writes to local folders only",
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {path}: {error.strerror}",
            hint="name a folder of this machine in which you may write",
        ) from None
    return folder
