"""URLs and paths: schemes, canonical spelling, secrets, shell patterns (`matcher`, `full_matcher`),
versions (`version_of`). No disk, no network.

A local place is an absolute path without a scheme, so that the same folder has one name whatever
directory a command ran in.

Patterns: `*` and `?` stay inside one folder, `[ab]` and `[!ab]` are one character, `**` as a whole
part is any number of folders (also none). A pattern without a slash is compared with the file's own
name, in whichever folder; one with a slash with the whole path. Letters count as they are: `*.jpg`
is not `A.JPG`, because in a bucket these are two names.
"""

import glob
import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ray_app.errors import ConfigError

_FILE_URL = re.compile(r"^file:(?://(?P<host>[^/]*))?(?P<path>/.*)?$", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_USER_INFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")
# what stands there is no secret, but part of the place
_CONTAINER = re.compile(r"^abfss?://[^/?#:@]+@")
_BUCKET = re.compile(r"^([A-Za-z0-9._-]{1,255}|arn:[^/]+)$")
# Query keys that grant access: AWS and Google presigned URLs, Azure SAS, and the usual spellings of
# tokens.
_SECRET_KEY = re.compile(
    r"^(x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|sig|se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv"
    r"|.*token.*|.*secret.*|.*password.*|api[-_]?key|key-pair-id|policy)$",
    re.IGNORECASE,
)

_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
_MAGIC = re.compile(r"[*?\[]")

_CONTENT = ("ETag", "etag", "blob_id")
_TIME = ("mtime", "last_modified", "LastModified", "Last-Modified", "updated", "created")


def scheme_of(url: str) -> str:
    """The lower-case scheme; `file` for a plain path."""
    match = _SCHEME.match(url) if "://" in url else None
    return match.group(1).lower() if match else "file"


def canonical(url: str) -> str:
    """The one spelling of a place: local ones as an absolute path, all others without a trailing
    slash, secrets kept.
    """
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


def split_kind(source: str) -> tuple[str | None, str]:
    """Return the KIND of a source KIND::URL, None if it has none, and the URL."""
    kind, mark, url = source.partition("::")
    return (kind, url) if mark and "/" not in kind else (None, source)


def strip_secrets(url: str) -> str:
    """The URL without user:password@ and without query keys that grant access; a presigned URL
    keeps what names the object. A source may have its KIND:: before the URL.
    """
    kind, address = split_kind(url)
    if kind is not None:
        return f"{kind}::{strip_secrets(address)}"
    if not _SCHEME.match(url):
        return url
    if not _CONTAINER.match(url):
        url = _USER_INFO.sub(r"\1", url)
    if scheme_of(url) not in ("http", "https"):
        return url  # elsewhere a question mark is a letter of the name
    base, mark, query = url.partition("?")
    kept = [
        part for part in query.split("&") if part and not _SECRET_KEY.match(part.partition("=")[0])
    ]
    return base + mark + "&".join(kept) if kept else base


def strip_all_secrets(settings: Any) -> Any:
    """Return nested settings as JSON has them, with every URL stripped of its secrets."""
    if isinstance(settings, Mapping):
        return {key: strip_all_secrets(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [strip_all_secrets(value) for value in settings]
    return strip_secrets(settings) if isinstance(settings, str) else settings


def local_path(url: str) -> str:
    """Return the path that a local URL names.

    `file:///a`, `file://localhost/a`, and `file:/a` name `/a` (RFC 8089). Percent signs are decoded
    only if no file has them in its name.

    Raises:
        ConfigError: The URL names another host.
    """
    match = _FILE_URL.match(url) if url[:5].lower() == "file:" else None
    if match is None:
        return url
    host, path = match["host"] or "localhost", match["path"]
    if path is None or host.lower() != "localhost":
        wrong = (
            "it has no path"
            if host.lower() == "localhost"
            else f"the host is '{host}', and only files of this machine are read"
        )
        raise ConfigError(
            f"{url}: {wrong}", hint="write the path alone, or file:///PATH with three slashes"
        )
    if "%" in path and not os.path.lexists(path):
        return os.fsdecode(unquote_to_bytes(path))
    return path


def local_uri(path: str) -> str:
    """The uri of a local file: its path, or a percent-encoded file:// where the name is not Unicode
    and no table could hold it.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path))
    return path


def bucket_and_key(url: str) -> tuple[str, str]:
    """The two parts of s3://bucket/key; the key verbatim, with whatever slashes, question marks or
    hashes it has. Raises ConfigError.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    if not _BUCKET.match(bucket):
        raise ConfigError(
            f"{strip_secrets(url)}: '{bucket}' is not the name of a bucket",
            hint="s3://BUCKET/PREFIX; a pattern may stand after the bucket",
        )
    return bucket, key


def has_magic(text: str) -> bool:
    """Whether a text would be read as a pattern."""
    return _MAGIC.search(text) is not None


def folder_pattern(path: str) -> str:
    """Return the pattern that leaves out all folders with the name of this one, for example
    `**/lost+found/**`.
    """
    return f"**/{glob.escape(posixpath.basename(path))}/**"


def has_braces(text: str) -> bool:
    """Whether a text has braces that a shell or webdataset would expand, as in `{a,b}` and
    `{00..99}`.
    """
    return _BRACES.search(text) is not None


def split_at_magic(path: str) -> tuple[str, str]:
    """The folder before the first part with a pattern, and the pattern from there on."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A test of relative paths against any of the patterns."""
    whole = [re.compile(_regex(pattern)) for pattern in patterns if "/" in pattern]
    names = [re.compile(_regex(pattern)) for pattern in patterns if "/" not in pattern]

    def matches(path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(pattern.fullmatch(name) for pattern in names) or any(
            pattern.fullmatch(path) for pattern in whole
        )

    return matches


def matcher_below(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A test whether something below a folder could match any of the patterns."""
    tests = [[None if part == "**" else re.compile(_regex(part)) for part in pattern.removeprefix("/").split("/")]
             for pattern in patterns if "/" in pattern]  # fmt: skip
    has_names = any("/" not in pattern for pattern in patterns)
    return lambda folder: (
        has_names or any(_reaches_below(test, folder.split("/")) for test in tests)
    )


def matcher_of_all_below(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A test whether any of the patterns matches everything below a folder, as `photos/**` and `*`
    do.
    """
    folders = []
    for pattern in patterns:
        parts = pattern.removeprefix("/").split("/")
        named = (
            parts[:-1] if parts[-1] == "**" else parts[:-2] if parts[-2:] == ["**", "*"] else None
        )
        if "/" not in pattern and not pattern.strip("*"):
            named = []
        if named is not None:
            folders.append(re.compile(_regex("/".join(named))) if named else None)

    def matches_all_below(folder: str) -> bool:
        parts = folder.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(test is None or any(map(test.fullmatch, above)) for test in folders)

    return matches_all_below


def _reaches_below(test: Sequence[re.Pattern[str] | None], parts: Sequence[str]) -> bool:
    for number, part in enumerate(parts):
        if number == len(test):
            return False
        one = test[number]
        if one is None:
            return True
        if one.fullmatch(part) is None:
            return False
    return len(test) > len(parts)


def full_matcher(pattern: str) -> Callable[[str], bool]:
    """A test of relative paths against one pattern, always compared with the whole path (as a shell
    expands a source).
    """
    compiled = re.compile(_regex(pattern))
    return lambda path: compiled.fullmatch(path) is not None


def _regex(pattern: str) -> str:
    """The expression of fsspec, of Python's own `glob.translate` (3.13): `**` beside other letters
    is `*`, and no class holds a slash.
    """
    from fsspec.utils import glob_translate  # here: only patterns need it

    parts = (
        part if part == "**" else re.sub(r"\*+", "*", part)
        for part in pattern.removeprefix("/").split("/")
    )
    expression: str = glob_translate("/".join(parts))
    return expression.replace("[^", "[^/")


def version_of(info: Mapping[str, Any]) -> str:
    """The version in fsspec's `info` or in HTTP headers: ETag (quotes stripped), else size and
    mtime in ns, else "".
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
    return round(seconds * 1_000_000) * 1000  # stores give microseconds at best
