"""One spelling of a record, so that equal content has equal hashes, and one file of each, so that no two programs read it differently.

Knows JSON; knows nothing of what a record means.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any


def canonical(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no blanks (after RFC 8785, but for numbers, which are as Python writes them). NaN is an error."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def written(value: Any) -> str:
    """A record as its file has it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def read_back(data: bytes) -> Any:
    """What `written` wrote. Raises ValueError for any other file: a key that stands twice, of which programs take the first or the last,
    numbers that no float holds, a byte order mark, data behind the record, and any other spelling of the same.
    """
    text = data.decode("utf-8")
    value = json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    again = written(value)
    if again != text:
        place = next((at for at, (ours, theirs) in enumerate(zip(again, text, strict=False)) if ours != theirs), min(len(again), len(text)))
        raise ValueError(f"not as `touchstone evidence` writes it, from character {place} on: {text[place : place + 20]!r}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _finite(word: str) -> float:
    """A number as JSON spells it. Raises ValueError for NaN, and for what no float holds (1e999)."""
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word} is no finite number")
    return number


def plain(value: Any) -> Any:
    """A row's values as JSON has them: times in ISO 8601, bytes as their hash, numbers that are not finite and other types as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
