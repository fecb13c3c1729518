"""The signature of a record (`signed`, `check_signature`: Ed25519, RFC 8032, keys as PEM files), and the keys that it may have
(`strange_keys`).

What is signed is the canonical JSON of all but the signature itself, so that neither the record nor its digest can change under it. What
is made anew when a record is verified is compared with that key by key (`differences`); of the rest the names stand here, so that nothing
stands in a record that no check reads.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_app.archives import ContainerLimits, TableColumns
from ray_app.errors import ConfigError
from ray_app.evaluation.evidence.checks import EvidenceCheck, alike, canonical
from ray_app.runs.schema import row_schema
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
_EVERY_ROW = row_schema([], pa.null(), ["any"], ["any"], views=["any"], perceptual_hash=True, second_look=True, stability=True,
                        identified=True, described=True)  # fmt: skip
ROW = tuple(_EVERY_ROW.names)
_BY_DETECTOR = ("scores", "mask_area", "mask_peak", "replies")
ALGORITHM = "Ed25519"
_MAKE = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


def strange_keys(document: Mapping[str, Any]) -> Iterator[str]:
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
