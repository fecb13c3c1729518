"""Cards in a bucket or on a server, where a training on a cluster leaves them. Knows URLs; knows no network and opens no weights."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ray_app.config.loading import parse_mapping
from ray_app.errors import ConfigError
from ray_app.storage import Store, strip_secrets


def read_remote_card(url: str) -> tuple[dict[str, Any], str]:
    """What the card at a URL says, and the URL without secrets. Weights beside it are named by their own URLs, which every machine finds.

    Raises ConfigError where no card is there, StorageError where the place is out of reach.
    """
    folder, _, name = url.rpartition("/")
    where = strip_secrets(url)
    try:
        data = parse_mapping(Store.open(folder).read(name), where)
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such card") from None
    described = data.get("backbone")
    beside = {"backbone": _reachable(described, folder)} if isinstance(described, Mapping) else {}
    return _reachable(data, folder) | beside, where


def _reachable(part: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A part of a card whose weights are named by URL; what is no card is left for the check of its keys to say so."""
    weights = part.get("weights")
    if not isinstance(weights, Mapping) or urlsplit(str(weights.get("uri"))).scheme:
        return dict(part)
    return {**part, "weights": {**weights, "uri": f"{folder}/{weights.get('uri')}"}}
