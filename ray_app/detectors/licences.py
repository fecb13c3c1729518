"""Licence acceptance: weights whose terms are not permissive are used only once the user accepts
them (`is_accepted`, `accept_licence`).
"""

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ray_app.config import config_file, read_mapping
from ray_app.detectors.card import DetectorCard, base_name, list_cards, load_card
from ray_app.errors import ConfigError, DetectorError

KEY = "accepted_licences"

TERMS_IN_WORDS: Mapping[str, str] = {
    "permissive": "any use, also commercial, under the conditions of its licence",
    "restricted": "terms of its own: read them",
    "non-commercial": "no commercial use",
    "research-only": "research only, no commercial use",
    "none-stated": "no licence was published: nothing is granted",
}

# The key at the left margin and every line that is indented below it.
_SECTION = re.compile(
    rf"^{KEY}[ \t]*:.*(?:\n|\Z)(?:[ \t]+\S.*(?:\n|\Z)|[ \t]*\n(?=[ \t]))*", re.MULTILINE
)


def is_accepted(card_name: str, licence: str, terms: str, accepted: Collection[str] = ()) -> bool:
    """Whether a card of that name may be used by its licence and `terms` (a key of
    `TERMS_IN_WORDS`): permissive, or accepted by `accepted` (names of detectors or licences) or by
    the config file.

    What the file remembers for a detector holds for the licence that its card had then. A card with
    no licence has none in common with another one: it is accepted by its own name alone.
    """
    if terms == "permissive":
        return True
    name, licence = base_name(card_name), licence.casefold()
    shared = terms != "none-stated"
    now = {base_name(given).casefold() for given in accepted}
    if name in now or (shared and licence in now):
        return True
    then = {known.casefold(): text.casefold() for known, text in accepted_licences().items()}
    return then.get(name) == licence or (shared and then.get(licence) == licence)


def require_accepted(card: DetectorCard, accepted: Collection[str] = ()) -> None:
    """Refuse a card whose terms were not accepted; see `is_accepted`. Raises DetectorError that
    says how to accept them.
    """
    if is_accepted(card.name, card.licence, card.terms, accepted):
        return
    name = base_name(card.name)
    before = accepted_licences().get(name)
    changed = (
        f"; what you accepted was {before}"
        if before and before.casefold() != card.licence.casefold()
        else ""
    )
    raise DetectorError(
        f"{card.name}: its licence is not accepted yet: {card.licence} ({TERMS_IN_WORDS[card.terms]}{changed}); weights {card.weights.uri}",
        hint=f"read {card.source}, then: touchstone detectors fetch {card.name} --accept-licence {name} "
        f"(or --accept-licence {name} on score)",
    )


@dataclass(frozen=True)
class Acceptance:
    """What was accepted: the detector's name or the licence's id, the licence, and the file that
    remembers it (None: it cannot).
    """

    name: str
    licence: str
    file: Path | None


def accept_licence(name: str) -> Acceptance:
    """Remember in the config file that the licence of a detector (by name or path of its card), or
    a licence by its id, is accepted.

    Other keys and comments of the file stay as they are. Without a home, or with one that cannot be
    written, nothing is remembered and the acceptance holds where the caller passes its name on.
    Raises ConfigError: nothing has that name, or the file is damaged.
    """
    return remember_licence(*_found(name))


def remember_licence(name: str, licence: str) -> Acceptance:
    """Remember that `licence` is accepted under a name, of whatever kind of card it is. Raises
    ConfigError: the file is damaged.
    """
    path = config_file()
    if path is None or accepted_licences().get(name) == licence:
        return Acceptance(name, licence, path)
    try:
        data = read_mapping(path) if path.exists() else {}
        entry = {"licence": licence, "accepted_at": datetime.now(UTC).isoformat(timespec="seconds")}
        _write(path.resolve(), {**data, KEY: {**_checked(data, path), name: entry}})
    except OSError:
        return Acceptance(name, licence, None)
    return Acceptance(name, licence, path)


def _found(name: str) -> tuple[str, str]:
    """The name to remember and the licence that it stands for. Raises ConfigError."""
    cards = list_cards()
    for licence in _shared_licences(cards):
        if name.casefold() == licence.casefold():
            return licence, licence
    try:
        card = load_card(name)
    except ConfigError as error:
        if Path(name).is_file():
            raise
        known = [
            *(card.name for card in cards if card.terms != "permissive"),
            *_shared_licences(cards),
        ]
        close = get_close_matches(name, known, n=1)
        raise ConfigError(
            f"--accept-licence {name}: there is no detector and no licence of that name"
            + (f" — did you mean '{close[0]}'?" if close else ""),
            hint=f"to accept: {', '.join(known)}",
        ) from error
    return base_name(card.name), card.licence


def _shared_licences(cards: Iterable[DetectorCard]) -> list[str]:
    return sorted(
        {card.licence for card in cards if card.terms not in ("permissive", "none-stated")}
    )


def accepted_licences() -> dict[str, str]:
    """What the config file remembers: name, of a detector or a licence → the licence that was
    accepted under it.

    A name says nothing of the licence's text: ask `is_accepted`, which asks again where a card's
    licence changed. A file that is not there or must not be read remembers nothing. Raises
    ConfigError for a damaged one.
    """
    path = config_file()
    try:
        if path is None or not path.is_file():
            return {}
        path.read_bytes()
    except OSError:
        return {}
    return {name: entry["licence"] for name, entry in _checked(read_mapping(path), path).items()}


def _checked(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    entries = data.get(KEY) or {}
    if not isinstance(entries, dict) or not all(
        isinstance(name, str) and isinstance(entry, dict) and isinstance(entry.get("licence"), str)
        for name, entry in entries.items()
    ):
        raise ConfigError(
            f"{path}: {KEY}: expected NAME: {{licence: …, accepted_at: …}}",
            hint="touchstone detectors fetch NAME --accept-licence NAME",
        )
    return entries


def _write(path: Path, data: Mapping[str, Any]) -> None:
    text = _rewritten(path.read_text(encoding="utf-8") if path.exists() else "", data)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(partial).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _rewritten(text: str, data: Mapping[str, Any]) -> str:
    """The file's text with its section replaced or added, so that comments stay; anew where its
    layout does not allow that.
    """
    import yaml

    section = yaml.safe_dump({KEY: data[KEY]}, sort_keys=False, allow_unicode=True)
    line_end = "\n" if text and not text.endswith("\n") else ""
    found = _SECTION.search(text)
    changed = (
        text[: found.start()] + section + text[found.end() :]
        if found
        else text + line_end + section
    )
    try:
        if yaml.safe_load(changed) == data:
            return changed
    except yaml.YAMLError:
        pass
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
