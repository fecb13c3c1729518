"""Record which licences of weights the user accepted (`is_accepted`, `accept_licence`).

Weights with a licence that is not permissive are used only after the user accepts the licence. The
user's config file records the accepted licences.
"""

import re
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from ray_app.config import config_file, read_mapping
from ray_app.detectors.card import DetectorCard, list_cards, load_card, strip_variant
from ray_app.detectors.weights import write_aside
from ray_app.errors import ConfigError, DetectorError

KEY = "accepted_licences"

TERMS_IN_WORDS: Mapping[str, str] = {
    "permissive": "any use, also commercial, under the conditions of its licence",
    "restricted": "terms of its own: read them",
    "non-commercial": "no commercial use",
    "research-only": "research only, no commercial use",
    "none-stated": "no licence was published: nothing is granted",
}

Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]
# The first pattern that matches decides. A licence that matches none is `restricted`: it has terms
# of its own that a person has to read.
_TERMS_BY_NAME: tuple[tuple[Terms, str], ...] = (
    (
        "none-stated",
        r"^\s*(none|unknown)?\s*$|\b(none|not|no licen[cs]e) (stated|known|published|given)\b",
    ),
    ("research-only", r"\bresearch\b|\bacademic\b"),
    ("non-commercial", r"\bNC\b|\bnon-?commercial\b"),
    (
        "permissive",
        r"\b(MIT|BSD|ISC|Apache|CC0|CC[ -]BY|ODC-BY|CDLA-Permissive|Unlicense|public domain|our own)\b|^\s*own\s*$",
    ),
)

# The key at the left margin and every line that is indented below it.
_SECTION = re.compile(
    rf"^{KEY}[ \t]*:.*(?:\n|\Z)(?:[ \t]+\S.*(?:\n|\Z)|[ \t]*\n(?=[ \t]))*", re.MULTILINE
)


def infer_terms(licence: str) -> Terms:
    """Return which terms of use a licence's name implies, a key of `TERMS_IN_WORDS`.

    "CC BY-NC 4.0" gives "non-commercial". A name that matches none of the known licences gives
    "restricted". An empty name, "unknown", and "not stated" give "none-stated".
    """
    return next(
        (terms for terms, pattern in _TERMS_BY_NAME if re.search(pattern, licence, re.IGNORECASE)),
        "restricted",
    )


def is_accepted(card_name: str, licence: str, terms: str, accepted: Collection[str] = ()) -> bool:
    """Return whether a model may be used: its licence is permissive, or the user accepted it.

    A licence can be accepted in `accepted` or in the config file. The config file records the name
    of a detector with the licence that its card had at that time. If the licence changes, it must
    be accepted again. A card without a licence can only be accepted by its own name. `terms` is a
    key of `TERMS_IN_WORDS`. `accepted` has names of cards or licences.
    """
    if terms == "permissive":
        return True
    name, licence = strip_variant(card_name), licence.casefold()
    has_licence = terms != "none-stated"
    names = {strip_variant(accepted_name).casefold() for accepted_name in accepted}
    if name in names or (has_licence and licence in names):
        return True
    recorded = {key.casefold(): value.casefold() for key, value in accepted_licences().items()}
    return recorded.get(name) == licence or (has_licence and recorded.get(licence) == licence)


def require_accepted(card: DetectorCard, accepted: Collection[str] = ()) -> None:
    """Raise DetectorError unless the licence of a detector card is permissive or accepted.

    `accepted` has the names of cards or licences that the user accepts for this call. The hint of
    the error states how to accept the licence.
    """
    if is_accepted(card.name, card.licence, card.terms, accepted):
        return
    name, _, variant = card.name.partition(":")
    # Only shipped and added cards are found by their names.
    known_as = shlex.quote(card.loaded_as or name)
    earlier = accepted_licences().get(name)
    changed = (
        f"; you accepted {earlier} earlier"
        if earlier and earlier.casefold() != card.licence.casefold()
        else ""
    )
    raise DetectorError(
        f"{card.name}: its licence is not accepted yet: {card.licence} ({TERMS_IN_WORDS[card.terms]}{changed}); weights {card.weights.uri}",
        hint=f"read {card.source}, then: touchstone detectors fetch {known_as}{variant and f':{variant}'} --accept-licence {known_as} "
        f"(or --accept-licence {known_as} on score)",
    )


@dataclass(frozen=True)
class Acceptance:
    """A licence that the user accepted, under the name of a card or of the licence itself.

    `file` is the config file that records it. None if the file could not be written.
    """

    name: str
    licence: str
    file: Path | None


def accept_licence(name: str) -> Acceptance:
    """Record in the user's config file that a licence is accepted.

    `name` is a detector, the path of its card, or the id of a licence. Other keys and comments of
    the file stay. If there is no home folder or it is not writable, nothing is recorded. In this
    case, pass the name in `accepted` to each call of `is_accepted`. Raises ConfigError if the name
    is unknown or the file is damaged.
    """
    return remember_licence(*_find_licence(name))


def remember_licence(name: str, licence: str) -> Acceptance:
    """Record in the user's config file that a licence is accepted under a name.

    Unlike `accept_licence`, it does not search for a detector with the name. `name` is the licence
    itself, or the name of a card, for example that of a diffusion pipeline which generates images.
    Raises ConfigError if the file is damaged.
    """
    path = config_file()
    if path is None or accepted_licences().get(name) == licence:
        return Acceptance(name, licence, path)
    try:
        data = read_mapping(path) if path.exists() else {}
        entry = {"licence": licence, "accepted_at": datetime.now(UTC).isoformat(timespec="seconds")}
        _write(path.resolve(), {**data, KEY: {**_check_entries(data, path), name: entry}})
    except OSError:
        return Acceptance(name, licence, None)
    return Acceptance(name, licence, path)


def _find_licence(name: str) -> tuple[str, str]:
    """Return the name to record and the licence that it means. Raises ConfigError."""
    cards = list_cards()
    for licence in _shared_licences(cards):
        if name.casefold() == licence.casefold():
            return licence, licence
    try:
        card = load_card(name)
    except ConfigError as error:
        if Path(name).is_file():
            raise
        names = [
            *(card.name for card in cards if card.terms != "permissive"),
            *_shared_licences(cards),
        ]
        close = get_close_matches(name, names, n=1)
        raise ConfigError(
            f"--accept-licence {name}: unknown detector or licence"
            + (f" — did you mean '{close[0]}'?" if close else ""),
            hint=f"use one of: {', '.join(names)}",
        ) from error
    return strip_variant(card.name), card.licence


def _shared_licences(cards: Iterable[DetectorCard]) -> list[str]:
    return sorted(
        {card.licence for card in cards if card.terms not in ("permissive", "none-stated")}
    )


def accepted_licences() -> dict[str, str]:
    """Return the licences that the user's config file records as accepted, by name.

    A name is that of a card or of a licence. A recorded licence may differ from the present licence
    of the card. Call `is_accepted` to compare both. The result is empty if the file is missing or
    may not be read. Raises ConfigError if the file is damaged.
    """
    path = config_file()
    try:
        if path is None or not path.is_file():
            return {}
        path.read_bytes()
    except OSError:
        return {}
    return {
        name: entry["licence"] for name, entry in _check_entries(read_mapping(path), path).items()
    }


def _check_entries(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    entries = data.get(KEY) or {}
    if not isinstance(entries, dict) or not all(
        isinstance(name, str) and isinstance(entry, dict) and isinstance(entry.get("licence"), str)
        for name, entry in entries.items()
    ):
        raise ConfigError(
            f"{path}: every entry of `{KEY}` must have the form NAME: {{licence: …, accepted_at: …}}",
            hint=f"delete the key {KEY}, then run touchstone detectors fetch NAME --accept-licence NAME",
        )
    return entries


def _write(path: Path, data: Mapping[str, Any]) -> None:
    text = _replace_section(path.read_text(encoding="utf-8-sig") if path.exists() else "", data)
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, aside)


def _replace_section(text: str, data: Mapping[str, Any]) -> str:
    """Return the text of the config file with its section replaced or added, so comments stay.

    If the layout does not allow that, the whole text is written again.
    """
    import yaml

    section = yaml.safe_dump({KEY: data[KEY]}, sort_keys=False, allow_unicode=True)
    line_end = "\n" if text and not text.endswith("\n") else ""
    match = _SECTION.search(text)
    changed = (
        text[: match.start()] + section + text[match.end() :]
        if match
        else text + line_end + section
    )
    try:
        if yaml.safe_load(changed) == data:
            return changed
    except yaml.YAMLError:
        pass
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
