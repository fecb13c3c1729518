"""Run a pipeline of diffusers on one device: `LoadedPipeline` turns requests into images.

`find_model` and `fetch_model` locate and download its files. Each image has its own random number
generator on the CPU, with its own seed. Its noise therefore depends neither on the other images of
a batch nor on the device.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ray_app.datajobs.generate import config
from ray_app.datajobs.generate.requests import ImageRequest
from ray_app.detectors.weights import hash_file, is_offline
from ray_app.errors import ConfigError, DetectorError, describe_error, is_out_of_memory


@dataclass(frozen=True)
class InpaintingInput:
    """A real image, and the mask of the part to alter, both of the size of the request.

    Attributes:
        real: The image.
        mask: The mask in mode L, 255 in the part to alter.
    """

    real: Image.Image
    mask: Image.Image


@dataclass(frozen=True)
class GeneratedImage:
    """An image that a pipeline generated.

    Attributes:
        image: The image.
        blanked: Whether the pipeline's safety checker replaced the image with a black one.
    """

    image: Image.Image
    blanked: bool


@dataclass(frozen=True)
class Model:
    """Location and revision of the files of a pipeline's model.

    Attributes:
        location: A local folder, or an id on the hub.
        revision: The commit on the hub, or `sha256:…` of the files of a local folder.
        is_local: Whether `location` is a local folder.
    """

    location: str
    revision: str
    is_local: bool

    @property
    def commit(self) -> str | None:
        """Commit of the model on the hub. None if the model is local."""
        return None if self.is_local else self.revision


class LoadedPipeline:
    """The pipeline of a card on a device, with its weights and its LoRA.

    Args:
        card: The card of the pipeline.
        model: The files of its model.
        device: Device of torch, such as "cpu" or "cuda".
        precision: Number format of the weights: `bf16`, `fp16`, or `fp32`.

    Raises:
        DetectorError: If the pipeline cannot be loaded.
    """

    def __init__(
        self, card: config.PipelineCard, model: Model, *, device: str, precision: str
    ) -> None:
        import torch

        self._card = card
        kind = find_pipeline_class(card)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
        options: dict[str, Any] = (
            {} if model.is_local else {"revision": model.commit, "local_files_only": is_offline()}
        )
        try:
            _silence_libraries()
            self._pipeline = kind.from_pretrained(
                model.location, dtype=dtype, variant=card.variant, **options
            )
            _fuse(self._pipeline, card)
            self._pipeline = self._pipeline.to(device)
        # transformers, diffusers, and safetensors each raise their own types of exceptions.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise DetectorError(
                f"{card.name}: cannot load {model.location} as {card.diffusers_class}: {describe_error(error)}"
            ) from error
        self._pipeline.set_progress_bar_config(disable=True)

    def make(
        self,
        requests: Sequence[ImageRequest],
        inputs: Sequence[InpaintingInput] = (),
        *,
        steps: int,
        guidance: float,
    ) -> list[GeneratedImage]:
        """Generate an image for each request.

        Exceptions of the pipeline are passed on. `is_out_of_memory` detects those that report a
        lack of memory.

        Args:
            requests: Requests of one size.
            inputs: The real image and mask of each request, for an inpainting pipeline.
            steps: Number of denoising steps.
            guidance: Guidance scale.
        """
        import torch

        width, height = requests[0].size
        arguments: dict[str, Any] = {
            "prompt": [request.prompt.text for request in requests],
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "width": width,
            "height": height,
            **self._card.arguments,
        }
        if self._card.negative and any(request.prompt.negative for request in requests):
            arguments["negative_prompt"] = [request.prompt.negative or "" for request in requests]
        if self._card.task == "inpainting":
            arguments |= {
                "image": [source.real for source in inputs],
                "mask_image": [source.mask for source in inputs],
                "strength": self._card.strength,
            }
        with torch.inference_mode():
            out = self._pipeline(**arguments)
        blanked = getattr(out, "nsfw_content_detected", None) or [False] * len(requests)
        return [
            GeneratedImage(image, bool(is_blanked))
            for image, is_blanked in zip(out.images, blanked, strict=True)
        ]


def _fuse(pipeline: Any, card: config.PipelineCard) -> None:
    if card.lora is None:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(
            f"{card.name}: {card.diffusers_class} does not support LoRA: remove `lora` from the card"
        )
    options = {
        key: value
        for key, value in (("weight_name", card.lora.weight_name), ("revision", card.lora.revision))
        if value
    }
    pipeline.load_lora_weights(card.lora.model, local_files_only=is_offline(), **options)
    pipeline.fuse_lora(lora_scale=card.lora.scale)
    pipeline.unload_lora_weights()


def _silence_libraries() -> None:
    """Turn off progress bars and warnings on stderr, which has the progress line of the job."""
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def find_model(card: config.PipelineCard) -> Model:
    """Find the model of a pipeline card and its current revision, without its weights.

    Raises:
        DetectorError: If the model does not exist, if the hub is unreachable or denies access to
            it, or if the id on the hub is also a folder in the current folder.
    """
    folder = card.local_folder
    if folder is not None:
        return Model(str(folder), f"sha256:{hash_folder(folder)[:32]}", True)
    if card.model.startswith(("/", ".")):
        raise DetectorError(
            f"{card.name}: {card.model} is not the folder of a pipeline: it has no model_index.json",
            hint="write the folder with the method save_pretrained of the pipeline",
        )
    if Path(card.model).exists():  # Diffusers would load this folder instead of the hub's model.
        raise DetectorError(
            f"{card.name}: {card.model} is an id on the hub, but the current folder has a folder of that name",
            hint="run the command in another folder",
        )
    return Model(card.model, _find_commit(card), False)


def fetch_model(card: config.PipelineCard, model: Model) -> None:
    """Download the files of a model from the hub into the local cache, before workers need them.

    Raises:
        DetectorError: If the hub is unreachable or denies access.
    """
    if not model.is_local:
        kind = find_pipeline_class(card)
        _call_hub(
            card,
            lambda: kind.download(
                model.location,
                revision=model.commit,
                variant=card.variant,
                local_files_only=is_offline(),
            ),
        )


def find_pipeline_class(card: config.PipelineCard) -> Any:
    """Return the class of diffusers that a card names.

    Raises:
        ConfigError: If diffusers is not installed, or does not have the class.
    """
    try:
        import diffusers
    except ImportError:
        raise ConfigError(
            "diffusers is not installed", hint="run pip install 'touchstone-forensics[generate]'"
        ) from None
    kind = getattr(diffusers, card.diffusers_class, None)
    if kind is None:
        raise ConfigError(
            f"{card.name}: diffusers {diffusers.__version__} has no class {card.diffusers_class}",
            hint="upgrade diffusers: a newer version may have it",
        )
    return kind


def hash_folder(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files of a folder, sorted by path."""
    lines = [
        f"{path.relative_to(folder)} {hash_file(path)}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _find_commit(card: config.PipelineCard) -> str:
    from huggingface_hub import hf_hub_download

    path = _call_hub(
        card,
        lambda: hf_hub_download(
            card.model, "model_index.json", revision=card.revision, local_files_only=is_offline()
        ),
    )
    return Path(path).parent.name  # …/snapshots/COMMIT/model_index.json


def _call_hub(card: config.PipelineCard, request: Any) -> Any:
    try:
        return request()
    except Exception as error:  # The client of the hub passes on exceptions of its transport.
        raise DetectorError(
            f"{card.name}: cannot download {card.model} from the hub: {describe_error(error)}",
            hint=f"accept its terms at https://huggingface.co/{card.model} and set HF_TOKEN, "
            "or use a local copy with --set model=FOLDER",
        ) from error
