"""A record → what of it agrees with itself, with the image and with the detectors here, line by line (`verify_evidence`).

Without the image: the digest, the run's fingerprint, the cards against that, and the decision from the recorded scores. With it: the
file's hash, and the scores once more on this machine within a stated tolerance. `not_verified` lists what was not checked, and why, so
that nobody takes it for verified. A key that no record has is refused: nothing stands in a record that no check reads.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ray_app import __version__
from ray_app.archives import ContainerLimits, TableColumns
from ray_app.attribution.cards import DescriberCard, IdentifierCard
from ray_app.config import validate
from ray_app.detectors import DetectorCard, licences, weights, weights_digest
from ray_app.detectors.card import default_slots, placed_like
from ray_app.detectors.card_sections import MEASURED
from ray_app.ensembles import EnsembleCard, EnsembleMember, Ground, decision_facts
from ray_app.errors import ConfigError, DetectorError, Status, TouchstoneError, describe_error
from ray_app.evaluation.evidence import record as records
from ray_app.evaluation.evidence.record import MISSING, PROFILE, RECORD_SECTIONS, SENTENCES, Grounds, digest
from ray_app.evaluation.evidence.signature import EvidenceCheck, check_signature
from ray_app.evaluation.systems import readable_card
from ray_app.inference import BatchDecoder, DecodeResult, DetectorOutputs, ScoringSpec, StageClock
from ray_app.inference.decision import EMBEDDINGS
from ray_app.inference.spec import profile_cards
from ray_app.runs import document as run_documents
from ray_app.runs import fingerprint, row_schema, rows, schema

# How far a score may be from the recorded one, in log-odds, times the recorded score's size where that is above 1. fp32: other kernels,
# batch sizes and decoders round otherwise. bf16: each product keeps 8 bits, and kernels sum them in another order.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
ROW = tuple(
    row_schema(
        [], pa.null(), ["any"], ["any"], views=["any"], perceptual_hash=True, second_look=True, stability=True, identified=True,
        described=True, measured=MEASURED,
    ).names
)  # fmt: skip
_RECORD = ("made_at", "made_by", "found_by", "cards_here_depart", "image", "finding", "decision", "detectors", "ensemble", "guarantee",
           "profile", "provenance", "limits", "row", "run", "hashes", "verify")  # fmt: skip
_RUN = ("url", "created_at", "finished_at", "schema", "touchstone", "members", "verdicts", "identity")
_IDENTITY = ("source", "include", "exclude", "limit", "limits", "columns", "container_limits", "perturb", "perturb_kinds", "perturb_absent",
             "stability", "features", "waive_guarantee", "detectors", "precision", "resize", "batch_slots", "jpeg_decoder", "profile",
             "decision")  # fmt: skip
# Columns of a row by what verifies them. The others (score, verdict, …) follow from its scores.
_PLACE = ("image_id", "uri", "member", "occurrence", "input", "attempt", "scored_at", "reused")
_NEVER = ("detail", "phash", "provenance", schema.FINDING, schema.GROUNDS)
_SEEN = ("views", schema.STABILITY, "mask_area", "mask_peak", "replies")
_GENERATOR = ("predicted_generator", *schema.IDENTIFIED)
_PROMPT = ("predicted_prompt", *schema.DESCRIBED)
_WRITTEN = "written down when the run, or the record, was made; nothing in the record could contradict it"
_NAMED = 3  # differences that a line names


class Unverified(NamedTuple):
    """Fields that were not verified, by their dotted names."""

    fields: tuple[str, ...]
    why: str


def read_evidence(path: Path) -> dict[str, Any]:
    """A record exactly as `record_text` wrote it. Raises ConfigError for any other file: keys that stand twice, numbers that no float
    holds, a byte order mark, data behind the record, another spelling of the same, and records of another schema.
    """
    hint = "--verify takes an evidence.json as it was written"
    try:
        text = path.read_bytes().decode("utf-8")
        document = json.loads(text)
        again = records.record_text(document)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a record's JSON: {error}", hint=hint) from None
    if again != text:
        place = next((at for at, (ours, theirs) in enumerate(zip(again, text, strict=False)) if ours != theirs), min(len(again), len(text)))
        message = f"not as `touchstone runs evidence` writes it, from character {place} on: {text[place : place + 20]!r}"
        raise ConfigError(f"{path}: not a record's JSON: {message}", hint=hint)
    if not (isinstance(document, dict) and isinstance(document.get("record"), dict) and isinstance(document.get("sha256"), str)):
        raise ConfigError(f"{path}: no record of `touchstone runs evidence`", hint=hint)
    if document.get(records.KIND) != records.SCHEMA:
        raise ConfigError(
            f"{path}: a record of schema {document.get(records.KIND)}; this version reads {records.SCHEMA}",
            hint=f"it was made by Touchstone {_mapping(document['record'].get('made_by')).get('touchstone', 'of another version')}",
        )
    return document


def verify_evidence(
    document: Mapping[str, Any],
    image: Path | None = None,
    *,
    signer: Path | None = None,
    device: str = "cpu",
    accepted: Collection[str] = (),
) -> Iterator[EvidenceCheck]:
    """Check a record that `read_evidence` gave, and the image where there is one. `accepted`: licences, as for `score`; `signer`: the
    public key of who must have signed it. What is not checked, `not_verified` lists.

    Raises ConfigError where the record is no whole one, has keys that no record has, or the image or key cannot be read, and DetectorError
    where weights that the image needs are missing or under a licence that is not accepted.
    """
    record = document["record"]
    try:
        _refuse_keys(list(_unknown_keys(document)), record)
        if signer is not None:
            yield check_signature(document, signer)
        yield _hashed("record", digest(record), document["sha256"], "the SHA-256 of all that it says")
        grounds = _grounds(record, device)
        again = records.sections(grounds)
        differing = list(_differing(record, again))
        noted_here = {name: {**card.scoring_facts, "weights": None} for name, card in grounds.spec.cards.items()}
        of_cards = records.differences(noted_here, record["run"]["identity"]["detectors"], "run.identity.detectors")
        _refuse_keys([path for path, ours, _ in (*differing, *of_cards) if ours is MISSING], record)
        checks = [*_check_hashes(record, grounds), *_check_sections(record, again, differing), *_check_decision(record, grounds)]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the record is not whole: {describe_error(error)}", hint="it was changed after it was made; make it anew"
        ) from error
    yield from checks
    if image is None:
        yield EvidenceCheck("image", "not checked", "give it with --image: then its hash is compared, and it is scored again")
    else:
        yield from _check_image(record, grounds.spec, image, accepted)


def not_verified(document: Mapping[str, Any], checks: Sequence[EvidenceCheck], *, image: bool, signer: bool) -> list[Unverified]:
    """What `checks`, made with or without an image and a signer's key, do not cover."""
    record = document["record"]
    agrees = {check.name for check in checks if check.outcome == "agrees"}
    was_scored = image and "verdict" in agrees
    of_image = "the image that was given is not the recorded one, or gave something else" if image else "no image was given (--image)"
    of_profile = "the run had no profile, or its cards are not here" if image else of_image
    of_file = [name for name in ("status", *rows.FACTS) if not (name == "sha256" and "file" in agrees)]
    predicted = [*_PROMPT] * ("prompt" not in agrees) + [*_GENERATOR] * ("generator" not in agrees)

    def of_row(names: Collection[str]) -> list[str]:
        return [f"row.{name}" for name in names if name in record["row"]]

    groups: list[tuple[Sequence[str], str]] = [
        (["signature"] if "signature" in document and not signer else [], "no key was given (--signer)"),
        (["made_at", "made_by", "found_by", "cards_here_depart"], _WRITTEN),
        ([f"run.{name}" for name in record["run"] if name != "identity"], _WRITTEN),
        (
            ["run.identity", "ensemble", *(f"detectors.{name}.card" for name in record["detectors"]), "guarantee.run"],
            "they agree with one another; the run's own directory and published cards were not looked at",
        ),
        (of_row(_PLACE), _WRITTEN),
        (of_row(_NEVER), "words, trust lists and hashes of the machine that made the run"),
        ([] if "decoding" in agrees else of_row(of_file), of_image),
        ([] if was_scored else of_row(["scores"]), of_image),
        ([] if was_scored else [f"hashes.weights.{name}" for name in record["hashes"]["weights"]], "weights were not looked at"),
        (of_row(_SEEN), "views, masks and replies are not made again"),
        (of_row(predicted), of_profile),
        (
            [] if "sentences" in agrees else ["finding", "guarantee.words", "limits", "verify"],
            "sentences of another version of Touchstone, or changed",
        ),
        ([f"hashes.{name}" for name in ("population", "references") if record["hashes"].get(name)], "that file is not in the record"),
    ]
    return [Unverified(tuple(fields), why) for fields, why in groups if fields]


def _mapping(level: Any) -> Mapping[str, Any]:
    return level if isinstance(level, Mapping) else {}


def _refuse_keys(strange: Sequence[str], record: Mapping[str, Any]) -> None:
    if strange:
        made_by = _mapping(record.get("made_by")).get("touchstone")
        message = f"it was made by Touchstone {made_by} and changed since, or that is a later version than this, {__version__}"
        raise ConfigError(f"no record has the key {', '.join(strange[:_NAMED])}", hint=message)


def _unknown_keys(document: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of keys that no record has, at the levels that are not made anew (`sections`)."""
    record = document["record"]
    row, run, named = (_mapping(record.get(name)) for name in ("row", "run", "detectors"))
    identity, of_run = _mapping(run.get("identity")), _mapping(_mapping(record.get("guarantee")).get("run"))
    if not named:
        return  # it is not whole, which other checks report
    summary, shift, unseen = run_documents.GuaranteeSummary, run_documents.ShiftSummary, run_documents.UnseenShift
    levels: list[tuple[str, Any, Collection[str]]] = [
        ("", document, (records.KIND, "sha256", "record", "signature")),
        ("signature.", document.get("signature"), ("algorithm", "key", "signature")),
        ("record.", record, _RECORD),
        ("record.made_by.", record.get("made_by"), ("touchstone", "python")),
        ("record.cards_here_depart.", record.get("cards_here_depart"), named),
        ("record.guarantee.", record.get("guarantee"), ("card", "run", "words")),
        ("record.guarantee.run.", of_run, summary.model_fields),
        ("record.guarantee.run.unseen.", of_run.get("unseen"), unseen.model_fields),
        *((f"record.guarantee.run.shifts.{at}.", one, shift.model_fields) for at, one in enumerate(of_run.get("shifts") or ())),
        ("record.row.", row, ROW),
        *((f"record.row.{name}.", row.get(name), named) for name in ("scores", "mask_area", "mask_peak", "replies")),
        *((f"record.row.views.{view}.", scores, named) for view, scores in _mapping(row.get("views")).items()),
        *((f"record.row.grounds.{at}.", one, Ground.model_fields) for at, one in enumerate(row.get(schema.GROUNDS) or ())),
        *((f"record.row.stability.{at}.", scores, named) for at, scores in enumerate(row.get("stability") or ())),
        ("record.run.", run, _RUN),
        ("record.run.verdicts.", run.get("verdicts"), ("real", "fake", "abstain")),
        ("record.run.identity.", identity, _IDENTITY),
        *((f"record.run.identity.{name}.", identity.get(name), named) for name in ("detectors", "precision")),
        ("record.run.identity.columns.", identity.get("columns"), TableColumns.model_fields),
        ("record.run.identity.container_limits.", identity.get("container_limits"), ContainerLimits.model_fields),
        ("record.run.identity.profile.", identity.get("profile"), ("describe", "identifier", "describer")),
    ]
    for path, level, known in levels:
        yield from (f"{path}{name}" for name in _mapping(level) if name not in known)


def _differing(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in (*RECORD_SECTIONS, *([PROFILE] if PROFILE in again or PROFILE in record else [])):
        yield from records.differences(again.get(name), record.get(name) if name == PROFILE else record[name], name)
    yield from records.differences(again["guarantee"]["card"], record["guarantee"]["card"], "guarantee.card")


def _grounds(record: Mapping[str, Any], device: str) -> Grounds:
    """What a record rests on, as it stands in the record."""
    detectors, run = record["detectors"], record["run"]
    ensemble = validate(record["ensemble"], EnsembleCard, where="the recorded ensemble")
    cards = {name: _restored(one["card"], one["asked_as"]) for name, one in detectors.items()}
    spec = records.spec_of(ensemble, cards, run["identity"], device=device)
    recorded = {name: one["card"] for name, one in detectors.items()}
    return Grounds(spec, record["ensemble"], recorded, record["row"], run, record["guarantee"]["run"])


def _own_card(named: str) -> DetectorCard | None:
    """This machine's card of that name; none for a URL, which a record must not make anybody fetch."""
    return None if "://" in named else readable_card(named)


def _restored(card: Mapping[str, Any], named: str) -> DetectorCard:
    """A recorded card as a card again; its weights are looked for where the card lies that an ensemble names so. Raises ConfigError."""
    again = validate(card, DetectorCard, where=f"the recorded card of {named}")
    if "://" in named:
        return again
    if (own := _own_card(named)) is not None:
        return placed_like(again, own)
    again._folder = Path(named.rpartition(":")[0] or named).resolve().parent
    return again


def _require_weights(card: DetectorCard, named: str) -> None:
    """Raises DetectorError for weights that only the record names, a stranger's perhaps, which would choose what is fetched: they must be
    on this machine, or this machine's own card of that name must have their address.
    """
    own, parts = _own_card(named), weights.parts_of(card)
    if own is not None and [part.weights for part in weights.parts_of(own)] == [part.weights for part in parts]:
        return
    for part in parts:
        if weights.located(part) is None:
            raise DetectorError(
                f"{card.name}: no weights: {part.weights.uri} is named by the record alone, so that nothing is fetched from there",
                hint=f"bring the card to where the record names it, {named}, or that file into the cache of weights",
            )


def _hashed(name: str, ours: str, theirs: str, what: str) -> EvidenceCheck:
    """Whether a hash that was computed here is the recorded one; `what` it is of."""
    if ours == theirs:
        return EvidenceCheck(name, "agrees", f"{what}: {ours}")
    return EvidenceCheck(name, "differs", f"{what} is {ours}, recorded is {theirs}")


def _same(name: str, is_same: bool, message: str) -> EvidenceCheck:
    return EvidenceCheck(name, "agrees" if is_same else "differs", message)


def _check_hashes(record: Mapping[str, Any], grounds: Grounds) -> Iterator[EvidenceCheck]:
    hashes, identity, ensemble = record["hashes"], record["run"]["identity"], grounds.spec.ensemble
    yield _hashed("run", fingerprint(identity), hashes["run"], "the fingerprint of its settings")
    yield _hashed("ensemble", digest(grounds.ensemble), hashes["ensemble"], f"the card of {ensemble.name}")
    if "decision" in identity:
        is_same = decision_facts(ensemble) == identity["decision"]
        yield _same("rule", is_same, f"the recorded rule, calibration and thresholds are {'' if is_same else 'not '}the run's")
    for name, card in grounds.spec.cards.items():
        facts, recorded = identity["detectors"].get(name, {}), hashes["weights"][name]
        if other := [*records.departures(card, facts), *([] if facts.get("weights") == recorded else ["weights"])]:
            yield EvidenceCheck(name, "differs", f"the recorded card is not what the run noted: {', '.join(other)}")
        else:
            message = f"card {hashes['detectors'][name]}, weights {recorded or 'not noted by the run'}"
            yield EvidenceCheck(name, "agrees", f"the recorded card is the run's; SHA-256: {message}")


def _check_sections(
    record: Mapping[str, Any], again: Mapping[str, Any], differing: Sequence[tuple[str, Any, Any]]
) -> Iterator[EvidenceCheck]:
    """Whether the record's sections on the row are what the row, the run and the cards in the record give."""
    made_by = record["made_by"]["touchstone"]
    # Another version may record less.
    if other := [one for one in differing if one[2] is not MISSING or made_by == __version__]:
        shown = [(key, *("nothing" if value is MISSING else json.dumps(value) for value in values)) for key, *values in other[:_NAMED]]
        lines = [f"{key}: recorded {theirs}, here {ours}" for key, ours, theirs in shown]
        yield EvidenceCheck("sections", "differs", f"not what the recorded row and cards give: {'; '.join(lines)}")
    else:
        names = [*RECORD_SECTIONS, *([PROFILE] if PROFILE in again else []), "guarantee.card"]
        yield EvidenceCheck("sections", "agrees", f"{', '.join(names)} follow from the recorded row, run and cards")
    if all(digest(again[name]) == digest(record.get(name)) for name in SENTENCES):
        yield EvidenceCheck("sentences", "agrees", "as this version of Touchstone writes them")
    elif made_by == __version__:
        yield EvidenceCheck("sentences", "differs", f"{', '.join(SENTENCES)}: this version of Touchstone would not have written them so")
    else:
        yield EvidenceCheck("sentences", "not checked", f"written by Touchstone {made_by}; this is {__version__}")


def _check_decision(record: Mapping[str, Any], grounds: Grounds) -> Iterator[EvidenceCheck]:
    row, again = record["row"], records.decide_again(grounds.spec, grounds.row, grounds.guarantee)
    for name in again.differs:
        yield EvidenceCheck("decision", "differs", f"{name}: recorded {row.get(name)!r}, from the recorded scores {again.row[name]!r}")
    if not again.differs and row["verdict"] is None:
        yield EvidenceCheck("decision", "agrees", f"none: the image has no score ({row['status']})")
    elif not again.differs:
        how = "to the last bit" if again.exact else "but for the last bits of a number"
        score = "no score" if row["score"] is None else f"score {row['score']:+.6f}"
        yield EvidenceCheck("decision", "agrees", f"{row['verdict']}, {score}: the same from the recorded detector scores, {how}")


def _check_image(record: Mapping[str, Any], spec: ScoringSpec, image: Path, accepted: Collection[str]) -> Iterator[EvidenceCheck]:
    """Compare a file with the record's and, if it is the same, score it again; loads torch and weights."""
    row = record["row"]
    try:
        with image.open("rb") as file:
            data = file.read(spec.limits.max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"--image {image}: {error.strerror}") from None
    asked = replace(spec, slots=min(spec.slots, default_slots(spec.device)))
    with closing(BatchDecoder(asked, StageClock())) as decoder:
        outcome = decoder.decode([(0, data)]).outcomes[0]
    if row["sha256"] is None or outcome.facts is None:
        yield EvidenceCheck("file", "not checked", f"the run never read the file ({row['status']}), so that no hash of it is recorded")
        return
    here = _hashed("file", outcome.facts.sha256, row["sha256"], f"SHA-256 of {image}")
    yield here
    if here.outcome == "differs":
        yield EvidenceCheck("scores", "not checked", "this is not the recorded file, so it was not scored")
        return
    yield _check_decoding(row, outcome)
    named = [name for name, score in (row["scores"] or {}).items() if score is not None and name in spec.cards]
    if outcome.status is not Status.OK or not named:
        return
    for name in named:
        _require_weights(spec.cards[name], record["detectors"][name]["asked_as"])
        licences.require_accepted(spec.cards[name], accepted)
        ours, theirs = weights_digest(spec.cards[name]), record["hashes"]["weights"][name]
        if theirs is None:
            yield EvidenceCheck(name, "not checked", f"weights here: {ours}; the run noted none")
        else:
            yield _hashed(name, ours, theirs, "weights here")
    scores = _scored_again(asked, named, data)
    for name in named:
        yield _check_score(name, scores[name], row["scores"][name], spec)
    verdict = records.decide_again(spec, row | {"scores": row["scores"] | scores}, record["guarantee"]["run"]).row["verdict"]
    yield _same("verdict", verdict == row["verdict"], f"{verdict} from the scores made here, {row['verdict']} recorded")
    yield from _check_profile(record, asked, data)


def _check_decoding(row: Mapping[str, Any], outcome: DecodeResult) -> EvidenceCheck:
    if outcome.status.value != row["status"]:
        return EvidenceCheck("decoding", "differs", f"here {outcome.status.value} ({outcome.detail}), recorded {row['status']}")
    here = outcome.facts.decoder if outcome.facts else None
    if here != row["decoder"]:
        message = f"{row['status']}, but by {here}; recorded by {row['decoder']}: pixels and scores may differ"
        return EvidenceCheck("decoding", "not checked", message)
    found = {name: records.plain(getattr(outcome.facts, name)) for name in rows.FACTS if name in row} if outcome.facts else {}
    if other := [f"{name}: here {value!r}, recorded {row[name]!r}" for name, value in found.items() if value != row[name]]:
        return EvidenceCheck("decoding", "differs", "; ".join(other))
    return EvidenceCheck("decoding", "agrees", f"{row['status']}, by {here or 'no decoder'}")


def _outputs(spec: ScoringSpec, data: bytes) -> DetectorOutputs:
    from ray_app.inference.scorer import EnsembleScorer

    clock = StageClock()
    with closing(BatchDecoder(spec, clock)) as decoder:
        return EnsembleScorer(spec, clock).score([decoder.decode([(0, data)])])


def _scored_again(spec: ScoringSpec, named: list[str], data: bytes) -> dict[str, float | None]:
    """The scores of these detectors alone, all of which score the image whatever the others' scores."""
    asked = {name: member.detector for name, member in zip(spec.cards, spec.ensemble.members, strict=True)}
    card = EnsembleCard(name="again", title="", members=tuple(EnsembleMember(detector=asked[name]) for name in named))
    alone = replace(spec, ensemble=card, cards={name: spec.cards[name] for name in named}, stability=None)
    return {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in _outputs(alone, data).scores.items()}


def _check_score(name: str, here: float | None, recorded: float, spec: ScoringSpec) -> EvidenceCheck:
    if here is None:
        return EvidenceCheck(name, "differs", f"no score here, recorded {recorded:+.6f}")
    precision = spec.precision[name]
    tolerance = TOLERANCE[precision] * max(1.0, abs(recorded))
    apart = abs(here - recorded)
    message = f"score {here:+.6f} here, {recorded:+.6f} recorded: {apart:.2g} apart, {tolerance:.2g} allowed ({precision}, {spec.device})"
    return _same(name, apart <= tolerance, message)


def _check_profile(record: Mapping[str, Any], spec: ScoringSpec, data: bytes) -> Iterator[EvidenceCheck]:
    """Whether the profile's cards on this machine, if they are the run's, predict the same for the image."""
    if not (section := record.get(PROFILE)):
        return
    try:
        identifier, describer = profile_cards(spec.ensemble, spec.cards)
    except TouchstoneError as error:
        yield EvidenceCheck("profile", "not checked", f"its cards are not on this machine: {error.message}")
        return
    is_same = {}
    for kind, card in (("identifier", identifier), ("describer", describer)):
        recorded = section["cards"].get(kind) or {}  # it may have more than the card, such as a describer's precision
        try:
            facts = {} if card is None else card.facts()  # hashes weights
        except TouchstoneError as error:
            yield EvidenceCheck(kind, "not checked", f"its weights are not on this machine: {error.message}")
            continue
        is_same[kind] = all(recorded.get(name) == fact for name, fact in facts.items())
        if not is_same[kind]:
            yield EvidenceCheck(kind, "not checked", "the card here is another than the run's")
    if identifier is not None and is_same.get("identifier") and section["generator"]:
        yield _check_generator(section["generator"], spec, identifier, data)
    if describer is not None and is_same.get("describer") and section["prompt"]:
        yield _check_prompt(section["prompt"], spec, describer, data)


def _check_generator(recorded: Mapping[str, Any], spec: ScoringSpec, card: IdentifierCard, data: bytes) -> EvidenceCheck:
    from ray_app.attribution.identifier import Identifier

    found = Identifier(card).identify(_embedding(spec, card.detector, card.embedding, data))
    code = int(found.codes[0])
    here = found.classes[code] if code >= 0 else None
    words = [name or "like no known generator" for name in (here, recorded["name"])]
    return _same("generator", here == recorded["name"], f"{words[0]} here, {words[1]} recorded")


def _check_prompt(recorded: Mapping[str, Any], spec: ScoringSpec, card: DescriberCard, data: bytes) -> EvidenceCheck:
    if card.detector is None:
        return EvidenceCheck("prompt", "not checked", f"{card.name} reads pixels; score the image again to see its words")
    from ray_app.attribution.captioners import load_describing

    here = load_describing(card).describe(_embedding(spec, card.detector, card.embedding, data))[0].text
    return _same("prompt", here == recorded["text"], f"“{here}” here")


def _embedding(spec: ScoringSpec, detector: str, facts: Mapping[str, Any], data: bytes) -> Any:
    """(1, d) float32 of the image, by one detector."""
    alone = replace(spec.limited_to([detector]), identifier=None, describer=None, features={detector: facts}, stability=None)
    return _outputs(alone, data).of(EMBEDDINGS)[detector]
