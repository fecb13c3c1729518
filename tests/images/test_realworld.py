"""Pictures of cameras, programs and the web (../shared/realworld): decoded whole, and read for what
they say of themselves.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.errors import Status
from ray_app.images import ImageLimits, ImageRefused, decode_image
from tests.make.provenance.files import said

REALWORLD = Path(__file__).resolve().parents[2] / ".." / "shared" / "realworld"
LIMITS = ImageLimits()

if not REALWORLD.is_dir():
    pytest.skip("../shared/realworld is absent", allow_module_level=True)


def test_published_images_decode_as_in_pillow():
    files = [path for path in REALWORLD.rglob("*") if path.is_file() and path.suffix != ".md"]
    assert len(files) == 56
    for path in sorted(files):
        data = path.read_bytes()
        image = decode_image(data, LIMITS)
        assert image.pixels.mode == "RGB", path.name
        assert "no_content" not in image.facts.flags, path.name
        if path.suffix.lower() in (".jpg", ".jpeg"):
            with Image.open(io.BytesIO(data)) as plain:
                if plain.mode == "RGB":
                    shown = np.asarray(image.pixels)
                    np.testing.assert_array_equal(shown, np.asarray(plain), err_msg=path.name)
    with pytest.raises(ImageRefused) as caught:
        decode_image((REALWORLD / "SOURCES.md").read_bytes(), LIMITS)
    assert caught.value.status == Status.UNSUPPORTED_FORMAT


def test_published_orientation_files_have_their_orientation():
    files = sorted((REALWORLD / "orientation").glob("*.jpg"))
    assert len(files) == 18
    for path in files:
        orientation = decode_image(path.read_bytes(), LIMITS).facts.orientation
        assert orientation == max(int(path.stem[-1]), 1), path.name


def test_published_cmyk_image_is_converted_by_its_profile():
    data = (REALWORLD / "camera" / "multiple-icc-segments.jpg").read_bytes()
    image = decode_image(data, LIMITS)
    assert image.facts.flags == ("cmyk",)
    assert image.facts.icc
    with Image.open(io.BytesIO(data)) as plain:
        difference = np.asarray(plain.convert("RGB")).astype(int) - np.asarray(image.pixels)
    assert np.abs(difference).mean() > 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("camera/nikon-d5000.jpg", {"camera": {"make": "NIKON CORPORATION", "model": "NIKON D5000", "taken": "2011:03:12 15:36:11"},
                                    "software": "Adobe Bridge CS5", "ai_declared": False}),
        ("generated/00000274.png", None),
        ("provenance/mars.webp", None),
        ("provenance/sample1.png", {"camera": {"make": "Canon", "model": "Canon EOS REBEL T3", "taken": "2011:07:30 15:41:25"},
                                    "software": "Adobe Lightroom 5.3 (Macintosh)", "ai_declared": False}),
    ],
)  # fmt: skip
def test_published_images_state_their_origin(name, told):
    found = said((REALWORLD / name).read_bytes())
    assert (found and json.loads(found.row())) == told


@pytest.mark.parametrize(
    ("name", "state", "problems", "types"),
    [
        ("C.jpg", "intact", (), ("algorithmicMedia",)),
        ("CA.jpg", "intact", (), ()),
        ("E-sig-CA.jpg", "invalid", ("claimSignature.mismatch",), ()),
        ("XCA.jpg", "invalid", ("assertion.dataHash.mismatch",), ()),
        ("file_with_wrong_extension.xyz.jpg", "intact", (), ("algorithmicMedia",)),
    ],
)
def test_published_images_have_their_content_credentials(name, state, problems, types):
    found = said((REALWORLD / "provenance" / name).read_bytes()).c2pa
    assert (found.state, found.problems, found.source_types) == (state, problems, types)
    assert (found.signer, found.ai_generated) == ("C2PA Test Signing Cert", False)
