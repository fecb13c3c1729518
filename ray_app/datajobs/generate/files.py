"""How files are stored (`FileStyle`: format, quality, subsampling), and written so (`encode`).

If fakes are PNG and reals JPEG, a detector learns the file and not the picture (specs/detectors.md
§12; Grommelt et al. 2024, arXiv 2403.17608). `encode` marks files as generated: IPTC's
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
# IPTC Photo Metadata Standard 2023.1, cv.iptc.org/newscodes/digitalsourcetype;
# `ray_app.images.provenance` reads it back.
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
    """One way to store an image.

    `quality` 1 … 100 of JPEG and lossy WebP, None of PNG and lossless WebP; `subsampling` of JPEG
    alone.
    """

    format: str
    quality: int | None = None
    subsampling: str | None = None


def fetcher_for(place: str, retry: RetryPolicy, *, allow_private: bool) -> Fetcher:
    """What reads the files of a run, an index or an archive, as those who listed them were allowed
    to.
    """
    found = archives.fetcher_of([place], retry, allow_private=allow_private)
    if place and has_manifest(place):
        found.guard = found.guard.joined(archives.guard_of(Store.open(place)))
    return found


def has_manifest(place: str) -> bool:
    """Whether it is a run or an index."""
    if "::" in place or urls.scheme_of(place) in ("http", "https"):
        return False
    return RunDirectory(Store.open(place)).exists() or is_index(place)


def encode(image: Image.Image, style: FileStyle, mark: Mark | None) -> bytes:
    """An RGB picture as a file of this style; `mark` None writes none, and never is anything else
    written beside the pixels.
    """
    file = io.BytesIO()
    # without whatever a pipeline attached
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
    facts: dict[str, Any] = {} if xmp is None else {"xmp": xmp}
    if style.format == "JPEG":
        return facts | {"quality": style.quality or 90, "subsampling": style.subsampling or "4:2:0"}
    return facts | ({"lossless": True} if style.quality is None else {"quality": style.quality})
