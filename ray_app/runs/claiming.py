"""Whose a directory is that a command fills: a JSON file in it names all that the next command on it must match. Knows no command."""

import json
from collections.abc import Mapping
from typing import Any

from ray_app.errors import ConfigError, IdentityError
from ray_app.runs.identity import differences
from ray_app.storage import Store

# The files by which a directory is known, and what that is.
KINDS = {
    "run.json": "a scored run",
    "pack.json": "packed shards or a filtered archive",
    "index.json": "an index",
    "collect.json": "a collection",
    "generate.json": "generated images",
    "train.json": "a training",
}


def refuse_others(store: Store, name: str) -> None:
    """Raises ConfigError for a directory of another kind than the one that is known by the file `name`."""
    for other, what in KINDS.items():
        if other != name and store.exists(other):
            raise ConfigError(f"{store.url} is another command's directory: {what} ({other})", hint="give another --out")


def claim_directory(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> None:
    """Make a directory this command's, or check that it already is. Raises as `is_claimed`."""
    if not is_claimed(store, name, identity, same=same):
        store.write(name, json.dumps(identity, indent=2, ensure_ascii=False).encode())


def claimed_by(store: Store, name: str) -> dict[str, Any] | None:
    """The identity of the command that a directory is of, by the file `name`; None where there is none."""
    try:
        return dict(json.loads(store.read(name)))
    except FileNotFoundError:
        return None


def is_claimed(store: Store, name: str, identity: Mapping[str, Any], *, same: str) -> bool:
    """Whether a directory is this command's already; False where it is anybody's. Writes nothing.

    `name`: the file that holds the identity, one of KINDS. `same`: what would have to be the same, in words. Raises ConfigError for
    another kind, IdentityError with the differences.
    """
    theirs = claimed_by(store, name)
    if theirs is None:
        refuse_others(store, name)
        return False
    differing = [line.replace(", the run ", ", the directory ") for line in differences(identity, theirs)]
    if differing:
        raise IdentityError(
            f"{store.url} was made by another command:\n  " + "\n  ".join(differing), hint=f"give another --out, or the same {same}"
        )
    return True
