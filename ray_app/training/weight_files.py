"""Write a network's weights as files that timm or transformers loads unchanged: `write_weights`.

The `family` of the card decides which of the two libraries it is. timm loads the files by path or
folder, transformers by folder.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ray_app.detectors.card import DetectorCard, Output, Size, Weights
from ray_app.detectors.checkpoints import write_safetensors
from ray_app.detectors.detector import BACKBONE, build_network
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.detectors.weights import hash_file
from ray_app.errors import DetectorError

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"

_MEGAPIXEL = (1000, 1000)
_PIL_FILTER = {"bilinear": 2, "bicubic": 3}


@contextmanager
def _hide_progress_bar() -> Iterator[None]:
    """Hide the progress bar of transformers."""
    import transformers  # The import takes seconds, so other networks do without it.

    was_enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def write_weights(network: nn.Module, card: DetectorCard, folder: Path) -> Weights:
    """Write `model.safetensors`, and the configuration files that timm or transformers needs.

    Tensors are written in fp32 under the names that timm or transformers itself writes. If the card
    names a backbone, its tensors are left out, because the backbone is a file of its own. The
    result is the section `weights` of the new card.
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
        write_safetensors(folder / WEIGHTS, state, {"format": "pt"})
    if card.family == "timm-classifier":
        _write_json(folder / CONFIG, _make_timm_config(card))
    config = CONFIG if card.family == "transformers-classifier" else None
    return Weights(uri=WEIGHTS, sha256=hash_file(folder / WEIGHTS), config=config)


def measure_size(card: DetectorCard) -> Size | None:
    """Count a network's parameters and tensors, and its multiply-adds for one image.

    The image has the card's input size, or one megapixel if the card keeps the size of images. The
    multiply-adds are those of convolutions and matrix products, counted without weight data (meta
    device). The result is None for a network that does not run on the meta device, such as
    MaskCLIP.
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


def list_labels(output: Output) -> tuple[str, ...]:
    """Return the name of each output of a network, in order, for its configuration file.

    If the card has labels, they are the names. Otherwise two outputs are named `real` and `fake`,
    in the order that the card defines. A single output is named `fake`, or `real` if its sign is
    reversed.
    """
    if output.labels:
        return output.labels
    if output.sign is not None:
        return ("fake",) if output.sign == 1 else ("real",)
    return ("fake", "real") if output.fake_index == 0 else ("real", "fake")


def make_processor_config(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """Return the card's preprocessing as the configuration of transformers' image processors.

    transformers 5.23 uses its torchvision backend even if the configuration asks for another one.
    If the card resizes with Pillow, `AutoImageProcessor.from_pretrained(folder, backend="pil")`
    gives the same resize. The result is None if image processors cannot do the preprocessing: a
    resize to a thumbnail, OpenCV's filter, or a crop whose `pad` is not `black`.
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


def _make_timm_config(card: DetectorCard) -> dict[str, Any]:
    """Return the configuration that timm reads in a local folder or on the hub.

    timm reads it by `local-dir:FOLDER` and `hf-hub:`. It has the labels, and the preprocessing
    unless timm cannot express it: an image that is cropped but not resized, or OpenCV's filter.
    """
    preprocessing, pretrained = (
        card.preprocessing,
        {"num_classes": card.output.logits, "label_names": list(list_labels(card.output))},
    )
    resize, crop = preprocessing.resize, preprocessing.center_crop
    if (resize.mode, crop is None) in (
        ("squash", True),
        ("short_side", False),
    ) and preprocessing.resampler != "opencv":
        side = crop or resize.size or 0
        pretrained |= {
            "input_size": [3, side, side],
            "crop_mode": "center" if crop else "squash",
            # timm rounds side / crop_pct down. A quarter of a pixel prevents a result that is one
            # pixel too small.
            "crop_pct": side / ((resize.size or side) + 0.25) if crop else 1.0,
            "interpolation": preprocessing.filter,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        }
    return {
        "architecture": card.architecture.name,
        "model_args": dict(card.architecture.arguments),
        "pretrained_cfg": pretrained,
    }


def _write_transformers(network: Any, card: DetectorCard, folder: Path) -> None:
    labels = list_labels(card.output)
    network.config.id2label = dict(enumerate(labels))
    network.config.label2id = {label: index for index, label in enumerate(labels)}
    with _hide_progress_bar():
        network.save_pretrained(folder)
    processor: Mapping[str, Any] | None = make_processor_config(card.preprocessing)
    if processor is not None:
        _write_json(folder / PROCESSOR, processor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
