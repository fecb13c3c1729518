"""Names of members: labels for people, never paths. Knows what makes one unsafe and how to show one that is no text; opens nothing."""

import re
from hashlib import blake2b

_DRIVE = re.compile(r"^[A-Za-z]:")


def why_unsafe(name: str) -> str | None:
    """What is wrong with a name that a careless tool would unpack outside its folder; None for a safe one."""
    if not name:
        return "it has no name"
    if "\0" in name:
        return "a NUL in its name"
    if name.startswith(("/", "\\")):
        return "an absolute name"
    if _DRIVE.match(name):
        return "a drive letter in its name"
    if ".." in re.split(r"[/\\]", name):
        return "'..' in its name"
    return None


def printable(name: str) -> str:
    r"""The name as a table can hold it: bytes that are no UTF-8 (as surrogates) and NUL become \xNN, all else is kept verbatim."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", r"\x00")


class Occurrences:
    """Counts equal names of one container: 8 bytes of a hash per name, since an archive may hold millions."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._again: dict[int, int] = {}

    def count(self, name: str) -> int:
        """How many times the name was counted before."""
        key = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        if key not in self._seen:
            self._seen.add(key)
            return 0
        self._again[key] = self._again.get(key, 0) + 1
        return self._again[key]
