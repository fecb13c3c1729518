"""Checks of a record (`EvidenceCheck`): its canonical JSON, its decision, its profile, and its image's hash and scores on this machine.

Equal content has one spelling and so equal hashes (`canonical`, `digest`). `decide_again` uses the code that decides in runs;
`check_image` loads torch and weights.

The detector cards of a run in full: what is on this machine, with all that the run itself noted in its place.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ray_app.attribution.cards import DescriberCard, IdentifierCard
from ray_app.config import validate
from ray_app.detectors import DetectorCard, licences, load_card, weights, weights_digest
from ray_app.detectors.card import default_slots, placed_like, with_run_facts
from ray_app.ensembles import EnsembleCard, EnsembleMember
from ray_app.errors import ConfigError, DetectorError, Status, TouchstoneError
from ray_app.images import ImageLimits
from ray_app.inference import BatchDecoder, DecodeResult, ScoringSpec, StageClock
from ray_app.inference.decision import EMBEDDINGS
from ray_app.inference.spec import profile_cards
from ray_app.runs import directory, row_schema
from ray_app.runs.rows import FACTS
from ray_app.runs.schema import DETAIL, SECOND_LOOK, STABILITY, reason_of


class RecordedCard(NamedTuple):
    """A detector's card as the run had it. `departs`: the keys in which the one on this machine is another; there the run's word stands."""

    card: DetectorCard
    departs: tuple[str, ...]


def departures(card: DetectorCard, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys in which a card is not what a run noted; what an older run did not note is not compared."""
    ours = {key: value for key, value in card.scoring_facts.items() if key in facts}
    theirs = {key: value for key, value in facts.items() if key in ours}
    return tuple(key for key, _, _ in directory.differing_keys(ours, theirs))


def cards_of(ensemble: EnsembleCard, facts: Mapping[str, Mapping[str, Any]]) -> dict[str, RecordedCard]:
    """Per detector of the ensemble, in its order; `facts` are what the run noted of each. Raises ConfigError where one is not here."""
    known = {}
    for member in ensemble.members:
        card = _loaded(member.detector)
        noted = facts.get(card.name, {})
        known[card.name] = RecordedCard(with_run_facts(card, noted), departures(card, noted))
    return known


def restored_card(card: Mapping[str, Any], named: str) -> DetectorCard:
    """A recorded card as a card again; its weights are looked for where the card lies that an ensemble names so. Raises ConfigError.

    A card that a URL names is not fetched for that.
    """
    again = validate(card, DetectorCard, where=f"the recorded card of {named}")
    try:
        return again if "://" in named else placed_like(again, load_card(named))
    except TouchstoneError:
        again._folder = Path(named.rpartition(":")[0] or named).resolve().parent
        return again


def require_here(card: DetectorCard, named: str) -> None:
    """Whether a recorded card's weights are on this machine, or this machine's own card of that name has their address.

    Raises DetectorError for weights that only the record names: it may be a stranger's, and would choose what is fetched.
    """
    try:
        own = None if "://" in named else load_card(named)
    except TouchstoneError:
        own = None
    if own is not None and [part.weights for part in weights.parts_of(own)] == [part.weights for part in weights.parts_of(card)]:
        return
    for part in weights.parts_of(card):
        if weights.located(part) is None:
            raise DetectorError(
                f"{card.name}: no weights: {part.weights.uri} is named by the record alone, so that nothing is fetched from there",
                hint=f"bring the card to where the record names it, {named}, or that file into the cache of weights",
            )


def _loaded(detector: str) -> DetectorCard:
    try:
        return load_card(detector)
    except ConfigError as error:
        hint = "a record holds every card in full; bring the card to where the run's ensemble names it"
        raise ConfigError(f"the card of {detector} is not on this machine: {error.message}", hint=hint) from None


CheckOutcome = Literal["agrees", "differs", "not checked"]
DECIDED = ("score", "probability", "calibrated", "verdict", "verdict_reason", DETAIL, SECOND_LOOK)
_CLOSE = 1e-9  # of a number: another processor's exp and log may round the last bits otherwise
PROFILE = "profile"
NEAREST = (
    "A generator's name is the nearest of those that the identifier knows. It is no proof of where an image came from, it entered no "
    "score, and of an image that is not flagged it says nothing."
)
WORDS = "Predicted words are a guess at the prompt: many prompts lead to one image, and these may never have been typed."
# How far a score may be from the recorded one, in log-odds, times the recorded score's size where that is above 1. fp32: other kernels,
# batch sizes and decoders round otherwise. bf16: each product keeps 8 bits, and kernels sum them in another order.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
Scores = dict[str, float | None]


class EvidenceCheck(NamedTuple):
    """One thing that was looked at, and what was found."""

    name: str
    outcome: CheckOutcome
    told: str


class Decided(NamedTuple):
    """What the cards make of the recorded scores. `exact`: the row has the same to the last bit. `differs`: the columns that do not."""

    row: dict[str, Any]
    exact: bool
    differs: tuple[str, ...]


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no blanks (after RFC 8785, but for numbers, which are as Python writes them). NaN is an error."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def parse_record(data: bytes) -> Any:
    """What `record_text` wrote. Raises ValueError for any other file: a key that stands twice, of which programs take the first or the
    last, numbers that no float holds, a byte order mark, data behind the record, and any other spelling of the same.
    """
    text = data.decode("utf-8")
    value = json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    again = record_text(value)
    if again != text:
        place = next((at for at, (ours, theirs) in enumerate(zip(again, text, strict=False)) if ours != theirs), min(len(again), len(text)))
        raise ValueError(f"not as `touchstone runs evidence` writes it, from character {place} on: {text[place : place + 20]!r}")
    return value


def record_text(value: Any) -> str:
    """A record as its file has it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def spec_of(ensemble: EnsembleCard, cards: Mapping[str, DetectorCard], identity: Mapping[str, Any], *, device: str = "cpu") -> ScoringSpec:
    """The settings of the run that a record is of, on any device."""
    from ray_app.scoring.identity import stability_in

    return ScoringSpec(
        ensemble,
        cards,
        ImageLimits(**identity.get("limits", {})),
        {name: identity.get("precision", {}).get(name, "fp32") for name in cards},
        identity.get("resize", "exact"),
        identity.get("batch_slots", 1),
        device,
        stability=stability_in(dict(identity)),
    )


def profile_of(row: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record's section `profile`: generator, prompt, the facts of the cards that predicted them, limits; none for a run without one."""
    if not identity.get(PROFILE):
        return {}
    generator = {name: row.get(f"generator_{name}") for name in ("family", "probability", "confidence", "ranking")}
    section = {
        "generator": {"name": row.get("predicted_generator"), **generator} if row.get("generator_confidence") is not None else None,
        "prompt": {"text": row["predicted_prompt"], "likelihood": row.get("prompt_likelihood")} if row.get("predicted_prompt") else None,
        "cards": dict(identity[PROFILE]),
    }
    limits = [NEAREST] * (section["generator"] is not None) + [WORDS] * (section["prompt"] is not None)
    return {PROFILE: {**section, "limits": limits}}


def check_image(record: Mapping[str, Any], spec: ScoringSpec, image: Path, accepted: Collection[str] = ()) -> Iterator[EvidenceCheck]:
    """Compare a file with the record's and, if it is the same, score it again. Raises ConfigError where the file cannot be read, and
    DetectorError where weights are missing or their licence is not `accepted`.
    """
    row = record["row"]
    data = _read(image, spec.limits.max_bytes)
    asked = replace(spec, slots=min(spec.slots, default_slots(spec.device)))
    outcome = _decoded(asked, data)
    if row["sha256"] is None or outcome.facts is None:
        yield EvidenceCheck("file", "not checked", f"the run never read the file ({row['status']}), so that no hash of it is recorded")
        return
    here = hashed("file", outcome.facts.sha256, row["sha256"], f"SHA-256 of {image}")
    yield here
    if here.outcome == "differs":
        yield EvidenceCheck("scores", "not checked", "this is not the recorded file, so it was not scored")
        return
    yield from _check_decoding(row, outcome)
    named = [name for name, score in (row["scores"] or {}).items() if score is not None and name in spec.cards]
    if outcome.status is not Status.OK or not named:
        return
    for name in named:
        require_here(spec.cards[name], record["detectors"][name]["asked_as"])
        licences.require_accepted(spec.cards[name], accepted)
        yield _weights(name, weights_digest(spec.cards[name]), record["hashes"]["weights"][name])
    scores = _scores(_among(asked, named), data)
    for name in named:
        yield _compared(name, scores[name], row["scores"][name], spec)
    yield _verdict(record, spec, scores)
    yield from check_profile(record, asked, data)


def hashed(name: str, ours: str, theirs: str, what: str) -> EvidenceCheck:
    """Whether a hash that was computed here is the recorded one; `what` it is of."""
    if ours == theirs:
        return EvidenceCheck(name, "agrees", f"{what}: {ours}")
    return EvidenceCheck(name, "differs", f"{what} is {ours}, recorded is {theirs}")


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


def decide_again(spec: ScoringSpec, row: Mapping[str, Any], guarantee: Mapping[str, Any] | None = None) -> Decided:
    """Apply the ensemble to a row's detector scores, and compare. `guarantee`: the section of the run's summary, if it has one."""
    from ray_app.scoring.guarantee import decided, unlike_rows

    rows = decided(_table(spec, row), spec)
    unlike = (guarantee or {}).get("unlike")
    [again] = (unlike_rows(rows, unlike) if unlike else rows).to_pylist()
    known = _of_today(row)
    values = {name: again.get(name) for name in DECIDED if name in known}
    return Decided(
        values, values == {name: known[name] for name in values}, tuple(name for name in values if not alike(values[name], known[name]))
    )


def alike(ours: Any, theirs: Any) -> bool:
    """Whether two values of JSON are equal, but for the last bits of their numbers."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(alike(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        return bool(np.isclose(ours, theirs, rtol=_CLOSE, atol=_CLOSE))
    return bool(ours == theirs)


def check_profile(record: Mapping[str, Any], spec: ScoringSpec, data: bytes) -> Iterator[EvidenceCheck]:
    """Whether the profile's cards on this machine, if they are the run's, predict the same for the image."""
    section = record.get(PROFILE)
    if not section:
        return
    try:
        identifier, describer = profile_cards(spec.ensemble, spec.cards)
        cards = {"identifier": identifier, "describer": describer}
        same = {kind: _is_recorded(card, section["cards"].get(kind) or {}) for kind, card in cards.items() if card is not None}
    except TouchstoneError as error:
        yield EvidenceCheck("profile", "not checked", f"its cards are not on this machine: {error.message}")
        return
    for kind in [kind for kind, known in same.items() if not known]:
        yield EvidenceCheck(kind, "not checked", "the card here is another than the run's")
    if identifier is not None and same["identifier"] and section["generator"]:
        yield _named(section["generator"], spec, identifier, data)
    if describer is not None and same["describer"] and section["prompt"]:
        yield _worded(section["prompt"], spec, describer, data)


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


def _is_recorded(card: IdentifierCard | DescriberCard, recorded: Mapping[str, Any]) -> bool:
    """Whether a card equals the run's; the run may have noted more, such as the precision of its describer."""
    return all(recorded.get(name) == fact for name, fact in card.facts().items())


def _named(recorded: Mapping[str, Any], spec: ScoringSpec, card: IdentifierCard, data: bytes) -> EvidenceCheck:
    from ray_app.attribution.identifier import Identifier

    found = Identifier(card).identify(_embedding(spec, card.detector, card.embedding, data))
    code = int(found.codes[0])
    here = found.classes[code] if code >= 0 else None
    words = [name or "like no known generator" for name in (here, recorded["name"])]
    return EvidenceCheck("generator", "agrees" if here == recorded["name"] else "differs", f"{words[0]} here, {words[1]} recorded")


def _worded(recorded: Mapping[str, Any], spec: ScoringSpec, card: DescriberCard, data: bytes) -> EvidenceCheck:
    if card.detector is None:
        return EvidenceCheck("prompt", "not checked", f"{card.name} reads pixels; score the image again to see its words")
    from ray_app.attribution.captioners import load_describing

    here = load_describing(card).describe(_embedding(spec, card.detector, card.embedding, data))[0].text
    return EvidenceCheck("prompt", "agrees" if here == recorded["text"] else "differs", f"“{here}” here")


def _embedding(spec: ScoringSpec, detector: str, facts: Mapping[str, Any], data: bytes) -> Any:
    """(1, d) float32 of the image, by one detector."""
    from ray_app.inference.scorer import EnsembleScorer

    clock = StageClock()
    alone = replace(spec.asking([detector]), identifier=None, describer=None, features={detector: facts}, stability=None)
    with closing(BatchDecoder(alone, clock)) as decoder:
        return EnsembleScorer(alone, clock).score([decoder.decode([(0, data)])]).of(EMBEDDINGS)[detector]


def _read(image: Path, most: int) -> bytes:
    try:
        with image.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"--image {image}: {error.strerror}") from None


def _decoded(spec: ScoringSpec, data: bytes) -> DecodeResult:
    with closing(BatchDecoder(spec, StageClock())) as decoder:
        return decoder.decode([(0, data)]).outcomes[0]


def _check_decoding(row: Mapping[str, Any], outcome: DecodeResult) -> Iterator[EvidenceCheck]:
    if outcome.status.value != row["status"]:
        yield EvidenceCheck("decoding", "differs", f"here {outcome.status.value} ({outcome.detail}), recorded {row['status']}")
        return
    here = outcome.facts.decoder if outcome.facts else None
    if here != row["decoder"]:
        yield EvidenceCheck(
            "decoding", "not checked", f"{row['status']}, but by {here}; recorded by {row['decoder']}: pixels and scores may differ"
        )
        return
    found = {name: plain(getattr(outcome.facts, name)) for name in FACTS if name in row} if outcome.facts else {}
    if other := [f"{name}: here {value!r}, recorded {row[name]!r}" for name, value in found.items() if value != row[name]]:
        yield EvidenceCheck("decoding", "differs", "; ".join(other))
    else:
        yield EvidenceCheck("decoding", "agrees", f"{row['status']}, by {here or 'no decoder'}")


def _weights(name: str, here: str, recorded: str | None) -> EvidenceCheck:
    if recorded is None:
        return EvidenceCheck(name, "not checked", f"weights here: {here}; the run noted none")
    return hashed(name, here, recorded, "weights here")


def _among(spec: ScoringSpec, named: list[str]) -> ScoringSpec:
    """The spec of these detectors alone, all of which score the image whatever the others' scores."""
    asked = {name: member.detector for name, member in zip(spec.cards, spec.ensemble.members, strict=True)}
    card = EnsembleCard(name="again", title="", members=tuple(EnsembleMember(detector=asked[name]) for name in named))
    return replace(spec, ensemble=card, cards={name: spec.cards[name] for name in named}, stability=None)


def _scores(spec: ScoringSpec, data: bytes) -> Scores:
    from ray_app.inference.scorer import EnsembleScorer

    clock = StageClock()
    with closing(BatchDecoder(spec, clock)) as decoder:
        outputs = EnsembleScorer(spec, clock).score([decoder.decode([(0, data)])])
    return {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in outputs.scores.items()}


def _compared(name: str, here: float | None, recorded: float, spec: ScoringSpec) -> EvidenceCheck:
    if here is None:
        return EvidenceCheck(name, "differs", f"no score here, recorded {recorded:+.6f}")
    precision = spec.precision[name]
    tolerance = TOLERANCE[precision] * max(1.0, abs(recorded))
    apart = abs(here - recorded)
    message = f"score {here:+.6f} here, {recorded:+.6f} recorded: {apart:.2g} apart, {tolerance:.2g} allowed ({precision}, {spec.device})"
    return EvidenceCheck(name, "agrees" if apart <= tolerance else "differs", message)


def _verdict(record: Mapping[str, Any], spec: ScoringSpec, scores: Scores) -> EvidenceCheck:
    row = record["row"]
    again = decide_again(spec, row | {"scores": row["scores"] | scores}, record["guarantee"]["run"]).row
    message = f"{again['verdict']} from the scores made here, {row['verdict']} recorded"
    return EvidenceCheck("verdict", "agrees" if again["verdict"] == row["verdict"] else "differs", message)


def _of_today(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of an older schema with its reason as a word of the list."""
    if DETAIL in row:
        return row
    why = reason_of(row["verdict_reason"])
    return {**row, "verdict_reason": why and why.reason, DETAIL: why and why.detail}


def _table(spec: ScoringSpec, row: Mapping[str, Any]) -> pa.Table:
    """The row as a run's files hold it; what is no part of a decision is left out."""
    schema = row_schema(
        list(row["scores"] or spec.cards),
        speakers=list(row.get("replies") or ()),
        second_look=SECOND_LOOK in row,
        stability=STABILITY in row,
    )
    known = {field.name: field.type for field in schema}
    left_out = ("input", "provenance", "scored_at", "views")
    types = {name: known.get(name) or pa.array([value]).type for name, value in row.items() if name not in left_out}
    return pa.Table.from_pydict({name: pa.array([row[name]], _words(kind)) for name, kind in types.items()})


def _words(kind: pa.DataType) -> pa.DataType:
    """Words stand for themselves in a table of one row."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
