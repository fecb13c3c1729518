"""Write cards, the YAML files that describe models: `write_card`.

The models are detectors, ensembles of detectors, identifiers, and describers. An identifier names
the generator of an image. A describer guesses its prompt.
"""

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
    """Write a card to a file atomically, so readers never get a partly written file.

    Args:
        path: A path or fsspec URL.
        card: The card, or its keys and values.
        comment: Comment lines before the card.
        is_compact: Whether innermost lists and sections are each written on one line.
    """
    folder, name = posixpath.split(str(path))
    text = comment + card_text(card, is_compact=is_compact)
    Store.open(folder or ".").write(name, text.encode())


def card_text(card: Card, *, is_compact: bool = False) -> str:
    """Return a card as YAML, without keys that have their default value.

    Args:
        card: The card, or its keys and values.
        is_compact: Whether innermost lists and sections are each written on one line.
    """
    data = (
        card.model_dump(mode="json", exclude_defaults=True)
        if isinstance(card, BaseModel)
        else dict(card)
    )
    text: str = yaml.safe_dump(
        data,
        default_flow_style=None if is_compact else False,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDTH,
    )
    return text


def describe_backbone(backbone: Backbone) -> str | dict[str, Any]:
    """Return a backbone as the value of the key `backbone` in a card: a name or a mapping.

    Args:
        backbone: The backbone, a part of a network that several detectors share.

    Returns:
        The name, if a backbone with this name and equal values is shipped with Touchstone.
            Otherwise the keys and values that differ from the defaults.
    """
    shipped = named_configs("backbones").get(backbone.name)
    # The comparison ignores the folders that the two were read from.
    if (
        shipped is not None
        and Backbone.model_validate(read_mapping(shipped)).model_dump() == backbone.model_dump()
    ):
        return str(backbone.name)
    return backbone.model_dump(mode="json", exclude_defaults=True)
