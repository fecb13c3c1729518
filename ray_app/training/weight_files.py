"""A network's weights as files that its own library loads unchanged (`write_weights`: timm by path
or folder, transformers by folder).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ray_app.detectors.card import DetectorCard, Output, Size, Weights
from ray_app.detectors.detector import BACKBONE, build_network
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.detectors.weights import file_sha256
from ray_app.errors import DetectorError

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"

_MEGAPIXEL = (1000, 1000)
_PIL_FILTER = {"bilinear": 2, "bicubic": 3}


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers."""
    import transformers  # Seconds, which networks of other libraries need not pay.

    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def write_weights(network: nn.Module, card: DetectorCard, folder: Path) -> Weights:
    """Write `model.safetensors`, and beside it what timm or transformers read first; returns what
    the card says of them.

    `network` is what `families.build_network(card)` builds. A backbone that the card names stays
    out: it is a file of its own. Tensors are written in fp32 as they are, under the names that the
    library itself writes.
    """
    if card.family == "transformers-classifier":
        _write_transformers(network, card, folder)
    else:
        shared = f"{BACKBONE}." if card.backbone is not None else None
        state = {
            key: tensor
            for key, tensor in network.state_dict().items()
            if shared is None or not key.startswith(shared)
        }
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()},
            folder / WEIGHTS,
            {"format": "pt"},
        )
    if card.family == "timm-classifier":
        _write_json(folder / CONFIG, timm_config(card))
    config = CONFIG if card.family == "transformers-classifier" else None
    return Weights(uri=WEIGHTS, sha256=file_sha256(folder / WEIGHTS), config=config)


def size_of(card: DetectorCard) -> Size | None:
    """Parameters, tensors, and multiply-adds of one image at the card's input, or of one megapixel
    where sizes are kept.

    Counted on a network without values; the multiply-adds are those of convolutions and matrix
    products. None for a network that does not run without values, as MaskCLIP does not.
    """
    height, width = card.preprocessing.shape or _MEGAPIXEL
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network = build_network(card)
            network(torch.empty(1, 3, height, width))
    except (DetectorError, RuntimeError):
        return None
    gmac = float(f"{counter.get_total_flops() / 2e9:.4g}")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Size(parameters=parameters, tensors=len(network.state_dict()), gmac=max(gmac, 1e-6))


def labels_of(output: Output) -> tuple[str, ...]:
    """The name of each logit, in the network's order: the card's own where it has them, else real
    and fake.
    """
    if output.labels:
        return output.labels
    if output.sign is not None:
        return ("fake",) if output.sign == 1 else ("real",)
    return ("fake", "real") if output.fake_index == 0 else ("real", "fake")


def processor_config(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """The card's preprocessing as transformers' image processors say it; None where they cannot.

    What they cannot: thumbnails, OpenCV's filter, a mirrored border. transformers takes its
    torchvision backend whatever the file says (5.23): where the card's resize is Pillow's,
    `AutoImageProcessor.from_pretrained(folder, backend="pil")` gives that.
    """
    resize, crop = preprocessing.resize, preprocessing.center_crop
    if (
        resize.mode == "thumbnail"
        or resize.thumbnail_first
        or preprocessing.resampler == "opencv"
        or (crop and preprocessing.pad != "black")
    ):
        return None
    sizes = {
        "squash": {"height": resize.size, "width": resize.size},
        "short_side": {"shortest_edge": resize.size},
    }
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": resize.mode != "none",
        **(
            {"size": sizes[resize.mode], "resample": _PIL_FILTER[preprocessing.filter]}
            if resize.mode != "none"
            else {}
        ),
        "do_center_crop": crop is not None,
        **({"crop_size": {"height": crop, "width": crop}} if crop is not None else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def timm_config(card: DetectorCard) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` reads, and `hf-hub:` on the
    hub: also labels and pixels' preparation.

    timm has no word for an image that is cropped and not resized, nor for OpenCV's filter: then its
    config leaves the pixels out.
    """
    preprocessing, found = (
        card.preprocessing,
        {"num_classes": card.output.logits, "label_names": list(labels_of(card.output))},
    )
    resize, crop = preprocessing.resize, preprocessing.center_crop
    if (resize.mode, crop is None) in (
        ("squash", True),
        ("short_side", False),
    ) and preprocessing.resampler != "opencv":
        side = crop or resize.size or 0
        found |= {
            "input_size": [3, side, side],
            "crop_mode": "center" if crop else "squash",
            # timm rounds side / crop_pct down: the quarter of a pixel keeps that from falling
            # short.
            "crop_pct": side / ((resize.size or side) + 0.25) if crop else 1.0,
            "interpolation": preprocessing.filter,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        }
    return {
        "architecture": card.architecture.name,
        "model_args": dict(card.architecture.arguments),
        "pretrained_cfg": found,
    }


def _write_transformers(network: Any, card: DetectorCard, folder: Path) -> None:
    labels = labels_of(card.output)
    network.config.id2label = dict(enumerate(labels))
    network.config.label2id = {label: index for index, label in enumerate(labels)}
    with _without_progress_bar():
        network.save_pretrained(folder)
    processor: Mapping[str, Any] | None = processor_config(card.preprocessing)
    if processor is not None:
        _write_json(folder / PROCESSOR, processor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
