"""Write the cards of detectors, ensembles, identifiers, and describers: `write_card`."""

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ray_app.config import named_configs, read_mapping
from ray_app.detectors.card import Backbone
from ray_app.storage import Store

_WIDTH = 140
Card = BaseModel | Mapping[str, Any]


def write_card(
    path: str | Path, card: Card, *, comment: str = "", is_compact: bool = False
) -> None:
    """Write a card; a reader sees the old or the new file, never a part.

    Args:
        path: A path or fsspec URL.
        card: The card, or the keys and values of one.
        comment: Lines in front of the card.
        is_compact: Whether a list or section without further ones is one row.
    """
    folder, name = posixpath.split(str(path))
    text = comment + card_text(card, is_compact=is_compact)
    Store.open(folder or ".").write(name, text.encode())


def card_text(card: Card, *, is_compact: bool = False) -> str:
    """Return a card as YAML: keys in the order of the card, without those that have their default."""
    facts = (
        card.model_dump(mode="json", exclude_defaults=True)
        if isinstance(card, BaseModel)
        else dict(card)
    )
    text: str = yaml.safe_dump(
        facts,
        default_flow_style=None if is_compact else False,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDTH,
    )
    return text


def describe_backbone(backbone: Backbone) -> str | dict[str, Any]:
    """Return what a card says of its backbone: the name of a shipped one, else all its keys and
    values.
    """
    shipped = named_configs("backbones").get(backbone.name)
    # Equal but for the folders that the two were read from.
    if (
        shipped is not None
        and Backbone.model_validate(read_mapping(shipped)).model_dump() == backbone.model_dump()
    ):
        return str(backbone.name)
    return backbone.model_dump(mode="json", exclude_defaults=True)
