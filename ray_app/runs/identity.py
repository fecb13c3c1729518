"""What must be equal for two commands to share a run directory, and what differs when they may not.

Only what changes a score or a verdict belongs here; workers, retries and cluster do not.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

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
