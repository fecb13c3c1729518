"""A process that decodes and prepares: encoded bytes in, prepared tensors out, the raw pixels stay. Started by `isolated` alone.

Speaks the protocol of `images.child`. Its request: the length of a JSON `Wanted` (uint32), the JSON, the file. Its pixels: one
tensor after another. Runs as a file, not as a module of `inference`, whose other modules bring Arrow: it must be up soon and stay small.
"""

import resource
import struct
import sys
import time
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ray_app.config import Frozen
from ray_app.detectors.preprocessing import Preprocessing, Resize, ResizeMode
from ray_app.errors import InputError
from ray_app.images.decode import decode_image
from ray_app.images.facts import ImageRefused
from ray_app.images.limits import ImageLimits
from ray_app.images.memory import Admit
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader
from ray_app.images.sandbox_child import Answer, DecodeRefusal, Report, serve

WANTED_SIZE = struct.Struct("<I")
_STATM = Path("/proc/self/statm")


class DecodeRequest(Frozen):
    """What is to be made of a file: one tensor per preprocessing, but for those that keep sizes; and how its provenance is read."""

    preprocessings: tuple[Preprocessing, ...]
    resize: ResizeMode
    provenance: ProvenancePolicy | None = None
    native: bool = True

    @property
    def shapes(self) -> tuple[tuple[int, int, int] | None, ...]:
        """(height, width, 3) of each; None where the size is kept."""
        return tuple((*each.shape, 3) if each.shape else None for each in self.preprocessings)

    @property
    def needs_torch(self) -> bool:
        """Whether torch may resize one of them: importing it takes longer than an image may."""
        return any(each.resampler == "torch" or self.resize == "fast" for each in self.preprocessings)


def main(arguments: list[str]) -> None:
    """Serve until stdin closes. Arguments: memory beyond the libraries in bytes, wall limit in s, ImageLimits as JSON, `torch` or ``."""
    limits = ImageLimits.model_validate_json(arguments[2])
    if arguments[3] == "torch":
        squash = Resize(mode="squash", size=2)
        Preprocessing(resize=squash, resampler="torch").prepare(Image.new("RGB", (4, 4)))
    serve(lambda request, admit: _answer(request, limits, admit), _mapped_bytes() + int(arguments[0]), float(arguments[1]))


def _answer(request: bytes, limits: ImageLimits, admit: Admit) -> Answer:
    started = time.perf_counter()
    start = WANTED_SIZE.size + WANTED_SIZE.unpack_from(request)[0]
    wanted = _wanted(request[WANTED_SIZE.size : start])
    data = request[start:]
    try:
        image = decode_image(data, limits, admit)
    except ImageRefused as refusal:
        return Report(facts=refusal.facts, refused=DecodeRefusal.of(refusal)), ()
    try:
        tensors = [each.prepare(image.pixels, wanted.resize) for each in wanted.preprocessings if each.shape]
    except InputError as refusal:
        return Report(facts=image.facts, refused=DecodeRefusal.of(refusal)), ()
    provenance = None if wanted.provenance is None else _reader(wanted.provenance).read(data, image.facts.format, native=wanted.native)
    seconds = time.perf_counter() - started
    return Report(facts=image.facts, provenance=provenance, seconds=seconds), [tensor.data.cast("B") for tensor in tensors]


@lru_cache(maxsize=16)
def _wanted(text: bytes) -> DecodeRequest:
    return DecodeRequest.model_validate_json(text)


@lru_cache(maxsize=1)
def _reader(policy: ProvenancePolicy) -> ProvenanceReader:
    return ProvenanceReader(policy)


def _mapped_bytes() -> int:
    """Address space that the libraries take: torch for CUDA reserves gigabytes of it."""
    return int(_STATM.read_text().split()[0]) * resource.getpagesize() if _STATM.exists() else 0


if __name__ == "__main__":
    main(sys.argv[1:])
