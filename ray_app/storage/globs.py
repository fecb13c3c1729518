"""Shell patterns over relative paths. Knows strings only.

`*` and `?` stay inside one folder, `[ab]` and `[!ab]` are one character, `**` as a whole part is any number of folders (also none).
A pattern without a slash is compared with the file's own name, in whichever folder; one with a slash with the whole path.
Letters count as they are: `*.jpg` is not `A.JPG`, because in a bucket these are two names.
"""

import re
from collections.abc import Callable, Sequence

_MAGIC = re.compile(r"[*?\[]")


def has_magic(text: str) -> bool:
    """Whether a text would be read as a pattern."""
    return _MAGIC.search(text) is not None


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
        return any(pattern.fullmatch(name) for pattern in names) or any(pattern.fullmatch(path) for pattern in whole)

    return matches


def matcher_below(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A test whether something below a folder could match any of the patterns."""
    tests = [[None if part == "**" else re.compile(_part(part), re.DOTALL) for part in pattern.removeprefix("/").split("/")]
             for pattern in patterns if "/" in pattern]  # fmt: skip
    has_names = any("/" not in pattern for pattern in patterns)

    def may_match(folder: str) -> bool:
        return has_names or any(_reaches_below(test, folder.split("/")) for test in tests)

    return may_match


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
    """A test of relative paths against one pattern, always compared with the whole path (as a shell expands a source)."""
    compiled = re.compile(_regex(pattern))
    return lambda path: compiled.fullmatch(path) is not None


def _regex(pattern: str) -> str:
    parts = pattern.removeprefix("/").split("/")
    regex = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            regex += ".*" if last else "(?:[^/]+/)*"
        else:
            regex += _part(part) + ("" if last else "/")
    return "(?s:" + regex + ")"


def _part(part: str) -> str:
    return re.sub(r"\*+|\?|\[!?\]?[^\]/]*\]|.", _piece, part, flags=re.DOTALL)


def _piece(match: re.Match[str]) -> str:
    text = match.group()
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if len(text) > 1:
        inverted = text.startswith("[!")
        inside = re.sub(r"([\\\[^&~|])", r"\\\1", text[2 if inverted else 1 : -1])
        inside = "\\" + inside if inside.startswith("]") else inside
        return f"[^/{inside}]" if inverted else f"[{inside}]"
    return re.escape(text)
