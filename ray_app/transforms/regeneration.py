"""Attacks by networks on this machine: `round_trip` through an autoencoder, `repainted` by a few steps of a diffusion pipeline.

A picture that went through the decoder of a generator has its traces; so laundered, a photograph may pass for generated, and a generated
picture loses what its own maker left. The weights are the user's: a folder that diffusers saved, or what is in the hub's cache; nothing is
fetched. In fp32 on the CPU, without sampling where it can be; the same on one machine with the same libraries.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ray_app.errors import describe_error
from ray_app.transforms import ops

MULTIPLE = 8  # pixels of the image to one of the latents
_MOST_SIDE = 1024  # of the longer side: an autoencoder's memory grows with the area


def weights_folder(place: str, marker: str) -> Path:
    """Return the folder of a model: a path that begins with `/`, `.` or `~`, or the hub's cached copy of that name.

    Raises LookupError, with a message for people, if there is none.
    """
    if place.startswith(("/", ".", "~")):
        folder = Path(place).expanduser().absolute()  # Workers are in another folder.
        if (folder / marker).is_file():
            return folder
        raise LookupError(f"{place} has no {marker}")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(place, local_files_only=True))
    except Exception:  # the hub's client has a family of errors for a file that is not there
        raise LookupError(
            f"the weights {place} are not on this machine (the folder of a copy can be named in a list of your own)"
        ) from None


def digest_of(folder: Path) -> str:
    """SHA-256 over the weights and settings in a folder, the start of it."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".bin", ".txt"):
            found.update(f"{path.relative_to(folder)} ".encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:32]


def round_trip(image: Image.Image, folder: str) -> Image.Image:
    """RGB through an AutoencoderKL's encoder (the mean of its posterior) and decoder, in its own size; no longer side above 1,024."""
    import torch

    network = _autoencoder(folder)
    shown = _framed(image)
    values = torch.from_numpy(np.array(shown, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        out = network.decode(network.encode(values).latent_dist.mean).sample[0]
    pixels = ((out.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8)
    return Image.fromarray(pixels)


def repainted(image: Image.Image, folder: str, strength: float, steps: int, seed: int) -> Image.Image:
    """RGB after the last `strength` of a text-free image-to-image pass: noise of `seed` is added and taken away again."""
    import torch

    pipeline = _pipeline(folder)
    generator = torch.Generator("cpu").manual_seed(seed)
    given: dict[str, Any] = {"prompt": "", "image": _framed(image), "strength": strength, "guidance_scale": 1.0, "generator": generator}
    with torch.inference_mode():
        out: Image.Image = pipeline(num_inference_steps=steps, **given).images[0]
    return out.convert("RGB")


def _framed(image: Image.Image) -> Image.Image:
    """Shrunk to what fits, and its sides brought to multiples of eight, which is what latents have."""
    width, height = ops.capped_size(image.size, _MOST_SIDE)
    return ops.resized(image, tuple(max(MULTIPLE, side // MULTIPLE * MULTIPLE) for side in (width, height)), "lanczos")  # type: ignore[arg-type]


@cache
def _autoencoder(folder: str) -> Any:
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    return _loaded(lambda: kind.from_pretrained(folder, local_files_only=True), folder).eval()


@cache
def _pipeline(folder: str) -> Any:
    from diffusers import AutoPipelineForImage2Image

    kind: Any = AutoPipelineForImage2Image
    pipeline = _loaded(lambda: kind.from_pretrained(folder, local_files_only=True, safety_checker=None), folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _loaded(load: Any, folder: str) -> Any:
    try:
        return load()
    except Exception as error:  # diffusers, transformers and safetensors each have errors of their own
        raise ValueError(f"{folder} cannot be loaded: {describe_error(error)}") from error
