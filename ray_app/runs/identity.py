"""What two commands must share to use one directory: a run's identity (`fingerprint`, `differences`), and the JSON file by which any
command's directory is claimed (`claim_directory`, `is_claimed`).

Only what changes a score or a verdict belongs here; workers, retries and cluster do not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Store

Identity = Mapping[str, Any]


ADDED = {"output": 2, "valid_range": 2, "masks": 2}  # facts of a detector, and the schema since which runs note them


def as_known_to(schema: int, identity: Identity) -> dict[str, Any]:
    """An identity without what a run of an older schema could not note."""
    detectors = {
        name: {key: value for key, value in facts.items() if ADDED.get(key, 1) <= schema} for name, facts in identity["detectors"].items()
    }
    return {**identity, "detectors": detectors}


def fingerprint(identity: Identity) -> str:
    """SHA-256 of the canonical JSON of an identity; also names a served ensemble."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(ours: Identity, theirs: Identity) -> list[str]:
    """One line per key that differs, as `key: this command X, the run Y`; empty when they match."""
    return [f"{key}: this command {left}, the run {right}" for key, left, right in differing_keys(ours, theirs)]


def differing_keys(ours: Identity, theirs: Identity) -> list[tuple[str, str, str]]:
    """Each dotted key that differs, with either's value as JSON or `has none`; empty when they match."""
    left, right = dict(_leaves(ours)), dict(_leaves(theirs))
    keys = [*left, *(key for key in right if key not in left)]
    return [(".".join(key), _show(left, key), _show(right, key)) for key in keys if left.get(key) != right.get(key)]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value with its keys, which stay apart: a name may have a dot in it."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _show(leaves: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> str:
    return json.dumps(leaves[key]) if key in leaves else "has none"


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
