"""Commands on detectors: `touchstone detectors list`, `show`, `fetch`, `add`, and `verify`.

`fit` is in `ray_app.cli.train`, `calibrate` in `ray_app.cli.trust`.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ray_app.cli import options
from ray_app.cli.options import DETECTOR
from ray_app.errors import DetectorError, ExitCode


def mirror_option(command: Callable[..., int]) -> Callable[..., int]:
    """Add the option `--mirror URL` to a click command.

    The URL is a folder or bucket with copies of weight files. While the command runs, weights are
    searched there before they are downloaded from a hub.

    Args:
        command: The function of the command.

    Returns:
        The function with the option. It gets no additional argument.
    """
    help_text = "Folder or bucket to search for the weights first; `fetch --to` fills one.  [default: $TOUCHSTONE_WEIGHTS_MIRROR]"
    return click.option(
        "--mirror",
        "source",
        metavar="URL",
        expose_value=False,
        callback=_use_mirror,
        help=help_text,
    )(command)


def _use_mirror(context: click.Context, option: click.Parameter, mirror: str | None) -> None:
    if mirror is not None:
        from ray_app.detectors import MIRROR_VARIABLE

        previous = os.environ.get(MIRROR_VARIABLE)
        os.environ[MIRROR_VARIABLE] = _make_absolute(mirror) or ""
        context.call_on_close(
            lambda: (
                os.environ.pop(MIRROR_VARIABLE)
                if previous is None
                else os.environ.update({MIRROR_VARIABLE: previous})
            )
        )


@click.command("fetch")
@click.argument(
    "names",
    type=options.ShippedName("detectors", "ensembles"),
    nargs=-1,
    metavar="DETECTOR|ENSEMBLE|PATH…",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Fetch every shipped detector whose licence is permissive or accepted.",
)
@click.option(
    "--to",
    "mirror",
    metavar="URL",
    help="Also copy the weights to this shared folder or bucket, for machines without internet access.",
)
@mirror_option
@options.licence_option
@options.json_option
def fetch(
    names: tuple[str, ...],
    everything: bool,
    mirror: str | None,
    accepted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Download the published weights of detectors or ensembles into the cache, and check their SHA-256.

    \b
    touchstone detectors fetch recommended
    """
    from ray_app.detectors import licences, load_card
    from ray_app.detectors.fetch import fetch_detectors, find_fetchable
    from ray_app.ensembles.card import find_ensemble

    if bool(names) == everything:
        raise click.UsageError(
            "no detector was named: name detectors, or use --all"
            if not names
            else "--all cannot be combined with names of detectors"
        )
    by_name = {name: find_ensemble(name) for name in names}
    ensembles = {name: ensemble for name, ensemble in by_name.items() if ensemble is not None}
    members = [member.detector for ensemble in ensembles.values() for member in ensemble.members]
    requested = dict.fromkeys([*members, *(name for name in names if name not in ensembles)])
    cards = list(find_fetchable(accepted, _log)) if everything else list(map(load_card, requested))
    for card in cards:
        licences.require_accepted(card, accepted)
    mirror = _make_absolute(mirror)
    fetched, failures = fetch_detectors(cards, mirror, _log)
    paths = dict.fromkeys(str(path) for weights in fetched for path in weights.files)
    export = (
        [f"export TOUCHSTONE_WEIGHTS_MIRROR={shlex.quote(mirror)}"] if mirror and fetched else []
    )
    if as_json or fetched:
        options.echo_document([weights.facts() for weights in fetched], [*paths, *export], as_json)
    for name, ensemble in () if failures else ensembles.items():
        _log(
            f"{name}: {len(ensemble.members)} detectors are ready; next: touchstone check PHOTO.jpg --ensemble {shlex.quote(name)}"
        )
        if ensemble.guarantee is None:
            _log(
                f"{name}: not calibrated: run touchstone detectors calibrate to get a bound on its error rate"
            )
    return _report(failures)


class _FileOrCallable(click.Path):
    """A parameter whose value is an existing file, or text that starts with `callable:`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return `callable:…` unchanged, and any other value as `click.Path` converts it."""
        from ray_app.detectors.callables.addition import is_callable

        return value if is_callable(str(value)) else super().convert(value, param, ctx)


_CALLABLE_OPTIONS = (
    click.option("--python", metavar="PATH",
                 help="Python interpreter that runs the callable, such as VENV/bin/python.  [default: the one that runs touchstone]"),
    click.option("--folder", metavar="FOLDER", type=click.Path(exists=True, file_okay=False, path_type=Path),
                 help="Folder with the callable's module, in which its process runs.  [default: the current folder]"),
    click.option("--scores", type=click.Choice(["log-odds", "probability"]),
                 help="The kind of score that the callable returns for each image.  [default: log-odds]"),
    click.option("--pictures", "images", type=click.Choice(["arrays", "pil"]), default="arrays", show_default=True,
                 help="Input of the callable: a list of uint8 arrays (height, width, 3), or a list of PIL images."),
    click.option("--limit-s", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
                 help="Time limit for one batch of images, in seconds. A callable that takes longer is terminated."),
    click.option("--licence", metavar="ID", help="Id of the licence of the callable, such as MIT; `own` for your own code."),
)  # fmt: skip


def _callable_options(command: Callable[..., int]) -> Callable[..., int]:
    for option in reversed(_CALLABLE_OPTIONS):
        command = option(command)
    return command


@click.command("add")
@click.argument("sources", nargs=-1, required=True, metavar="FILE|callable:MODULE:FUNCTION…", type=_FileOrCallable(
    exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option(
    "--as",
    "name",
    metavar="NAME",
    help="For FILE: the detector or backbone that these weights belong to. For a callable: the name of its new card.",
)
@_callable_options
@options.json_option
def add(sources: tuple[Path | str, ...], name: str | None, as_json: bool, **values: Any) -> int:
    """Add a file of weights for a detector, or add a Python function as a new detector.

    \b
    touchstone detectors add open_clip_pytorch_model.safetensors --as commonpool-clip-vit-l14
    touchstone detectors add callable:my_module:my_function --licence own
    """
    callables = [source for source in sources if isinstance(source, str)]
    if callables:
        if len(callables) < len(sources) or (name is not None and len(callables) > 1):
            raise click.UsageError(
                "callables cannot be added together with files, and --as takes a single callable"
            )
        return _add_callables(callables, name, values, as_json=as_json)
    if name is None or len(sources) > 1:
        raise click.UsageError(
            "name one FILE and its detector: touchstone detectors add FILE --as NAME"
        )
    from ray_app.detectors.added_weights import add_weights

    [file] = (source for source in sources if isinstance(source, Path))
    added = add_weights(name, file)
    options.echo_document({**added._asdict(), "path": str(added.path)}, added.lines(file), as_json)
    return 0


def _add_callables(
    callables: Sequence[str], name: str | None, values: dict[str, Any], *, as_json: bool
) -> int:
    from ray_app.detectors.callables.addition import CallableAddition, add_callable

    folder = values.pop("folder") or Path()
    for source in callables:
        _log(f"starting {source}")
        added = add_callable(
            CallableAddition(source.partition(":")[2], folder=folder, name=name, **values)
        )
        options.echo_document(added.facts(), added.lines(), as_json)
    return 0


def _make_absolute(mirror: str | None) -> str | None:
    """Return the absolute path of a local mirror; processes in other folders read the variable."""
    return mirror if mirror is None or "://" in mirror else str(Path(mirror).resolve())


def _report(failures: Sequence[DetectorError]) -> int:
    """Print all failures but the last, and raise the last, which `main` prints in the same form."""
    for error in failures[:-1]:
        _log(f"touchstone: {error.message}" + (f"\n  → {error.hint}" if error.hint else ""))
    if failures:
        raise failures[-1]
    return 0


@click.command("list")
@options.json_option
def list_detectors(as_json: bool) -> int:
    """List the detectors that are shipped or that you added.

    The table shows the licence, the size, the speed, and whether the weights are on this machine.

    \b
    touchstone detectors list
    """
    from ray_app.detectors.card import list_added_cards, list_cards
    from ray_app.reports.card import make_zoo_entry, zoo_table
    from ray_app.reports.text import terminal_width

    entries = [make_zoo_entry(card) for card in (*list_cards(), *list_added_cards())]
    options.echo_document(
        [entry.facts() for entry in entries], [zoo_table(entries, terminal_width())], as_json
    )
    return 0


@click.command("show")
@click.argument("name", type=DETECTOR, metavar="NAME|PATH")
@options.json_option
def show_detector(name: str, as_json: bool) -> int:
    """Print the card of a detector, an identifier, or a describer as YAML.

    A card is the file that describes a model. An identifier names the generator of a fake, and a
    describer predicts the prompt of an image.

    \b
    touchstone detectors show touchstone-tiny
    """
    from ray_app.detectors import load_card
    from ray_app.identification.cards import find_profile_card

    card = find_profile_card(name) or load_card(name)
    options.echo_document(
        card.model_dump(mode="json"), [options.to_yaml(card).rstrip("\n")], as_json
    )
    return 0


@click.command("verify")
@click.argument("names", type=DETECTOR, nargs=-1, required=True, metavar="NAME|PATH…")
@click.option("--images", metavar="FOLDER", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with the images that the published scores belong to, under any file names.")  # fmt: skip
@mirror_option
@options.licence_option
@options.json_option
def verify(
    names: tuple[str, ...], images: Path | None, accepted: tuple[str, ...], as_json: bool
) -> int:
    """Check that the detectors on this machine match the published ones.

    The checks compare SHA-256, keys and shapes of the weights, and published scores of single images.

    \b
    touchstone detectors verify touchstone-tiny
    """
    from ray_app.detectors import licences, load_card
    from ray_app.detectors.card import strip_variant
    from ray_app.detectors.verify import verify_detector

    cards = [load_card(name) for name in names]
    for card in cards:
        licences.require_accepted(card, accepted)
    results = []
    for card in cards:
        checks = []
        for check in verify_detector(card, images):
            checks.append(check)
            if not as_json:
                part = f"{check.part}: " if check.part not in ("", strip_variant(card.name)) else ""
                click.echo(f"{card.name}  {check.name:10}  {check.outcome:7}  {part}{check.told}")
        ok = all(check.outcome != "failed" for check in checks)
        results.append(
            {"name": card.name, "ok": ok, "checks": [check._asdict() for check in checks]}
        )
    if as_json:
        click.echo(options.to_json(results, indent=2))
    return ExitCode.DONE if all(result["ok"] for result in results) else ExitCode.DETECTOR


def _log(text: str) -> None:
    click.echo(text, err=True)
