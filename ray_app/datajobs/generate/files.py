"""Encode images as files (`encode`) with a format, quality, and subsampling (`FileStyle`).

If fakes are PNG and reals JPEG files, a detector learns the file format instead of the image
(Grommelt et al. 2024, arXiv 2403.17608). `encode` also marks files as generated, with IPTC's
DigitalSourceType in XMP (Photo Metadata Standard 2023.1).
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, PngImagePlugin

from ray_app import archives
from ray_app.datasets.index import is_index
from ray_app.runs import RunDirectory
from ray_app.storage import Fetcher, RetryPolicy, Store, urls

Mark = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
# IPTC Photo Metadata Standard 2023.1, cv.iptc.org/newscodes/digitalsourcetype.
# `ray_app.images.provenance` reads this mark.
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{mark}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True)
class FileStyle:
    """Format and quality of an image file.

    Attributes:
        format: `JPEG`, `PNG`, or `WEBP`.
        quality: 1 to 100 for JPEG and lossy WebP. None for PNG and lossless WebP.
        subsampling: Chroma subsampling of JPEG. None for other formats.
    """

    format: str
    quality: int | None = None
    subsampling: str | None = None


def make_fetcher(source: str, retry: RetryPolicy, *, allow_private: bool) -> Fetcher:
    """Return a fetcher, which reads the files that a scoring run, an index, or an archive lists.

    Args:
        source: Path or URL of the run, the index of labelled images, or the archive.
        retry: Retries of reads.
        allow_private: Whether to read from web servers that are not on the public Internet. Servers
            from which a run or an index was allowed to read when it was made are always allowed.
    """
    fetcher = archives.create_fetcher([source], retry, allow_private=allow_private)
    if source and has_manifest(source):
        fetcher.guard = fetcher.guard.merge(archives.load_guard(Store.open(source)))
    return fetcher


def has_manifest(source: str) -> bool:
    """Return whether a path or URL is a scoring run or an index of labelled images.

    Both have a manifest: the list of the files of the archive that was scored or labelled.
    """
    if "::" in source or urls.get_scheme(source) in ("http", "https"):
        return False
    return RunDirectory(Store.open(source)).exists() or is_index(source)


def encode(image: Image.Image, style: FileStyle, mark: Mark | None) -> bytes:
    """Encode an RGB image as a file whose only metadata is the mark of generated images.

    Args:
        image: The image.
        style: Format and quality of the file.
        mark: IPTC's DigitalSourceType to write. None to write no mark.
    """
    file = io.BytesIO()
    # Copy the pixels, to drop metadata that the pipeline attached.
    plain = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    plain.save(
        file, style.format, **_options(style, _XMP.format(mark=mark).encode() if mark else None)
    )
    return file.getvalue()


def _options(style: FileStyle, xmp: bytes | None) -> dict[str, Any]:
    if style.format == "PNG":
        if xmp is None:
            return {}
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return {"pnginfo": info}
    options: dict[str, Any] = {} if xmp is None else {"xmp": xmp}
    if style.format == "JPEG":
        return options | {
            "quality": style.quality or 90,
            "subsampling": style.subsampling or "4:2:0",
        }
    return options | ({"lossless": True} if style.quality is None else {"quality": style.quality})
