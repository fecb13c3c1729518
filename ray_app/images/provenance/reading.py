"""Bytes of one file → its Provenance: locate, read each kind of statement, put them together."""

from ray_app.images.provenance import iptc
from ray_app.images.provenance.config import ProvenancePolicy
from ray_app.images.provenance.credentials import REMOTE, CredentialsReader, unread
from ray_app.images.provenance.exif import ExifStatements, read_exif
from ray_app.images.provenance.found import Found
from ray_app.images.provenance.generators import read_generator
from ray_app.images.provenance.locating import locate
from ray_app.images.provenance.statements import Camera, ContentCredentials, Provenance
from ray_app.images.provenance.xmp import read_xmp


class ProvenanceReader:
    """Reads what files say of their origin, under one policy."""

    def __init__(self, policy: ProvenancePolicy) -> None:
        self._credentials = CredentialsReader(policy.trust_list)

    def read(self, data: bytes, format_name: str | None, *, native: bool = True) -> Provenance | None:
        """The statements of a file of a sniffed format; None where it makes none. Never raises, whatever the bytes.

        Without `native`, a C2PA manifest is noted and not looked at: for files that killed a process before.
        """
        found = locate(data, format_name)
        exif = read_exif(found.exif) if found.exif else ExifStatements()
        xmp = read_xmp(found.xmp)
        software = exif.software or found.texts.get("Software", "") or xmp.tool or iptc.program(found.iptc)
        generator = read_generator({**exif.texts, **found.texts}, software)
        credentials = self._c2pa(data, format_name, found, native=native) or (REMOTE if xmp.remote_manifest else None)
        camera = Camera(make=exif.make, model=exif.model, taken=exif.taken)
        return Provenance.of(
            camera=None if camera == _NO_CAMERA else camera,
            software=software,
            generator=generator,
            digital_source_type=xmp.source_types,
            c2pa=credentials,
        )

    def _c2pa(self, data: bytes, format_name: str | None, found: Found, *, native: bool) -> ContentCredentials | None:
        if not found.manifest_bytes or format_name is None:
            return None
        if not native:
            return unread("not read: a process died while it worked on this file")
        return self._credentials.read(data, format_name, found.manifest_bytes)


def has_manifest(data: bytes, format_name: str | None) -> bool:
    """Whether a file of a sniffed format holds a C2PA manifest store, which only native code can read."""
    return locate(data, format_name).manifest_bytes > 0


_NO_CAMERA = Camera()
