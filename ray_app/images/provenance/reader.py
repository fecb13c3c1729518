"""`ProvenanceReader`: bytes of one file → its `Provenance`; `ProvenanceConfig` says whether it is read and which certificates are trusted.

The certificates are read once and travel as text.
"""

from PIL import Image
from pydantic import Field

from ray_app.config import Frozen
from ray_app.images.provenance import c2pa, containers, generators, metadata, statement
from ray_app.images.provenance.trust_lists import TrustList, cached_lists, own_list
from ray_app.images.provenance.watermark import read_watermark

_NO_CAMERA = statement.Camera()


class ProvenancePolicy(Frozen):
    """What a reader of provenance needs: the lists whose C2PA signers are trusted, the first that has one counts, without any, none is; and
    whether pixels are looked at for watermarks.
    """

    trust_lists: tuple[TrustList, ...] = ()
    watermarks: bool = True


class ProvenanceConfig(Frozen):
    """Whether, and how, a file's own statements about its origin are read. They stand beside a score, never in it."""

    read: bool = Field(default=True, description="camera, generator parameters, IPTC source type, C2PA manifest")
    trust_list: str | None = Field(
        default=None,
        description="PEM file of certificates, or their text, whose C2PA signatures count as trusted; `none` = no list; "
        "null = the lists that `touchstone config trust update` fetched",
    )
    watermarks: bool = Field(default=True, description="the invisible marks of generators' reference codes, in the pixels")

    def policy(self) -> ProvenancePolicy | None:
        """The policy that this asks for; None = do not read. Raises ConfigError where a trust list holds no certificates."""
        if not self.read:
            return None
        if self.trust_list is None:
            return ProvenancePolicy(trust_lists=cached_lists(), watermarks=self.watermarks)
        lists = () if self.trust_list == "none" else (own_list(self.trust_list),)
        return ProvenancePolicy(trust_lists=lists, watermarks=self.watermarks)


class ProvenanceReader:
    """Reads what files say of their origin, under one policy."""

    def __init__(self, policy: ProvenancePolicy) -> None:
        self._credentials = c2pa.CredentialsReader(policy.trust_lists)
        self._watermarks = policy.watermarks

    def read(
        self,
        data: bytes,
        format_name: str | None,
        *,
        native: bool = True,
        pixels: Image.Image | None = None,
        watermark: statement.Watermark | None = None,
    ) -> statement.Provenance | None:
        """The statements of a file of a sniffed format; None where it makes none. Never raises, whatever the bytes.

        Without `native`, a C2PA manifest is noted and not looked at: for files
        that killed a process before. A watermark is read from `pixels` (RGB), or known already as `watermark`.
        """
        found = containers.locate(data, format_name)
        if self._watermarks and pixels is not None:
            watermark = read_watermark(pixels)
        if found == containers.NOTHING and watermark is None:
            return None
        exif = metadata.read_exif(found.exif) if found.exif else metadata.ExifStatements()
        xmp = metadata.read_xmp(found.xmp)
        software = exif.software or found.texts.get("Software", "") or xmp.tool or metadata.program(found.iptc)
        generator = generators.read_generator({**exif.texts, **found.texts}, software)
        credentials = self._c2pa(data, format_name, found, native=native) or (c2pa.REMOTE if xmp.remote_manifest else None)
        camera = statement.Camera(make=exif.make, model=exif.model, taken=exif.taken)
        return statement.Provenance.of(
            camera=None if camera == _NO_CAMERA else camera,
            software=software,
            generator=generator,
            digital_source_type=xmp.source_types,
            c2pa=credentials,
            watermark=watermark if self._watermarks else None,
        )

    def _c2pa(
        self, data: bytes, format_name: str | None, found: statement.MetadataBlocks, *, native: bool
    ) -> statement.ContentCredentials | None:
        if not found.manifest_bytes or format_name is None:
            return None
        if not native:
            return c2pa.unread("not read: a process died while it worked on this file")
        return self._credentials.read(data, format_name, found.manifest_bytes)


def has_manifest(data: bytes, format_name: str | None) -> bool:
    """Whether a file of a sniffed format holds a C2PA manifest store, which only native code can read."""
    return containers.locate(data, format_name).manifest_bytes > 0
