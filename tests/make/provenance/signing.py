"""Signs pictures with C2PA manifests, by an authority made for the day; nothing is asked of any
network.
"""

import datetime
import io
from functools import cache, partial

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.make import images

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MIME = {name: f"image/{name.lower()}" for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF")}
OTHERS = {
    "HEIC": "image/heic",
    "BMP": "image/bmp",
    "JPEG2000": "image/jp2",
    "PNM": "image/x-portable-anymap",
}


class Authority:
    """A root, and a signer that it vouches for, for three days that began `age_days` and one ago.
    PEM text: `root` is a trust list, `leaf` the signer's certificate.
    """

    def __init__(self, organisation="Throwaway", age_days=0):
        root_key, self._key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        identifier = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        made = partial(_certificate, organisation, age_days)
        root = made("Root", root_key, is_root=True).add_extension(identifier, False)
        leaf = made("Signer", self._key, is_root=False).add_extension(issuer, False)
        self._chain = [
            one.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
            for one in (leaf, root)
        ]
        self.leaf, self.root = (one.decode() for one in self._chain)

    def sign(
        self, data, form="JPEG", manifest=None, ingredient=None, remote=None, embed=True, **options
    ):
        """The file with a manifest; `options` are the builder's settings."""
        return self._signed(data, form, manifest, ingredient, remote, embed, options)[0]

    def sidecar(self, data, form="JPEG", manifest=None):
        """The manifest alone, for a file next to the image."""
        return self._signed(data, form, manifest, None, None, False, {})[1]

    def _signed(self, data, form, manifest, ingredient, remote, embed, options):
        key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        info = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, b"".join(self._chain), key, None)
        how = {"thumbnail": {"enabled": False}, **options}
        settings = {"verify": {"verify_after_sign": False}, "builder": how}
        context = c2pa.Context.from_dict(settings)
        builder = c2pa.Builder(manifest or created("trainedAlgorithmicMedia"), context=context)
        mime = (MIME | OTHERS)[form]
        if ingredient is not None:
            relationship, other, *fields = ingredient
            about = {"relationship": relationship, **dict(*fields)}
            builder.add_ingredient(about, mime, io.BytesIO(other))
        if remote is not None:
            builder.set_remote_url(remote)
        if not embed:
            builder.set_no_embed()
        signed = io.BytesIO()
        store = builder.sign(c2pa.Signer.from_info(info), mime, io.BytesIO(data), signed)
        return signed.getvalue(), store


def _certificate(organisation, age_days, name, key, *, is_root):
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age_days)
    who = x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)
    subject, issuer = (
        x509.Name([who, x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, "Root")
    )
    usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
    start, end = now - datetime.timedelta(days=1), now + datetime.timedelta(days=2)
    serial = x509.random_serial_number()
    made = x509.CertificateBuilder(issuer, subject, key.public_key(), serial, start, end)
    made = made.add_extension(x509.BasicConstraints(is_root, None), True).add_extension(usage, True)
    if is_root:
        return made
    email = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    return made.add_extension(email, False)


def created(*codes, action="c2pa.created"):
    """A manifest that says how a picture was made."""
    actions = [{"action": action, "digitalSourceType": SOURCE_TYPE + code} for code in codes]
    for one in actions:
        one["softwareAgent"] = {"name": "A model"}
    return {
        "claim_generator_info": [{"name": "Throwaway", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
    }


@cache
def authority():
    """One for all tests."""
    return Authority()


@cache
def signed(form="JPEG"):
    """A small picture that says of itself that a model made it."""
    return authority().sign(images.encoded(images.photo(), form), form)


def tampered(data):
    """The same file with one bit of the picture, or of the manifest, turned."""
    changed = bytearray(data)
    changed[-20] ^= 1
    return bytes(changed)
