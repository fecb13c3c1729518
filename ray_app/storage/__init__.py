"""Reading and writing wherever fsspec reaches: stores, fetching, listing, retries, leases. Knows bytes and names, not images or Ray."""

from ray_app.storage.dividing import KeyRange, list_divisions, list_range
from ray_app.storage.errors import translate
from ray_app.storage.fetching import Fetcher
from ray_app.storage.globs import matcher, matcher_below
from ray_app.storage.lease import UNGUARDED, Lease
from ray_app.storage.listing import ObjectInfo, base_of, list_objects
from ray_app.storage.locations import canonical, local_path, strip_secrets
from ray_app.storage.retrying import Gate, Retrier, RetryPolicy
from ray_app.storage.store import Store

__all__ = [
    "Store",
    "Lease",
    "UNGUARDED",
    "Fetcher",
    "RetryPolicy",
    "Retrier",
    "Gate",
    "ObjectInfo",
    "list_objects",
    "KeyRange",
    "list_divisions",
    "list_range",
    "base_of",
    "matcher",
    "matcher_below",
    "canonical",
    "local_path",
    "strip_secrets",
    "translate",
]
