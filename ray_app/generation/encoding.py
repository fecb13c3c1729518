"""A picture → the bytes of a file, stored as it was drawn and marked as generated. Knows Pillow's encoders and IPTC's words.

The mark is IPTC's DigitalSourceType in XMP (IPTC Photo Metadata Standard 2023.1; cv.iptc.org/newscodes/digitalsourcetype).
`ray_app.images.provenance` reads it back.
"""

import io
from typing import Any, Literal

from PIL import Image, PngImagePlugin

from ray_app.generation.looks import Look

Mark = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
_SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/{mark}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def encode(image: Image.Image, look: Look, mark: Mark | None) -> bytes:
    """An RGB picture as a file that looks so; `mark` None writes none, and never is anything else written beside the pixels."""
    file = io.BytesIO()
    plain = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())  # without whatever a pipeline attached
    plain.save(file, look.format, **_options(look, _XMP.format(mark=mark).encode() if mark else None))
    return file.getvalue()


def _options(look: Look, xmp: bytes | None) -> dict[str, Any]:
    if look.format == "PNG":
        if xmp is None:
            return {}
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return {"pnginfo": info}
    told: dict[str, Any] = {} if xmp is None else {"xmp": xmp}
    if look.format == "JPEG":
        return told | {"quality": look.quality or 90, "subsampling": _SUBSAMPLINGS[look.subsampling or "4:2:0"]}
    return told | ({"lossless": True} if look.quality is None else {"quality": look.quality})
