"""Commands on detectors: `touchstone detectors list`, `show`, `fetch`, `add`, `verify`. `fit` lies
in `train`, `calibrate` in `trust`.
"""

import json
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
    """`--mirror`: where weights are looked for before any hub is asked, for this command."""
    text = "A folder or bucket that may hold the weights, as fetch --to fills it.  [default: $TOUCHSTONE_WEIGHTS_MIRROR]"
    return click.option(
        "--mirror", "source", metavar="URL", expose_value=False, callback=_use_mirror, help=text
    )(command)


def _use_mirror(context: click.Context, option: click.Parameter, mirror: str | None) -> None:
    if mirror is not None:
        from ray_app.detectors import MIRROR_VARIABLE

        before = os.environ.get(MIRROR_VARIABLE)
        os.environ[MIRROR_VARIABLE] = _absolute(mirror) or ""
        context.call_on_close(
            lambda: (
                os.environ.pop(MIRROR_VARIABLE)
                if before is None
                else os.environ.update({MIRROR_VARIABLE: before})
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
    help="Every shipped detector whose licence is permissive or accepted.",
)
@click.option(
    "--to",
    "mirror",
    metavar="URL",
    help="Also copy them to this shared folder or bucket, for machines without internet.",
)
@mirror_option
@options.licence_option
@options.as_json
def fetch(
    names: tuple[str, ...],
    everything: bool,
    mirror: str | None,
    accepted: tuple[str, ...],
    as_json: bool,
) -> int:
    """Fetch the published weights of detectors or ensembles into the cache, and check their SHA-256.

    \b
    touchstone detectors fetch recommended
    """
    from ray_app.detectors import licences, load_card
    from ray_app.detectors.fetch import fetch_detectors, find_fetchable
    from ray_app.ensembles.card import find_ensemble

    if bool(names) == everything:
        raise click.UsageError(
            "give names of detectors, or --all"
            if not names
            else "give either names of detectors or --all, not both"
        )
    ensembles = {name: found for name in names if (found := find_ensemble(name)) is not None}
    members = [member.detector for found in ensembles.values() for member in found.members]
    wanted = dict.fromkeys([*members, *(name for name in names if name not in ensembles)])
    cards = list(find_fetchable(accepted, _log)) if everything else list(map(load_card, wanted))
    for card in cards:
        licences.require_accepted(card, accepted)
    mirror = _absolute(mirror)
    fetched, failures = fetch_detectors(cards, mirror, _log)
    paths = dict.fromkeys(str(path) for weights in fetched for path in weights.files)
    export = (
        [f"export TOUCHSTONE_WEIGHTS_MIRROR={shlex.quote(mirror)}"] if mirror and fetched else []
    )
    if as_json or fetched:
        options.echo_document([weights.facts() for weights in fetched], [*paths, *export], as_json)
    for name, ensemble in () if failures else ensembles.items():
        _log(
            f"{name}: {len(ensemble.members)} detectors are here; next: touchstone check PHOTO.jpg --ensemble {shlex.quote(name)}"
        )
        if ensemble.guarantee is None:
            _log(
                f"{name}: not calibrated: no error rate is promised before touchstone detectors calibrate"
            )
    return _report(failures)


class _PlaceToAdd(click.Path):
    """A file that is there, or `callable:…` unchanged."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See the class."""
        from ray_app.detectors.callables.addition import is_callable

        return value if is_callable(str(value)) else super().convert(value, param, ctx)


_CALLABLE_OPTIONS = (
    click.option("--python", metavar="PATH", help="The Python that runs a callable: VENV/bin/python.  [default: this command's own]"),
    click.option("--folder", metavar="FOLDER", type=click.Path(exists=True, file_okay=False, path_type=Path),
                 help="Where its process runs and your module is.  [default: the current folder]"),
    click.option("--scores", type=click.Choice(["log-odds", "probability"]), help="What a callable gives per image.  [default: log-odds]"),
    click.option("--pictures", "images", type=click.Choice(["arrays", "pil"]), default="arrays", show_default=True,
                 help="What a callable is given: a list of uint8 arrays (height, width, 3), or of PIL images."),
    click.option("--limit-s", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
                 help="Seconds that it may take for one batch of images before its process is ended."),
    click.option("--licence", metavar="ID", help="Under which licence it is used, such as MIT; `own` for what is yours."),
)  # fmt: skip


def _callable_options(command: Callable[..., int]) -> Callable[..., int]:
    for option in reversed(_CALLABLE_OPTIONS):
        command = option(command)
    return command


@click.command("add")
@click.argument("places", nargs=-1, required=True, metavar="FILE|callable:MODULE:FUNCTION…", type=_PlaceToAdd(
    exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@click.option(
    "--as",
    "name",
    metavar="NAME",
    help="FILE is the weights of this detector or backbone; or the name of a callable's card.",
)
@_callable_options
@options.as_json
def add(places: tuple[Path | str, ...], name: str | None, as_json: bool, **given: Any) -> int:
    """Add weights that you have, or a Python function, as a detector.

    \b
    touchstone detectors add open_clip_pytorch_model.safetensors --as commonpool-clip-vit-l14
    touchstone detectors add callable:my_module:my_function --licence own
    """
    callables = [place for place in places if isinstance(place, str)]
    if callables:
        if len(callables) < len(places) or (name is not None and len(callables) > 1):
            raise click.UsageError("name callables apart from files, and one alone with --as")
        return _add_callables(callables, name, given, as_json=as_json)
    if name is None or len(places) > 1:
        raise click.UsageError(
            "say which weights one FILE is: touchstone detectors add FILE --as NAME"
        )
    from ray_app.detectors.added_weights import add_weights

    [file] = (place for place in places if isinstance(place, Path))
    added = add_weights(name, file)
    options.echo_document({**added._asdict(), "path": str(added.path)}, added.lines(file), as_json)
    return 0


def _add_callables(
    words: Sequence[str], name: str | None, given: dict[str, Any], *, as_json: bool
) -> int:
    from ray_app.detectors.callables.addition import CallableAddition, add_callable

    folder = given.pop("folder") or Path()
    for word in words:
        _log(f"{word}: starting it")
        added = add_callable(
            CallableAddition(word.partition(":")[2], folder=folder, name=name, **given)
        )
        options.echo_document(added.facts(), added.lines(), as_json)
    return 0


def _absolute(mirror: str | None) -> str | None:
    """A folder's whole path: the variable that names it is read elsewhere."""
    return mirror if mirror is None or "://" in mirror else str(Path(mirror).resolve())


def _report(failed: Sequence[DetectorError]) -> int:
    """All failures but the last on stderr; the last is raised, for `main` to tell in the same way."""
    for error in failed[:-1]:
        _log(f"touchstone: {error.message}" + (f"\n  → {error.hint}" if error.hint else ""))
    if failed:
        raise failed[-1]
    return 0


@click.command("list")
@options.as_json
def list_detectors(as_json: bool) -> int:
    """List shipped detectors and those that you added, with licence, size, speed, and whether their weights are here.

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
@options.as_json
def show_detector(name: str, as_json: bool) -> int:
    """Print the card of a detector, an identifier, or a describer as YAML.

    \b
    touchstone detectors show touchstone-tiny
    """
    from ray_app.detectors import load_card
    from ray_app.identification.cards import find_profile_card

    card = find_profile_card(name) or load_card(name)
    options.echo_document(card.model_dump(mode="json"), [options.shown(card).rstrip("\n")], as_json)
    return 0


@click.command("verify")
@click.argument("names", type=DETECTOR, nargs=-1, required=True, metavar="NAME|PATH…")
@click.option("--images", metavar="FOLDER", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Holds the images of the published scores, under any name.")  # fmt: skip
@mirror_option
@options.licence_option
@options.as_json
def verify(
    names: tuple[str, ...], images: Path | None, accepted: tuple[str, ...], as_json: bool
) -> int:
    """Check that a detector here is the published one: SHA-256, keys, shapes, and published scores of single images.

    \b
    touchstone detectors verify touchstone-tiny
    """
    from ray_app.detectors import licences, load_card
    from ray_app.detectors.card import base_name
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
                of = f"{check.part}: " if check.part not in ("", base_name(card.name)) else ""
                click.echo(f"{card.name}  {check.name:10}  {check.outcome:7}  {of}{check.told}")
        ok = all(check.outcome != "failed" for check in checks)
        results.append(
            {"name": card.name, "ok": ok, "checks": [check._asdict() for check in checks]}
        )
    if as_json:
        click.echo(json.dumps(results, indent=2, ensure_ascii=False))
    return ExitCode.DONE if all(result["ok"] for result in results) else ExitCode.DETECTOR


def _log(text: str) -> None:
    click.echo(text, err=True)
