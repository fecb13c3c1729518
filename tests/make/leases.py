"""The newest lease of a directory, as a test reads it."""

import json

from ray_app.storage import Store


def read_lease(store: Store) -> dict:
    return json.loads(store.read(f"lease/{store.names('lease')[-1]}"))


def is_released(store: Store) -> bool:
    """Whether the last command gave the directory back before its process ended."""
    return not store.names("lease") or read_lease(store)["released"]
