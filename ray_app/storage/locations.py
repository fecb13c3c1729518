"""What a URL means: its scheme, its place inside the store, and what of it may be shown. Touches neither disk nor network.

A local place is an absolute path without a scheme, so that the same folder has one name whatever directory a command ran in.
"""

import os
import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ray_app.errors import ConfigError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_USER_INFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")
_BUCKET = re.compile(r"^([A-Za-z0-9._-]{1,255}|arn:[^/]+)$")
# Query keys that grant access: AWS and Google presigned URLs, Azure SAS, and the usual spellings of tokens.
_SECRET_KEY = re.compile(
    r"^(x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|sig|se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv"
    r"|.*token.*|.*secret.*|.*password.*|api[-_]?key|key-pair-id|policy)$",
    re.IGNORECASE,
)


def scheme_of(url: str) -> str:
    """The lower-case scheme; `file` for a plain path."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else "file"


def canonical(url: str) -> str:
    """The one spelling of a place: local ones as an absolute path, all others without a trailing slash, secrets kept."""
    if scheme_of(url) == "file":
        return os.path.abspath(local_path(url))
    if scheme_of(url) == "s3" and _USER_INFO.match(url):
        raise ConfigError(
            f"{strip_secrets(url)}: credentials do not belong in an s3:// URL",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if scheme_of(url) == "s3":
        bucket_and_key(url)
    return url if scheme_of(url) in ("http", "https") else url.rstrip("/")


def strip_secrets(url: str) -> str:
    """The URL without user:password@ and without query keys that grant access; a presigned URL keeps what names the object."""
    if not _SCHEME.match(url):
        return url
    url = _USER_INFO.sub(r"\1", url)
    if scheme_of(url) not in ("http", "https"):
        return url  # elsewhere a question mark is a letter of the name
    base, mark, query = url.partition("?")
    kept = [part for part in query.split("&") if part and not _SECRET_KEY.match(part.partition("=")[0])]
    return base + mark + "&".join(kept) if kept else base


def join(base: str, path: str) -> str:
    """`path` below `base`; a path that would leave it is refused, so that a name read from data can do no harm."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"not a path inside the store: {path!r}")
    return f"{base.rstrip('/')}/{path}" if path else base


def local_path(url: str) -> str:
    """The path that a local URL names; percent signs of file:// are decoded only where no file has them in its name."""
    if not url.startswith("file://"):
        return url
    path = url.removeprefix("file://")
    if "%" in path and not os.path.lexists(path):
        return os.fsdecode(unquote_to_bytes(path))
    return path


def local_uri(path: str) -> str:
    """The uri of a local file: its path, or a percent-encoded file:// where the name is not Unicode and no table could hold it."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def bucket_and_key(url: str) -> tuple[str, str]:
    """The two parts of s3://bucket/key; the key verbatim, with whatever slashes, question marks or hashes it has. Raises ConfigError."""
    bucket, _, key = url.partition("://")[2].partition("/")
    if not _BUCKET.match(bucket):
        raise ConfigError(
            f"{strip_secrets(url)}: '{bucket}' is no bucket's name", hint="s3://BUCKET/PREFIX; a pattern may stand after the bucket"
        )
    return bucket, key
