"""Handle URLs and paths: schemes, canonical spelling, secrets, shell patterns, and versions.

Only `local_path` accesses the disk, and no function uses the network. A local location is an
absolute path without a scheme, so that a folder has one name for any working directory.

Patterns: `*` and `?` match inside one folder, `[ab]` and `[!ab]` match one character, and `**` as a
whole part of a path matches any number of folders, including none. A pattern without a slash is
compared with the name of a file in any folder. A pattern with a slash is compared with the whole
path. Upper and lower case differ: `*.jpg` does not match `A.JPG`, because in a bucket these are two
names.
"""

import glob
import ipaddress
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

from ray_app.errors import ConfigError

_FILE_URL = re.compile(
    r"^file:(?:(?://(?P<host>[^/]*))?(?P<path>/.*)?|(?P<relative>[^/].*))$",
    re.IGNORECASE | re.DOTALL,
)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_HADOOP_S3 = ("s3a", "s3n")
_USER_INFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")
# The part before the @ is the name of a container, not a secret.
_CONTAINER = re.compile(r"^abfss?://[^/?#:@]+@")
# The name of a bucket, or the ARN of an access point, which may have slashes, and the key. The forms
# of an ARN are those of botocore and s3fs.
_BUCKET_AND_KEY = re.compile(
    r"(?P<bucket>[A-Za-z0-9._-]{1,255}"
    r"|arn:aws[a-z-]*:(?:s3|s3-object-lambda):[a-z0-9-]*:[0-9]{12}:accesspoint[:/][A-Za-z0-9.-]{1,63}"
    r"|arn:aws[a-z-]*:s3-outposts:[a-z0-9-]+:[0-9]{12}:outpost[:/][A-Za-z0-9-]{1,63}"
    r"[:/](?:bucket|accesspoint)[:/][A-Za-z0-9-]{1,63})"
    r"(?:/(?P<key>.*))?",
    re.DOTALL,
)
# Query keys that grant access: signatures, and the usual spellings of tokens and passwords. A token
# that names a page of results grants nothing.
_SECRET_KEY = re.compile(
    r"signature|sig|x-(amz|goog)-signature|.*secret.*|.*password.*|api[-_]?key"
    r"|(?!(next|page|next[-_]?page|continuation)[-_]?token$)(.*token|(.*[^a-z])?token[^a-z].*)"
)
# The keys that a signature signs, by the key of the signature: presigned URLs of AWS and Google,
# CloudFront, and Azure SAS. Without a signature they grant nothing, and may select the image.
_SIGNED_KEYS = {
    "x-amz-signature": re.compile(r"x-amz-.*"),
    "x-goog-signature": re.compile(r"x-goog-.*"),
    "signature": re.compile(r"awsaccesskeyid|googleaccessid|expires|policy|key-pair-id"),
    "sig": re.compile(r"se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv"),
}

_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
_MAGIC = re.compile(r"[*?\[]")

_CONTENT = ("ETag", "etag", "blob_id")
_TIME = ("mtime", "last_modified", "LastModified", "Last-Modified", "updated", "created")


def is_loopback(address: str) -> bool:
    """Return whether a text is a loopback IP address. An IPv4 address may be written as IPv6."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def get_scheme(url: str) -> str:
    """Return the scheme of a URL in lower case, or `file` for a path without a scheme.

    It is `s3` for the schemes that Hadoop and Spark use for S3.
    """
    match = _SCHEME.match(url) if "://" in url else None
    scheme = match.group(1).lower() if match else "file"
    return "s3" if scheme in _HADOOP_S3 else scheme


def canonicalize(url: str) -> str:
    """Return the canonical spelling of a URL, with its secrets.

    A local location becomes an absolute path. Web URLs are returned unchanged. Other URLs lose
    their trailing slashes. Raises ConfigError if an s3:// URL has credentials or no valid bucket,
    or a file:// URL names another host.
    """
    if get_scheme(url) == "file":
        return os.path.abspath(local_path(url))
    if get_scheme(url) == "s3" and _USER_INFO.match(url):
        raise ConfigError(
            f"{strip_secrets(url)}: credentials do not belong in an s3:// URL",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if get_scheme(url) == "s3":
        bucket, key = split_bucket(url)
        return f"s3://{bucket}/{key}".rstrip("/")
    return url if get_scheme(url) in ("http", "https") else url.rstrip("/")


def split_kind(source: str) -> tuple[str | None, str]:
    """Split a source KIND::URL into KIND and URL. KIND is None if the source is a URL alone.

    KIND states the format of a source whose name does not show it, as in
    `tar::https://host/download`.
    """
    kind, mark, url = source.partition("::")
    return (kind, url) if mark and "/" not in kind else (None, source)


def strip_secrets(url: str) -> str:
    """Return a URL without user:password@ and without query keys that grant access.

    A presigned URL keeps the part that names the object. KIND:: before the URL is also kept. Only
    http and https URLs have a query; in other schemes, a question mark is part of the name.
    """
    kind, address = split_kind(url)
    if kind is not None:
        return f"{kind}::{strip_secrets(address)}"
    if not _SCHEME.match(url):
        return url
    if not _CONTAINER.match(url):
        url = _USER_INFO.sub(r"\1", url)
    if get_scheme(url) not in ("http", "https"):
        return url  # In other schemes a question mark is part of the name.
    base, mark, query = url.partition("?")
    parts = [part for part in query.split("&") if part]
    keys = [unquote(part.partition("=")[0]).lower() for part in parts]
    secret_keys = [_SECRET_KEY, *(_SIGNED_KEYS[key] for key in _SIGNED_KEYS.keys() & keys)]
    public_parts = [
        part
        for part, key in zip(parts, keys, strict=True)
        if not any(secret_key.fullmatch(key) for secret_key in secret_keys)
    ]
    if len(public_parts) == len(parts):
        return url
    return base + mark + "&".join(public_parts) if public_parts else base


def strip_all_secrets(settings: Any) -> Any:
    """Return nested JSON settings without the secrets in their URLs."""
    if isinstance(settings, Mapping):
        return {key: strip_all_secrets(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [strip_all_secrets(value) for value in settings]
    return strip_secrets(settings) if isinstance(settings, str) else settings


def local_path(url: str, folder: str = "") -> str:
    """Return the local path that a file:// URL names. Any other text is returned unchanged.

    `file:///a`, `file://localhost/a`, and `file:/a` name `/a` (RFC 8089). `file:a` names `a` in
    `folder`, by default the working directory. Percent-encoding is decoded only if there is no file
    with the literal name. Raises ConfigError if the URL names another host.
    """
    match = _FILE_URL.match(url) if url[:5].lower() == "file:" else None
    if match is None:
        return url
    host, path = match["host"] or "localhost", match["path"] or match["relative"]
    if path is None or host.lower() != "localhost":
        problem = (
            "it has no path"
            if host.lower() == "localhost"
            else f"the host is '{host}', but only files on this machine can be read"
        )
        raise ConfigError(
            f"{url}: {problem}", hint="write the path alone, or file:///PATH with three slashes"
        )
    if "%" in path and not os.path.lexists(os.path.join(folder, path)):
        path = os.fsdecode(unquote_to_bytes(path))
    return os.path.join(folder, path)


def local_uri(path: str) -> str:
    """Return the uri of a local file: its path, or a percent-encoded file:// URL.

    The result is a URL if the path is not valid Unicode, because a table could not hold such a
    path.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def split_bucket(url: str) -> tuple[str, str]:
    """Split s3://bucket/key into bucket and key. The bucket may be the ARN of an access point.

    The key is not decoded, and keeps its slashes, question marks, and hashes. Raises ConfigError if
    the bucket name is invalid.
    """
    address = url.partition("://")[2]
    match = _BUCKET_AND_KEY.fullmatch(address)
    if match is None:
        raise ConfigError(
            f"{strip_secrets(url)}: '{address.partition('/')[0]}' is not the name of a bucket",
            hint="write s3://BUCKET/PREFIX; only the part after the bucket may have a pattern",
        )
    return match["bucket"], match["key"] or ""


def has_magic(text: str) -> bool:
    """Return whether a text has characters of a shell pattern: `*`, `?`, or `[`."""
    return _MAGIC.search(text) is not None


def make_folder_pattern(path: str) -> str:
    """Return the pattern for the files in all folders that have the same name as this folder.

    For `/data/lost+found`, it is `**/lost+found/**`. Use it to exclude such folders.
    """
    return f"**/{glob.escape(posixpath.basename(path))}/**"


def has_braces(text: str) -> bool:
    """Return whether a text has braces that a shell or webdataset would expand.

    Examples are `{a,b}` and `{00..99}`.
    """
    return _BRACES.search(text) is not None


def split_at_magic(path: str) -> tuple[str, str]:
    """Split a path before its first part with pattern characters, into a folder and a pattern.

    For `/photos/20*/a.jpg`, the result is `("/photos", "20*/a.jpg")`.
    """
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def make_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tests whether a relative path matches any of the patterns."""
    path_patterns = [
        re.compile(_translate_pattern(pattern)) for pattern in patterns if "/" in pattern
    ]
    name_patterns = [
        re.compile(_translate_pattern(pattern)) for pattern in patterns if "/" not in pattern
    ]

    def matches(path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(pattern.fullmatch(name) for pattern in name_patterns) or any(
            pattern.fullmatch(path) for pattern in path_patterns
        )

    return matches


def make_folder_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tests whether a path below a folder might match any of the patterns.

    Its argument is the relative path of the folder. Use it to skip folders that cannot have a
    match.
    """
    tests = [[None if part == "**" else re.compile(_translate_pattern(part)) for part in pattern.removeprefix("/").split("/")]
             for pattern in patterns if "/" in pattern]  # fmt: skip
    has_names = any("/" not in pattern for pattern in patterns)
    return lambda folder: (
        has_names or any(_may_match_below(test, folder.split("/")) for test in tests)
    )


def make_subtree_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that tests whether one of the patterns matches all paths below a folder.

    Its argument is the relative path of the folder. Use it to skip folders that are excluded as a
    whole. Examples of patterns that match all paths below a folder are `photos/**` and `*`.
    """
    folders = []
    for pattern in patterns:
        parts = pattern.removeprefix("/").split("/")
        folder_parts = (
            parts[:-1] if parts[-1] == "**" else parts[:-2] if parts[-2:] == ["**", "*"] else None
        )
        if "/" not in pattern and not pattern.strip("*"):
            folder_parts = []
        if folder_parts is not None:
            folders.append(
                re.compile(_translate_pattern("/".join(folder_parts))) if folder_parts else None
            )

    def matches_all_below(folder: str) -> bool:
        parts = folder.split("/")
        ancestors = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(test is None or any(map(test.fullmatch, ancestors)) for test in folders)

    return matches_all_below


def _may_match_below(test: Sequence[re.Pattern[str] | None], parts: Sequence[str]) -> bool:
    for index, part in enumerate(parts):
        if index == len(test):
            return False
        part_test = test[index]
        if part_test is None:
            return True
        if part_test.fullmatch(part) is None:
            return False
    return len(test) > len(parts)


def make_full_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tests whether a relative path matches one pattern.

    The pattern is always compared with the whole path, as in a shell, even if it has no slash.
    """
    compiled = re.compile(_translate_pattern(pattern))
    return lambda path: compiled.fullmatch(path) is not None


def _translate_pattern(pattern: str) -> str:
    """Translate a pattern into a regular expression with fsspec's copy of `glob.translate`.

    Python has `glob.translate` from version 3.13. Within a part with other characters `**` is `*`,
    and no character class matches a slash.
    """
    from fsspec.utils import glob_translate  # Imported here, since only patterns need it.

    parts = (
        part if part == "**" else re.sub(r"\*+", "*", part)
        for part in pattern.removeprefix("/").split("/")
    )
    expression: str = glob_translate("/".join(parts))
    return expression.replace("[^", "[^/")


def get_version(info: Mapping[str, Any]) -> str:
    """Return the version of a file from fsspec's `info` or from HTTP headers.

    The version is the ETag without quotes, or the git blob id of a file on the Hugging Face Hub.
    Otherwise it is the size and the mtime in ns. If these are unknown, too, it is "".
    """
    for name in _CONTENT:
        if info.get(name):
            return str(info[name]).strip('"')
    for name in _TIME:
        if info.get(name) is not None and info.get("size") is not None:
            return f"{info['size']}-{_nanoseconds(info[name])}"
    return ""


def _nanoseconds(when: Any) -> int:
    if isinstance(when, str):
        try:
            when = parsedate_to_datetime(when)
        except ValueError:
            when = datetime.fromisoformat(when)
    seconds = when.timestamp() if isinstance(when, datetime) else float(when)
    return round(seconds * 1_000_000) * 1000  # Stores state at most microseconds.
