"""Recognise parts of archives that were cut into several files, by their names.

Data sets are published in such parts (`set.tar.part-aa`, `set.zip.001`). A part must be joined with
the others before an image in it can be read. Only the first part has the signature of an archive.
"""

import re
import shlex

from ray_app.errors import Status

_ARCHIVE = r"(?:tar(?:\.(?:gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst|zip|7z|rar)"
# As `split` names the parts, with or without “part”. One digit alone is not a part: wget names a
# second copy so. Two letters alone may be another compression.
_CUT = re.compile(
    rf"((.+\.{_ARCHIVE})[._-](?:part[._-]?(?=\d{{1,5}}\Z|[a-z]{{1,4}}\Z)|(?=\d{{2,5}}\Z|(?!gz|xz|lz|br)[a-z]{{2}}\Z)))\w+",
    re.IGNORECASE,
)
_ZIP_PART = re.compile(r"(.+)\.z\d\d", re.IGNORECASE)
_RAR_PART = re.compile(r".+\.(?:r\d\d|part\d+\.rar)", re.IGNORECASE)
_NUMBERED = re.compile(rf"((.*[^\W\d_])[._-]*)\d+(\.{_ARCHIVE})", re.IGNORECASE)


def explain_part(uri: str, status: Status, detail: str | None) -> str | None:
    """Return the detail of a file's row, which shows what to do if the file is a part of an archive.

    It is the detail of the decoder for any other file, and for a status that an image has.
    """
    if status not in (Status.UNSUPPORTED_FORMAT, Status.IMAGE_TOO_LARGE):
        return detail
    advice = _describe_part(_base_name(uri))
    if advice is None or status is Status.UNSUPPORTED_FORMAT:
        return advice or detail
    return f"{advice}; {detail}"


def describe_numbered(uri: str) -> str | None:
    """Return what to do if a container that cannot be opened is a part, as `set-01.tar.gz` may be.

    The result is None for a name without a number behind a word.
    """
    if (match := _NUMBERED.fullmatch(_base_name(uri))) is None:
        return None
    start, joined, ending = match.groups()
    return f"if it is a part of an archive, join the parts (cat {shlex.quote(start)}*{ending} > {shlex.quote(joined + ending)})"


def _describe_part(name: str) -> str | None:
    if match := _CUT.fullmatch(name):
        start, whole = match.groups()
        if not whole.lower().endswith(("7z", "rar")):
            return f"a part of an archive: join the parts (cat {shlex.quote(start)}* > {shlex.quote(whole)})"
    if match := _ZIP_PART.fullmatch(name):
        whole, joined = (f"{match[1]}{ending}.zip" for ending in ("", "-joined"))
        return f"a part of an archive: join the parts (zip -s 0 {shlex.quote(whole)} --out {shlex.quote(joined)})"
    is_packed = _CUT.fullmatch(name) or _RAR_PART.fullmatch(name)
    return "a part of an archive: unpack the whole archive first" if is_packed else None


def _base_name(uri: str) -> str:
    path = uri.partition("?")[0] if "://" in uri else uri
    return path.rpartition("/")[2]
