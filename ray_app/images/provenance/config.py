"""Whether origin is read, and whose signatures count. The certificates are read once and travel as text."""

from pathlib import Path

from pydantic import Field

from ray_app.config import Frozen
from ray_app.errors import ConfigError

_PEM = "-----BEGIN CERTIFICATE-----"


class ProvenancePolicy(Frozen):
    """What a reader of provenance needs: the certificates (PEM text) whose C2PA signatures are trusted; None = nobody's."""

    trust_list: str | None = None


class ProvenanceConfig(Frozen):
    """Whether, and how, a file's own statements about its origin are read. They stand beside a score, never in it."""

    read: bool = Field(default=True, description="camera, generator parameters, IPTC source type, C2PA manifest")
    trust_list: str | None = Field(
        default=None, description="PEM file of certificates, or their text, whose C2PA signatures count as trusted"
    )

    def policy(self) -> ProvenancePolicy | None:
        """The policy that this asks for; None = do not read. Raises ConfigError where the trust list holds no certificates."""
        if not self.read:
            return None
        return ProvenancePolicy(trust_list=None if self.trust_list is None else _certificates(self.trust_list))


def _certificates(named: str) -> str:
    import ssl  # only where there is a list: decoder processes have none to check

    hint = "a PEM file: one or more blocks of -----BEGIN CERTIFICATE-----"
    try:
        text = named if _PEM in named else Path(named).read_text(encoding="utf-8")
        # One bad certificate would make every manifest unreadable: better said before a run than in each of its rows.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except OSError as error:
        raise ConfigError(f"provenance.trust_list: {error.strerror or error}: {named[:200]}", hint=hint) from None
    except ValueError:
        raise ConfigError(f"provenance.trust_list: no certificates in {named[:200]}", hint=hint) from None
    return text
