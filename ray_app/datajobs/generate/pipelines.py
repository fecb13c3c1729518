"""One pipeline of diffusers on one device: `LoadedPipeline` turns requests into images;
`find_model` and `fetch_model` locate its files.

Every image has a generator of its own on the CPU, seeded with its own seed, so its noise depends
neither on the other images of a batch nor on the device.
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
from ray_app.detectors.weights import file_sha256, is_offline
from ray_app.errors import ConfigError, DetectorError, describe_error, is_want_of_memory


@dataclass(frozen=True)
class Picture:
    """A real image and where it is to be altered (mode L, 255 inside), both of the request's size."""

    real: Image.Image
    mask: Image.Image


@dataclass(frozen=True)
class GeneratedImage:
    """An image of a pipeline, and whether the pipeline's safety checker replaced it with black."""

    image: Image.Image
    blanked: bool


@dataclass(frozen=True)
class Model:
    """What is loaded. `place`: a folder or a hub id; `revision`: the commit, or `sha256:…` over a
    folder's files.
    """

    place: str
    revision: str
    is_local: bool

    @property
    def commit(self) -> str | None:
        """The arguments for the hub's client."""
        return None if self.is_local else self.revision


class LoadedPipeline:
    """A card's pipeline with its weights, its LoRA fused. Raises DetectorError where it cannot be
    loaded.
    """

    def __init__(
        self, card: config.PipelineCard, model: Model, *, device: str, precision: str
    ) -> None:
        import torch

        self._card = card
        kind = pipeline_class(card)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
        options: dict[str, Any] = (
            {} if model.is_local else {"revision": model.commit, "local_files_only": is_offline()}
        )
        try:
            _quieten()
            self._pipeline = kind.from_pretrained(
                model.place, dtype=dtype, variant=card.variant, **options
            )
            _fuse(self._pipeline, card)
            self._pipeline = self._pipeline.to(device)
        # transformers, diffusers and safetensors each have errors of their own
        except Exception as error:
            if is_want_of_memory(error):
                raise
            raise DetectorError(
                f"{card.name}: cannot load {model.place} as {card.diffusers_class}: {describe_error(error)}"
            ) from error
        self._pipeline.set_progress_bar_config(disable=True)

    def make(
        self,
        requests: Sequence[ImageRequest],
        pictures: Sequence[Picture] = (),
        *,
        steps: int,
        guidance: float,
    ) -> list[GeneratedImage]:
        """A picture for each request of one size, in their order; an inpainting pipeline takes as
        many `pictures`.

        Raises whatever the pipeline raises; `is_want_of_memory` says whether it lacked memory.
        """
        import torch

        width, height = requests[0].size
        given: dict[str, Any] = {
            "prompt": [request.prompt.text for request in requests],
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "width": width,
            "height": height,
            **self._card.arguments,
        }
        if self._card.negative and any(request.prompt.negative for request in requests):
            given["negative_prompt"] = [request.prompt.negative or "" for request in requests]
        if self._card.task == "inpainting":
            given |= {
                "image": [one.real for one in pictures],
                "mask_image": [one.mask for one in pictures],
                "strength": self._card.strength,
            }
        with torch.inference_mode():
            out = self._pipeline(**given)
        blanked = getattr(out, "nsfw_content_detected", None) or [False] * len(requests)
        return [
            GeneratedImage(image, bool(is_blanked))
            for image, is_blanked in zip(out.images, blanked, strict=True)
        ]


def _fuse(pipeline: Any, card: config.PipelineCard) -> None:
    if card.lora is None:
        return
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(f"{card.name}: {card.diffusers_class} takes no LoRA")
    options = {
        key: value
        for key, value in (("weight_name", card.lora.weight_name), ("revision", card.lora.revision))
        if value
    }
    pipeline.load_lora_weights(card.lora.model, local_files_only=is_offline(), **options)
    pipeline.fuse_lora(lora_scale=card.lora.scale)
    pipeline.unload_lora_weights()


def _quieten() -> None:
    """No bars and no remarks on stderr, where the progress line of a run stands."""
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def find_model(card: config.PipelineCard) -> Model:
    """The card's model as it is now. Raises DetectorError: not there, or the hub refuses."""
    folder = card.local_folder
    if folder is not None:
        return Model(str(folder), f"sha256:{folder_digest(folder)[:32]}", True)
    if card.model.startswith(("/", ".")):
        raise DetectorError(
            f"{card.name}: {card.model} is no folder of a pipeline: it has no model_index.json",
            hint="save_pretrained makes one",
        )
    if Path(card.model).exists():  # Diffusers would load the folder.
        raise DetectorError(
            f"{card.name}: {card.model} is a name on the hub, and the current folder has a folder of that name",
            hint="start the command in another folder",
        )
    return Model(card.model, _commit(card), False)


def fetch_model(card: config.PipelineCard, model: Model) -> None:
    """Bring the files of a hub's commit into this machine's cache, once, before workers ask for
    them. Raises DetectorError.
    """
    if not model.is_local:
        kind = pipeline_class(card)
        _on_hub(
            card,
            lambda: kind.download(
                model.place,
                revision=model.commit,
                variant=card.variant,
                local_files_only=is_offline(),
            ),
        )


def pipeline_class(card: config.PipelineCard) -> Any:
    """The class of diffusers that the card names. Raises ConfigError."""
    try:
        import diffusers
    except ImportError:
        raise ConfigError(
            "generating needs diffusers", hint="pip install 'touchstone-forensics[generate]'"
        ) from None
    kind = getattr(diffusers, card.diffusers_class, None)
    if kind is None:
        raise ConfigError(
            f"{card.name}: diffusers {diffusers.__version__} has no {card.diffusers_class}",
            hint="a newer diffusers may have it",
        )
    return kind


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files of a folder, whatever their order on disk."""
    lines = [
        f"{path.relative_to(folder)} {file_sha256(path)}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _commit(card: config.PipelineCard) -> str:
    from huggingface_hub import hf_hub_download

    found = _on_hub(
        card,
        lambda: hf_hub_download(
            card.model, "model_index.json", revision=card.revision, local_files_only=is_offline()
        ),
    )
    return Path(found).parent.name  # …/snapshots/COMMIT/model_index.json


def _on_hub(card: config.PipelineCard, ask: Any) -> Any:
    try:
        return ask()
    except Exception as error:  # the hub's client lets through whatever its transport raises
        raise DetectorError(
            f"{card.name}: cannot have {card.model} from the hub: {describe_error(error)}",
            hint=f"its terms may have to be accepted at https://huggingface.co/{card.model} with HF_TOKEN set; "
            "--set model=FOLDER takes a copy on this machine",
        ) from error
