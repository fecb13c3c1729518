"""A record and a key of its maker's: Ed25519 (RFC 8032) by `cryptography`, keys as PEM files. Knows keys and bytes, not what a record says.

What is signed is the canonical JSON of all but the signature itself, so that neither the record nor its digest can change under it.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray_app.errors import ConfigError
from ray_app.evidence.canonical import canonical
from ray_app.evidence.checks import Check

ALGORITHM = "Ed25519"
_MAKE = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


def signed(told: Mapping[str, Any], key: Path) -> dict[str, Any]:
    """The record with the signature of a private key. Raises ConfigError for a file that is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = _read(key, lambda data: load_pem_private_key(data, None), Ed25519PrivateKey, "private")
    signature = base64.b64encode(private.sign(_message(told))).decode("ascii")
    return {**told, "signature": {"algorithm": ALGORITHM, "key": _fingerprint(private.public_key()), "signature": signature}}


def check_signature(told: Mapping[str, Any], signer: Path) -> Check:
    """Whether the holder of a public key's private one signed this record as it is. Raises ConfigError for a file that is no such key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _read(signer, load_pem_public_key, Ed25519PublicKey, "public")
    ours, said = _fingerprint(public), told.get("signature")
    if not isinstance(said, Mapping):
        return Check("signature", "differs", f"the record is not signed; {signer} is the key {ours}")
    if said.get("algorithm") != ALGORITHM or said.get("key") != ours:
        return Check("signature", "differs", f"signed by the key {said.get('key')} ({said.get('algorithm')}); {signer} is {ours}")
    try:
        public.verify(base64.b64decode(str(said.get("signature")), validate=True), _message(told))
    except (InvalidSignature, ValueError):
        return Check("signature", "differs", f"by the key {ours}, and of another record than this")
    return Check("signature", "agrees", f"by the key {ours}")


def _message(told: Mapping[str, Any]) -> bytes:
    return canonical({name: value for name, value in told.items() if name != "signature"})


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
