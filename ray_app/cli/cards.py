"""Commands on what is shipped: detector cards and configs."""

import json
from typing import TYPE_CHECKING

import click

from ray_app.cli.options import as_json, configured, overrides, shown

if TYPE_CHECKING:
    from ray_app.detectors import DetectorCard


@click.group()
def detectors() -> None:
    """The detectors: list them, show a card, fetch weights."""


@detectors.command("list")
@as_json
def list_detectors(as_json: bool) -> int:
    """List the shipped detectors, their licences and whether their weights are here.

    \b
    touchstone detectors list
    """
    from ray_app.detectors import list_cards

    cards = list_cards()
    if as_json:
        click.echo(json.dumps([{"name": c.name, "title": c.title, "family": c.family, "licence": c.licence,
                                "weights": _weights(c)} for c in cards], indent=2))  # fmt: skip
        return 0
    width = max(len(card.name) for card in cards)
    for card in cards:
        click.echo(f"{card.name:{width}}  {_weights(card):7}  {card.licence:18}  {card.title}")
    return 0


def _weights(card: "DetectorCard") -> str:
    from ray_app.detectors import resolve_weights
    from ray_app.errors import DetectorError

    try:
        resolve_weights(card, offline=True)
    except DetectorError:
        return "missing"
    return "here"


@detectors.command("show")
@click.argument("name", metavar="NAME|PATH")
@as_json
def show_detector(name: str, as_json: bool) -> int:
    """Show a detector's card: architecture, preprocessing, weights, licence, figures.

    \b
    touchstone detectors show touchstone-tiny
    """
    from ray_app.detectors import load_card

    card = load_card(name)
    click.echo(json.dumps(card.model_dump(mode="json"), indent=2) if as_json else shown(card))
    return 0


@detectors.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME|PATH…")
def fetch_weights(names: tuple[str, ...]) -> int:
    """Fetch weights into the cache before a run, and check their SHA-256.

    \b
    touchstone detectors fetch community-forensics-vits384
    """
    from ray_app.detectors import load_card, resolve_weights

    for name in names:
        click.echo(resolve_weights(load_card(name)))
    return 0


@click.group()
def config() -> None:
    """The settings of a scoring run."""


@config.command("show")
@click.argument("file", required=False, metavar="[NAME|FILE]")
@overrides
@as_json
def show_config(file: str | None, assignments: tuple[str, ...], as_json: bool) -> int:
    """Print every setting of a scoring run with its value, as a config file would hold it.

    \b
    touchstone config show overnight --set batch_slots=32
    """
    from ray_app.scoring import ScoreConfig

    settings = configured("score", file, ScoreConfig, {}, assignments)
    click.echo(json.dumps(settings.model_dump(mode="json"), indent=2) if as_json else shown(settings), nl=as_json)
    return 0
