"""Where a Delta table lies, for the deltalake library: `table_place` gives its own spelling of a URL, and the options by which it finds
the same store, with the same rights, as `Store` does.

deltalake reaches stores by a client of its own (Rust's object_store) that reads fewer variables than botocore and fsspec: it gets what
those found. Commits of two writers at once are kept apart by conditional writes, and `creates_once` tries whether a store has them.
"""

import os
import secrets
from importlib.util import find_spec

from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, urls
from ray_app.storage.store import Store

_KINDS = "keep the table on a disk or on s3://"
PROBE_FOLDER = "_touchstone"  # Delta passes over folders whose name begins so
_DEFAULT_REGION = "us-east-1"


def table_place(url: str) -> tuple[str, dict[str, str]]:
    """deltalake's URL and options of a place. Raises ConfigError where its package is missing, or for a place of a kind not tried."""
    if find_spec("deltalake") is None:
        raise ConfigError("--table: deltalake is not installed", hint="pip install 'touchstone-forensics[delta]'")
    place, scheme = urls.canonical(url), urls.scheme_of(url)
    if scheme == "file":
        return place, {}
    if scheme != "s3":
        raise ConfigError(f"--table {urls.strip_secrets(url)}: {scheme}:// was never tried for tables", hint=_KINDS)
    return place, s3_options()


def s3_options() -> dict[str, str]:
    """Endpoint, region and rights as `storage.s3` has them: those of botocore's own chain, which knows profiles, SSO and instances."""
    import botocore.session

    session = botocore.session.get_session()
    region = session.get_config_variable("region") or os.environ.get("AWS_REGION") or _DEFAULT_REGION
    options = {"AWS_REGION": str(region), "AWS_CONDITIONAL_PUT": "etag"}
    endpoint = errors.endpoint_url()
    if endpoint:
        options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}
    if os.environ.get("FSSPEC_S3_ANON", "").lower() == "true":
        return options | {"AWS_SKIP_SIGNATURE": "true"}
    found = session.get_credentials()
    if found is None:
        return options
    keys = found.get_frozen_credentials()
    options |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    return options | ({"AWS_SESSION_TOKEN": keys.token} if keys.token else {})


def creates_once(store: Store) -> bool:
    """Whether the store refuses to create a file that is there: three small requests, of which nothing is left. Raises StorageError."""
    path = f"{PROBE_FOLDER}/probe-{secrets.token_hex(8)}"
    try:
        return store.create(path, b"first") and not store.create(path, b"second")
    except StorageError as error:
        if not errors.refuses_condition(error.__cause__):
            raise
        return False
    finally:
        store.delete(path)
