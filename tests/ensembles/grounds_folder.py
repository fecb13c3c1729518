"""A folder with one file of each ground of a finding, made at run time. `python -m
tests.ensembles.grounds_folder FOLDER` for a look.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.make.images import encoded
from tests.make.provenance.files import IPTC, camera_exif, xmp
from tests.make.provenance.marking import SDXL, marked_photo
from tests.make.provenance.signing import Authority, authority, created, signed, tampered

AI = "trainedAlgorithmicMedia"
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"steps": 20, "sampler_name": "euler", "seed": 7, "positive": ["6", 0]},
    },
    "4": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a harbour in the morning"}},
}
# The findings by the ensemble `tiny`, where the signers of `authority()` are trusted.
FINDINGS = {
    "camera-signed-and-flagged.jpg": "camera, signed by Throwaway",
    "camera-signed.jpg": "camera, signed by Throwaway",
    "camera.jpg": "no evidence found",
    "comfyui.png": "says that ComfyUI made it",
    "flagged.jpg": "flagged by detectors",
    "iptc.jpg": "says that a model made it",
    "left-open.jpg": "left open",
    "marked-and-saved-again.jpg": f"carries the watermark of {SDXL.of}",
    "nothing.jpg": "no evidence found",
    "signed-by-a-stranger.jpg": "made by AI, signed by Stranger (valid, signer unknown)",
    "signed-then-changed.jpg": "says that Throwaway 1 made it",
    "signed.jpg": "made by AI, signed by Throwaway",
}


def write_grounds(folder: Path) -> str:
    """Write the files; returns the trust list (PEM)."""
    plain, notes = encoded(picture(6), "JPEG", quality=92), _texts(prompt=json.dumps(GRAPH))
    declared = xmp(f'e:DigitalSourceType="{IPTC}{AI}"')
    files = {
        "camera-signed-and-flagged.jpg": authority().sign(
            encoded(picture(0), "JPEG", quality=92), manifest=created("digitalCapture")
        ),
        "camera-signed.jpg": authority().sign(plain, manifest=created("digitalCapture")),
        "camera.jpg": encoded(picture(6), "JPEG", quality=92, exif=camera_exif()),
        "comfyui.png": encoded(picture(6), "PNG", pnginfo=notes),
        "flagged.jpg": encoded(picture(0), "JPEG", quality=92),
        "iptc.jpg": encoded(picture(6), "JPEG", quality=92, xmp=declared),
        "left-open.jpg": encoded(picture(3), "JPEG", quality=92),
        "marked-and-saved-again.jpg": encoded(marked_photo(), "JPEG", quality=95, subsampling=0),
        "nothing.jpg": plain,
        "signed-by-a-stranger.jpg": Authority("Stranger").sign(plain),
        "signed-then-changed.jpg": tampered(signed()),
        "signed.jpg": authority().sign(plain),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert files.keys() == FINDINGS.keys()
    return authority().root


def picture(noise: float) -> Image.Image:
    """Soft shapes, which the ensemble `tiny` flags; with noise of 3 levels it leaves them open, of
    6 it finds nothing.
    """
    random = np.random.default_rng(0)
    shapes = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        (np.asarray(shapes) + random.normal(0, noise, (240, 320, 3))).clip(0, 255).astype(np.uint8)
    )


def _texts(**texts: str) -> PngInfo:
    notes = PngInfo()
    for key, text in texts.items():
        notes.add_text(key, text)
    return notes


if __name__ == "__main__":
    Path(sys.argv[1] + ".pem").write_text(write_grounds(Path(sys.argv[1])))
