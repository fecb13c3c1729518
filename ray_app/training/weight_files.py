"""A network's weights as files that its own library loads unchanged (`write_weights`: timm by path or folder, transformers by folder), and
as an ONNX file (`export_onnx`; `onnx_parity` compares onnxruntime's logits with torch's).

The ONNX file takes prepared and normalised pixels `pixels` (N, 3, height, width) float32, N free, and gives `logits` (N, 1 or 2). What a
card says besides (resize, constants, which logit is fake) is in its metadata, so that it can be used without the card.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ray_app.detectors.card import DetectorCard, Output, Size, Weights
from ray_app.detectors.detector import BACKBONE, build_network
from ray_app.detectors.files_by_hash import file_sha256
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.errors import ConfigError, DetectorError, describe_error

WEIGHTS, CONFIG, PROCESSOR, ONNX = "model.safetensors", "config.json", "preprocessor_config.json", "model.onnx"
OPSET = 20
TOLERANCE = 1e-4  # of a logit, fp32 on a CPU

_FREE_SIDE = 256  # pixels, for the example where a card keeps sizes
_MEGAPIXEL = (1000, 1000)
_PIL_FILTER = {"bilinear": 2, "bicubic": 3}


def export_onnx(network: nn.Module, card: DetectorCard, path: Path) -> None:
    """Write `network`, in evaluation mode and fp32 on a CPU, to `path`: one file with its weights inside (below 2 GB), batch free.

    Raises DetectorError for a network that torch cannot export so: MaskCLIP (its mask, and texts that it keeps between calls), one
    that asks an engine, one that keeps image sizes. Raises ConfigError where the packages of the extra `onnx` are missing.
    """
    _refuse(card)
    height, width = card.preprocessing.shape or (_FREE_SIDE, _FREE_SIDE)
    example = torch.zeros(2, 3, height, width)
    try:
        with _quietly():
            program: Any = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=OPSET, input_names=["pixels"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},), verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch.export and the converter each have many of their own
        raise DetectorError(f"{card.name}: torch cannot export this network to ONNX: {describe_error(error)}") from error
    if isinstance(program.model.graph.inputs[0].shape[0], int):
        raise DetectorError(f"{card.name}: torch exports this network for one size of batch only")
    described = {"touchstone.preprocessing": card.preprocessing, "touchstone.output": card.output}
    program.model.metadata_props.update({name: json.dumps(one.model_dump(mode="json")) for name, one in described.items()})
    program.model.metadata_props["touchstone.card"] = card.name
    program.save(str(path), external_data=False)


def onnx_parity(network: nn.Module, card: DetectorCard, path: Path) -> float:
    """The largest difference between a logit of `network` and of the file, over batches of 1 and 3 seeded random images.

    Raises DetectorError where it is over 1e-4 (of 1, or of the logit where that is larger).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng([6, 2])
    height, width = card.preprocessing.shape or (_FREE_SIDE, _FREE_SIDE)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.preprocessing.mean, card.preprocessing.std))
    worst = 0.0
    for count in (1, 3):
        pixels = ((rng.random((count, 3, height, width), dtype=np.float32) - mean) / std).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixels)).numpy()
        found = session.run(["logits"], {"pixels": pixels})[0]
        if found.shape != expected.shape:
            raise DetectorError(f"{card.name}: {path.name} gives {found.shape} for {count} images, torch {expected.shape}")
        worst = max(worst, float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max()))
    if not worst <= TOLERANCE:
        raise DetectorError(f"{card.name}: {path.name} and torch differ by {worst:.2g} in a logit, more than {TOLERANCE:g}")
    return worst


def _refuse(card: DetectorCard) -> None:
    why = None
    if card.masks:
        why = "it gives a mask beside its logits and keeps the texts' features between calls"
    elif card.replies:
        why = "it answers in words"
    elif card.preprocessing.shape is None:
        why = "it keeps the size of every image, for which no single file is made"
    if why:
        raise DetectorError(f"{card.name}: not exported to ONNX: {why}", hint="export.onnx: false")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise ConfigError(f"ONNX export needs the package {package}", hint="pip install 'touchstone-forensics[onnx]'")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what exporters say of operators of packages that are not there, and bars for the one file that is written in one go."""
    logger, shown = logging.getLogger("torch.onnx"), transformers.utils.logging.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def write_weights(network: nn.Module, card: DetectorCard, folder: Path) -> Weights:
    """Write `model.safetensors`, and beside it what timm or transformers read first; returns what the card says of them.

    `network` is what `families.build_network(card)` builds. A backbone that the card names stays out: it is a file of its own.
    Tensors are written in fp32 as they are, under the names that the library itself writes.
    """
    if card.family == "transformers-classifier":
        _write_transformers(network, card, folder)
    else:
        shared = f"{BACKBONE}." if card.backbone is not None else None
        state = {key: tensor for key, tensor in network.state_dict().items() if shared is None or not key.startswith(shared)}
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    if card.family == "timm-classifier":
        _write_json(folder / CONFIG, timm_config(card))
    config = CONFIG if card.family == "transformers-classifier" else None
    return Weights(uri=WEIGHTS, sha256=file_sha256(folder / WEIGHTS), config=config)


def size_of(card: DetectorCard) -> Size | None:
    """Parameters, tensors, and multiply-adds of one image at the card's input, or of one megapixel where sizes are kept.

    Counted on a network without values; the multiply-adds are those of convolutions and matrix products. None for a network that does
    not run without values, as MaskCLIP does not.
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
    """The name of each logit, in the network's order: the card's own where it has them, else real and fake."""
    if output.labels:
        return output.labels
    if output.sign is not None:
        return ("fake",) if output.sign == 1 else ("real",)
    return ("fake", "real") if output.fake_index == 0 else ("real", "fake")


def processor_config(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """The card's preprocessing as transformers' image processors say it; None where they cannot.

    What they cannot: thumbnails, OpenCV's filter, a mirrored border. transformers takes its torchvision backend whatever the file says
    (5.23): where the card's resize is Pillow's, `AutoImageProcessor.from_pretrained(folder, backend="pil")` gives that.
    """
    resize, crop = preprocessing.resize, preprocessing.center_crop
    if (
        resize.mode == "thumbnail"
        or resize.thumbnail_first
        or preprocessing.resampler == "opencv"
        or (crop and preprocessing.pad != "black")
    ):
        return None
    sizes = {"squash": {"height": resize.size, "width": resize.size}, "short_side": {"shortest_edge": resize.size}}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": resize.mode != "none",
        **({"size": sizes[resize.mode], "resample": _PIL_FILTER[preprocessing.filter]} if resize.mode != "none" else {}),
        "do_center_crop": crop is not None,
        **({"crop_size": {"height": crop, "width": crop}} if crop is not None else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def timm_config(card: DetectorCard) -> dict[str, Any]:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` reads, and `hf-hub:` on the hub: also labels and pixels' preparation.

    timm has no word for an image that is cropped and not resized, nor for OpenCV's filter: then its config leaves the pixels out.
    """
    preprocessing, found = card.preprocessing, {"num_classes": card.output.logits, "label_names": list(labels_of(card.output))}
    resize, crop = preprocessing.resize, preprocessing.center_crop
    if (resize.mode, crop is None) in (("squash", True), ("short_side", False)) and preprocessing.resampler != "opencv":
        side = crop or resize.size or 0
        found |= {
            "input_size": [3, side, side],
            "crop_mode": "center" if crop else "squash",
            # timm rounds side / crop_pct down: the quarter of a pixel keeps that from falling short.
            "crop_pct": side / ((resize.size or side) + 0.25) if crop else 1.0,
            "interpolation": preprocessing.filter,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        }
    return {"architecture": card.architecture.name, "model_args": dict(card.architecture.arguments), "pretrained_cfg": found}


def _write_transformers(network: Any, card: DetectorCard, folder: Path) -> None:
    labels = labels_of(card.output)
    network.config.id2label = dict(enumerate(labels))
    network.config.label2id = {label: index for index, label in enumerate(labels)}
    with _quietly():
        network.save_pretrained(folder)
    processor: Mapping[str, Any] | None = processor_config(card.preprocessing)
    if processor is not None:
        _write_json(folder / PROCESSOR, processor)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
