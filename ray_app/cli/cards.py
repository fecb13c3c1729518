"""Commands on what is shipped: detector cards and configs."""

import json
import shutil
from typing import TYPE_CHECKING

import click

from ray_app.cli.fitting import fit
from ray_app.cli.options import as_json, configured, overrides, shown
from ray_app.cli.weights import fetch, verify

if TYPE_CHECKING:
    from ray_app.detectors import DetectorCard
    from ray_app.profiling.cards import DescriberCard, IdentifierCard
    from ray_app.reports.zoo_table import Entry


@click.group()
def detectors() -> None:
    """The detectors: list them, show a card, fetch and verify weights.

    \b
    touchstone detectors list
    touchstone detectors show corvi2023
    touchstone detectors fetch community-forensics-vits384
    touchstone detectors verify community-forensics-vits384
    """


for command in (fetch, verify, fit):
    detectors.add_command(command)


@detectors.command("list")
@as_json
def list_detectors(as_json: bool) -> int:
    """List the shipped detectors: family, licence, size, input, speed, masks, and whether their weights are here.

    \b
    Speed, by billions of multiply-adds per image (per megapixel where the
    input is native): fast < 5, medium < 50, slow < 500, very slow from there on.

    \b
    touchstone detectors list
    touchstone detectors list --json | jq -r '.[] | select(.terms == "permissive") | .name'
    """
    from ray_app.detectors import list_cards
    from ray_app.reports.zoo_table import zoo_table

    entries = [_entry(card) for card in list_cards()]
    if as_json:
        click.echo(json.dumps([entry.facts() for entry in entries], indent=2, ensure_ascii=False))
    else:
        click.echo(zoo_table(entries, _columns()))
    return 0


def _entry(card: "DetectorCard") -> "Entry":
    from ray_app.detectors.cards import variants_of
    from ray_app.detectors.licences import is_accepted
    from ray_app.detectors.weights import located, parts_of
    from ray_app.reports.zoo_table import Entry

    here = all(located(part) for part in parts_of(card))
    return Entry(card, is_accepted(card), here, tuple(map(_entry, variants_of(card))))


@detectors.command("show")
@click.argument("name", metavar="NAME|PATH")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the card as YAML, as a card of your own could begin.")
@as_json
def show_detector(name: str, as_yaml: bool, as_json: bool) -> int:
    """Show a detector's card as a page: licence, network, preprocessing, weights, what its output means, published figures.

    The cards of a profile, identifiers and describers, are shown likewise.

    \b
    touchstone detectors show touchstone-tiny
    touchstone detectors show community-forensics-vits384 --yaml > mine.yaml
    """
    from ray_app.detectors import load_card
    from ray_app.detectors.licences import is_accepted
    from ray_app.detectors.weights import located, parts_of
    from ray_app.profiling.cards import profile_card
    from ray_app.reports.card_page import Here, card_page

    if (profile := profile_card(name)) is not None:
        _show_profile_card(profile, as_yaml=as_yaml, as_json=as_json)
        return 0
    card = load_card(name)
    if as_json:
        click.echo(json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False))
    elif as_yaml:
        click.echo(shown(card), nl=False)
    else:
        here = Here(is_accepted(card), {part.weights.uri: located(part) for part in parts_of(card)})
        click.echo(card_page(card, here, min(_columns(), _WIDEST_PAGE)))
    return 0


def _show_profile_card(card: "IdentifierCard | DescriberCard", *, as_yaml: bool, as_json: bool) -> None:
    from ray_app.detectors.weights import located
    from ray_app.reports.profile_page import profile_page

    if as_json:
        click.echo(json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False))
    elif as_yaml:
        click.echo(shown(card), nl=False)
    else:
        click.echo(profile_page(card, {part.weights.uri: located(part) for part in card.parts}, min(_columns(), _WIDEST_PAGE)))


_WIDEST_PAGE = 120


def _columns() -> int:
    return shutil.get_terminal_size((_WIDEST_PAGE, 24)).columns


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
