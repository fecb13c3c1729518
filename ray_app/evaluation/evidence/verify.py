"""A record → what of it agrees with itself, with the image and with the detectors here, line by line (`verify_evidence`).

Without the image: the digest, the run's fingerprint, the cards against that, and the decision from the recorded scores. With it: the
file's hash, and the scores once more on this machine within a stated tolerance. `not_verified` lists what was not checked, and why, so
that nobody takes it for verified.

The signature of a record (`signed`, `check_signature`: Ed25519, RFC 8032, keys as PEM files), and the keys that it may have
(`unknown_keys`).

What is signed is the canonical JSON of all but the signature itself, so that neither the record nor its digest can change under it. What
is made anew when a record is verified is compared with that key by key (`differences`); of the rest the names stand here, so that nothing
stands in a record that no check reads.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ray_app import __version__
from ray_app.archives import ContainerLimits, TableColumns
from ray_app.config import validate
from ray_app.ensembles import EnsembleCard, decision_facts
from ray_app.errors import ConfigError, describe_error
from ray_app.evaluation.evidence.checks import (
    PROFILE,
    Decided,
    EvidenceCheck,
    alike,
    canonical,
    decide_again,
    departures,
    digest,
    hashed,
    restored_card,
    spec_of,
)
from ray_app.evaluation.evidence.record import RECORD_SECTIONS, SENTENCES, Grounds, sections
from ray_app.runs import fingerprint, rows, schema
from ray_app.scoring.guarantee import WAIVED

MISSING = object()  # in a value's place: there is no such key
_TOP = ("touchstone_evidence", "sha256", "record", "signature")
_SIGNATURE = ("algorithm", "key", "signature")
_RECORD = ("made_at", "made_by", "found_by", "cards_here_depart", "image", "decision", "detectors", "ensemble", "guarantee", "profile",
           "provenance", "limits", "row", "run", "hashes", "verify")  # fmt: skip
_MADE_BY = ("touchstone", "python")
_GUARANTEE = ("card", "run", "words")
# As `scoring.guarantee` writes them into a summary.
_OF_RUN = ("holds", "why", "unlike", "waived", "target_fpr", "confidence", "population", "images", "shifts", "decoders", "settings")
_SHIFT = ("feature", "psi", "ks", "p", "noticed", "beyond", "fakes", "images", "tells")
RUN = ("url", "created_at", "finished_at", "schema", "touchstone", "members", "verdicts", "identity")
_IDENTITY = ("source", "include", "exclude", "limit", "limits", "columns", "container_limits", "perturb", "stability", "features", WAIVED,
             "detectors", "precision", "resize", "batch_slots", "profile", "decision")  # fmt: skip
_PROFILE = ("describe", "identifier", "describer")
_VERDICTS = ("real", "fake", "abstain")
_EVERY_ROW = schema.row_schema([], pa.null(), ["any"], ["any"], views=["any"], perceptual_hash=True, second_look=True, stability=True,
                        identified=True, described=True)  # fmt: skip
ROW = tuple(_EVERY_ROW.names)
_BY_DETECTOR = ("scores", "mask_area", "mask_peak", "replies")
ALGORITHM = "Ed25519"
_MAKE = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


def unknown_keys(document: Mapping[str, Any]) -> Iterator[str]:
    """Dotted names of keys that no record has, at the levels that are not made anew."""
    record = document["record"]
    row, run, named = (_mapping(record.get(name)) for name in ("row", "run", "detectors"))
    identity, of_run = _mapping(run.get("identity")), _mapping(_mapping(record.get("guarantee")).get("run"))
    if not named:
        return  # it is not whole, which other checks report
    levels: list[tuple[str, Any, Sequence[str] | Mapping[str, Any]]] = [
        ("", document, _TOP),
        ("signature.", document.get("signature"), _SIGNATURE),
        ("record.", record, _RECORD),
        ("record.made_by.", record.get("made_by"), _MADE_BY),
        ("record.cards_here_depart.", record.get("cards_here_depart"), named),
        ("record.guarantee.", record.get("guarantee"), _GUARANTEE),
        ("record.guarantee.run.", of_run, _OF_RUN),
        *((f"record.guarantee.run.shifts.{number}.", shift, _SHIFT) for number, shift in enumerate(of_run.get("shifts") or ())),
        ("record.row.", row, ROW),
        *((f"record.row.{name}.", row.get(name), named) for name in _BY_DETECTOR),
        *((f"record.row.views.{view}.", scores, named) for view, scores in _mapping(row.get("views")).items()),
        *((f"record.row.stability.{number}.", scores, named) for number, scores in enumerate(row.get("stability") or ())),
        ("record.run.", run, RUN),
        ("record.run.verdicts.", run.get("verdicts"), _VERDICTS),
        ("record.run.identity.", identity, _IDENTITY),
        *((f"record.run.identity.{name}.", identity.get(name), named) for name in ("detectors", "precision")),
        ("record.run.identity.columns.", identity.get("columns"), tuple(TableColumns.model_fields)),
        ("record.run.identity.container_limits.", identity.get("container_limits"), tuple(ContainerLimits.model_fields)),
        ("record.run.identity.profile.", identity.get("profile"), _PROFILE),
    ]
    for path, level, known in levels:
        yield from (f"{path}{name}" for name in _mapping(level) if name not in known)


def differences(ours: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Where a part made anew is not the recorded one: the dotted name, and either's value, `MISSING` for a key that is not there.

    Last bits of numbers do not count.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in {**ours, **theirs}:
            yield from differences(ours.get(name, MISSING), theirs.get(name, MISSING), f"{path}.{name}")
    elif ours is MISSING or theirs is MISSING or not alike(ours, theirs):
        yield path, ours, theirs


def signed(document: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """The record with the signature of a private key. Raises ConfigError for a file that is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = _read(key, lambda data: load_pem_private_key(data, None), Ed25519PrivateKey, "private")
    signature = base64.b64encode(private.sign(_message(document))).decode("ascii")
    return {**document, "signature": {"algorithm": ALGORITHM, "key": _fingerprint(private.public_key()), "signature": signature}}


def check_signature(document: Mapping[str, Any], signer: Path) -> EvidenceCheck:
    """Whether the holder of a public key's private one signed this record as it is. Raises ConfigError for a file that is no such key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _read(signer, load_pem_public_key, Ed25519PublicKey, "public")
    ours, said = _fingerprint(public), document.get("signature")
    if not isinstance(said, Mapping):
        return EvidenceCheck("signature", "differs", f"the record is not signed; {signer} is the key {ours}")
    if said.get("algorithm") != ALGORITHM or said.get("key") != ours:
        return EvidenceCheck("signature", "differs", f"signed by the key {said.get('key')} ({said.get('algorithm')}); {signer} is {ours}")
    try:
        public.verify(base64.b64decode(str(said.get("signature")), validate=True), _message(document))
    except (InvalidSignature, ValueError):
        return EvidenceCheck("signature", "differs", f"by the key {ours}, and of another record than this")
    return EvidenceCheck("signature", "agrees", f"by the key {ours}")


def _mapping(level: Any) -> Mapping[str, Any]:
    return level if isinstance(level, Mapping) else {}


def _message(document: Mapping[str, Any]) -> bytes:
    return canonical({name: value for name, value in document.items() if name != "signature"})


def _fingerprint(public: Any) -> str:
    """The SHA-256 of the key's DER form, as `openssl pkey -pubin -in public.pem -outform DER | sha256sum` gives it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read(path: Path, load: Callable[[bytes], Any], kind: Any, what: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        key = load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except TypeError:
        raise ConfigError(f"{path}: a private key with a password", hint=f"openssl pkey -in {path} -out plain.pem takes it off") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, kind):
        raise ConfigError(f"{path}: no {what} {ALGORITHM} key in PEM form", hint=_MAKE)
    return key


_NAMED = 3  # differences that a line names
_PLACE = ("image_id", "uri", "member", "occurrence", "input", "attempt", "scored_at", "reused")
_FILE = ("status", *rows.FACTS)  # what decoding the image gives again
_NEVER = ("detail", "phash", "provenance")
_SAID = ("scores",)
_SEEN = ("views", schema.STABILITY, "mask_area", "mask_peak", "replies")
_PREDICTED = ("predicted_generator", *schema.IDENTIFIED, "predicted_prompt", *schema.DESCRIBED)
# The row's other columns (score, verdict, …) follow from its scores, which `decision` and `sections` check.
_NO_IMAGE = "no image was given (--image)"
_WRITTEN = "written down when the run, or the record, was made; nothing in the record could contradict it"


class Unverified(NamedTuple):
    """Fields that were not verified, by their dotted names."""

    fields: tuple[str, ...]
    why: str


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
        _refuse_keys(list(unknown_keys(document)), record)
        if signer is not None:
            yield check_signature(document, signer)
        yield hashed("record", digest(record), document["sha256"], "the SHA-256 of all that it says")
        grounds = _grounds(record, device)
        again = sections(grounds)
        _refuse_keys(list(_unknown(record, grounds, again)), record)
        checks = [*_check_hashes(record, grounds), *_check_sections(record, again)]
        checks += _check_decision(record, decide_again(grounds.spec, grounds.row, grounds.guarantee))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the record is not whole: {describe_error(error)}", hint="it was changed after it was made; make it anew"
        ) from error
    yield from checks
    if image is None:
        yield EvidenceCheck("image", "not checked", "give it with --image: then its hash is compared, and it is scored again")
        return
    from ray_app.evaluation.evidence.checks import check_image

    yield from check_image(record, grounds.spec, image, accepted)


def not_verified(document: Mapping[str, Any], checks: Sequence[EvidenceCheck], *, image: bool, signer: bool) -> list[Unverified]:
    """What `checks`, made with or without an image and a signer's key, do not cover."""
    return [Unverified(fields, why) for fields, why in _unchecked(document, checks, image=image, signer=signer) if fields]


def _refuse_keys(strange: Sequence[str], record: Mapping[str, Any]) -> None:
    if strange:
        made_by = record["made_by"].get("touchstone") if isinstance(record.get("made_by"), Mapping) else None
        message = f"it was made by Touchstone {made_by} and changed since, or that is a later version than this, {__version__}"
        raise ConfigError(f"no record has the key {', '.join(strange[:_NAMED])}", hint=message)


def _unknown(record: Mapping[str, Any], grounds: Grounds, again: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are not there where the record's parts are made anew."""
    facts = {name: card.scoring_facts | {"weights": None} for name, card in grounds.spec.cards.items()}
    noted = differences(facts, record["run"]["identity"]["detectors"], "run.identity.detectors")
    yield from (path for path, ours, _ in (*_differing(record, again), *noted) if ours is MISSING)


def _grounds(record: Mapping[str, Any], device: str) -> Grounds:
    """What a record rests on, as it stands in the record."""
    detectors, run = record["detectors"], record["run"]
    ensemble = validate(record["ensemble"], EnsembleCard, where="the recorded ensemble")
    cards = {name: restored_card(one["card"], one["asked_as"]) for name, one in detectors.items()}
    spec = spec_of(ensemble, cards, run["identity"], device=device)
    recorded = {name: one["card"] for name, one in detectors.items()}
    return Grounds(spec, record["ensemble"], recorded, record["row"], run, record["guarantee"]["run"])


def _check_hashes(record: Mapping[str, Any], grounds: Grounds) -> Iterator[EvidenceCheck]:
    hashes, identity, ensemble = record["hashes"], record["run"]["identity"], grounds.spec.ensemble
    yield hashed("run", fingerprint(identity), hashes["run"], "the fingerprint of its settings")
    yield hashed("ensemble", digest(grounds.ensemble), hashes["ensemble"], f"the card of {ensemble.name}")
    if "decision" in identity:
        same = decision_facts(ensemble) == identity["decision"]
        words = "the recorded rule, calibration and thresholds are the run's"
        yield EvidenceCheck("rule", "agrees", words) if same else EvidenceCheck("rule", "differs", words.replace("are", "are not"))
    for name, card in grounds.spec.cards.items():
        facts, weights = identity["detectors"].get(name, {}), hashes["weights"][name]
        other = [*departures(card, facts), *([] if facts.get("weights") == weights else ["weights"])]
        if other:
            yield EvidenceCheck(name, "differs", f"the recorded card is not what the run noted: {', '.join(other)}")
        else:
            message = f"card {hashes['detectors'][name]}, weights {weights or 'not noted by the run'}"
            yield EvidenceCheck(name, "agrees", f"the recorded card is the run's; SHA-256: {message}")


def _check_sections(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[EvidenceCheck]:
    """Whether the record's sections on the row are what the row, the run and the cards in the record give."""
    made_by = record["made_by"]["touchstone"]
    # Another version may record less.
    other = [one for one in _differing(record, again) if one[2] is not MISSING or made_by == __version__]
    if other:
        lines = [f"{key}: recorded {_shown(theirs)}, here {_shown(ours)}" for key, ours, theirs in other[:_NAMED]]
        yield EvidenceCheck("sections", "differs", f"not what the recorded row and cards give: {'; '.join(lines)}")
    else:
        told_of = [*RECORD_SECTIONS, *([PROFILE] if PROFILE in again else []), "guarantee.card"]
        yield EvidenceCheck("sections", "agrees", f"{', '.join(told_of)} follow from the recorded row, run and cards")
    if all(digest(again[name]) == digest(record[name]) for name in SENTENCES):
        yield EvidenceCheck("sentences", "agrees", "as this version of Touchstone writes them")
    elif made_by == __version__:
        yield EvidenceCheck("sentences", "differs", f"{', '.join(SENTENCES)}: this version of Touchstone would not have written them so")
    else:
        yield EvidenceCheck("sentences", "not checked", f"written by Touchstone {made_by}; this is {__version__}")


def _differing(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in (*RECORD_SECTIONS, *([PROFILE] if PROFILE in again or PROFILE in record else [])):
        yield from differences(again.get(name), record.get(name) if name == PROFILE else record[name], name)
    yield from differences(again["guarantee"]["card"], record["guarantee"]["card"], "guarantee.card")


def _shown(value: Any) -> str:
    return "nothing" if value is MISSING else json.dumps(value)


def _check_decision(record: Mapping[str, Any], again: Decided) -> Iterator[EvidenceCheck]:
    row = record["row"]
    if again.differs:
        for name in again.differs:
            yield EvidenceCheck("decision", "differs", f"{name}: recorded {row.get(name)!r}, from the recorded scores {again.row[name]!r}")
        return
    if row["verdict"] is None:
        yield EvidenceCheck("decision", "agrees", f"none: the image has no score ({row['status']})")
        return
    how = "to the last bit" if again.exact else "but for the last bits of a number"
    score = "no score" if row["score"] is None else f"score {row['score']:+.6f}"
    yield EvidenceCheck("decision", "agrees", f"{row['verdict']}, {score}: the same from the recorded detector scores, {how}")


def _unchecked(
    document: Mapping[str, Any], checks: Sequence[EvidenceCheck], *, image: bool, signer: bool
) -> Iterator[tuple[tuple[str, ...], str]]:
    record = document["record"]
    row, agrees = record["row"], {check.name for check in checks if check.outcome == "agrees"}
    if "signature" in document and not signer:
        yield ("signature",), "no key was given (--signer)"
    yield ("made_at", "made_by", "found_by", "cards_here_depart"), _WRITTEN
    yield tuple(f"run.{name}" for name in record["run"] if name != "identity"), _WRITTEN
    yield (
        ("run.identity", "ensemble", *(f"detectors.{name}.card" for name in record["detectors"]), "guarantee.run"),
        ("they agree with one another; the run's own directory and published cards were not looked at"),
    )
    yield _of_row(row, _PLACE), _WRITTEN
    yield _of_row(row, _NEVER), "words, trust lists and hashes of the machine that made the run"
    yield from _of_image(record, agrees, image=image)
    if "sentences" not in agrees:
        yield ("guarantee.words", "limits", "verify"), "sentences of another version of Touchstone, or changed"
    yield tuple(f"hashes.{name}" for name in ("population", "references") if record["hashes"].get(name)), "that file is not in the record"


def _of_image(record: Mapping[str, Any], agrees: Collection[str], *, image: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    row = record["row"]
    was_scored = image and "verdict" in agrees
    why = "the image that was given is not the recorded one, or gave something else" if image else _NO_IMAGE
    yield _of_row(row, [name for name in _FILE if not (name == "sha256" and "file" in agrees) and "decoding" not in agrees]), why
    yield _of_row(row, () if was_scored else _SAID), why
    yield (() if was_scored else tuple(f"hashes.weights.{name}" for name in record["hashes"]["weights"])), "weights were not looked at"
    yield _of_row(row, _SEEN), "views, masks and replies are not made again"
    predicted = [name for name in _PREDICTED if name.startswith(("prompt", "predicted_prompt"))] * ("prompt" not in agrees)
    predicted += [name for name in _PREDICTED if "generator" in name] * ("generator" not in agrees)
    yield _of_row(row, predicted), "the run had no profile, or its cards are not here" if image else why


def _of_row(row: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """Those of them that are columns of the row."""
    return tuple(f"row.{name}" for name in names if name in row)
