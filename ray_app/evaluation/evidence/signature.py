"""The signature of a record (`signed`, `check_signature`): Ed25519, RFC 8032, keys as PEM files.

It is of the canonical JSON of all but itself, so that neither the record nor its digest can change under it.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray_app.errors import ConfigError
from ray_app.evaluation.evidence.record import canonical

CheckOutcome = Literal["agrees", "differs", "not checked"]
ALGORITHM = "Ed25519"
_KEY_HINT = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


class EvidenceCheck(NamedTuple):
    """One thing that was looked at, and what was found."""

    name: str
    outcome: CheckOutcome
    told: str  # the name that `--verify --json` prints


def signed(document: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """The record with the signature of a private key. Raises ConfigError for a file that is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = _read_key(key, lambda data: load_pem_private_key(data, None), Ed25519PrivateKey, "private")
    signature = base64.b64encode(private.sign(_message(document))).decode("ascii")
    return {**document, "signature": {"algorithm": ALGORITHM, "key": _fingerprint(private.public_key()), "signature": signature}}


def check_signature(document: Mapping[str, Any], signer: Path) -> EvidenceCheck:
    """Whether the holder of a public key's private one signed this record as it is. Raises ConfigError for a file that is no such key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _read_key(signer, load_pem_public_key, Ed25519PublicKey, "public")
    ours, stated = _fingerprint(public), document.get("signature")
    if not isinstance(stated, Mapping):
        return EvidenceCheck("signature", "differs", f"the record is not signed; {signer} is the key {ours}")
    if stated.get("algorithm") != ALGORITHM or stated.get("key") != ours:
        by = f"signed by the key {stated.get('key')} ({stated.get('algorithm')})"
        return EvidenceCheck("signature", "differs", f"{by}; {signer} is {ours}")
    try:
        public.verify(base64.b64decode(str(stated.get("signature")), validate=True), _message(document))
    except (InvalidSignature, ValueError):
        return EvidenceCheck("signature", "differs", f"by the key {ours}, and of another record than this")
    return EvidenceCheck("signature", "agrees", f"by the key {ours}")


def _message(document: Mapping[str, Any]) -> bytes:
    return canonical({name: value for name, value in document.items() if name != "signature"})


def _fingerprint(public: Any) -> str:
    """The SHA-256 of the key's DER form, as `openssl pkey -pubin -in public.pem -outform DER | sha256sum` gives it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read_key(path: Path, load: Callable[[bytes], Any], kind: Any, what: str) -> Any:
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
        raise ConfigError(f"{path}: no {what} {ALGORITHM} key in PEM form", hint=_KEY_HINT)
    return key
