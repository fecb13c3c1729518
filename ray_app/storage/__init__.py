"""Reading and writing wherever fsspec reaches: stores, fetching, listing, retries, leases. Knows bytes and names, not images or Ray."""

from ray_app.storage.dividing import KeyRange, list_divisions, list_range
from ray_app.storage.errors import translate
from ray_app.storage.fetching import Fetcher
from ray_app.storage.globs import matcher, matcher_below
from ray_app.storage.lease import UNGUARDED, Lease
from ray_app.storage.listing import LinkedFolders, ObjectInfo, base_of, is_pattern, list_objects, noting_linked_folders
from ray_app.storage.locations import canonical, local_path, strip_secrets
from ray_app.storage.retrying import Gate, Retrier, RetryPolicy
from ray_app.storage.store import Store
from ray_app.storage.web import Guard

__all__ = [
    "Store",
    "Lease",
    "UNGUARDED",
    "Fetcher",
    "Guard",
    "RetryPolicy",
    "Retrier",
    "Gate",
    "LinkedFolders",
    "ObjectInfo",
    "list_objects",
    "noting_linked_folders",
    "KeyRange",
    "list_divisions",
    "list_range",
    "base_of",
    "is_pattern",
    "matcher",
    "matcher_below",
    "canonical",
    "local_path",
    "strip_secrets",
    "translate",
]
