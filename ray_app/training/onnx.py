"""A detector's network as an ONNX file: `export_onnx`; `onnx_parity` compares onnxruntime's logits with torch's.

The file takes prepared and normalised pixels `pixels` (N, 3, height, width) float32, N free, and gives `logits` (N, 1 or 2). What a card
says besides (resize, constants, which logit is fake) is in the file's metadata, so that it can be used without the card.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ray_app.detectors.card import DetectorCard
from ray_app.errors import ConfigError, DetectorError, said

ONNX = "model.onnx"
OPSET = 20
TOLERANCE = 1e-4  # of a logit, fp32 on a CPU

_FREE_SIDE = 256  # pixels, for the example where a card keeps sizes


def export_onnx(network: nn.Module, card: DetectorCard, path: Path) -> None:
    """Write `network`, in evaluation mode and fp32 on a CPU, to `path`: one file with its weights inside (below 2 GB), batch free.

    Raises DetectorError for a network that torch cannot export so: MaskCLIP (its mask, and texts that it keeps between calls), one
    that asks an engine, one that keeps image sizes. Raises ConfigError where the packages of the extra `onnx` are missing.
    """
    _refuse(card)
    _require("onnx", "onnxscript", "onnxruntime")
    height, width = card.preprocessing.shape or (_FREE_SIDE, _FREE_SIDE)
    example = torch.zeros(2, 3, height, width)
    try:
        with _quietly():
            program: Any = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=OPSET, input_names=["pixels"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},), verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch.export and the converter each have many of their own
        raise DetectorError(f"{card.name}: torch cannot export this network to ONNX: {said(error)}") from error
    if isinstance(program.model.graph.inputs[0].shape[0], int):
        raise DetectorError(f"{card.name}: torch exports this network for one size of batch only")
    program.model.metadata_props.update(_metadata(card))
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


def _require(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError:
            raise ConfigError(f"ONNX export needs the package {package}", hint="pip install 'touchstone[onnx]'") from None


def _metadata(card: DetectorCard) -> dict[str, str]:
    return {
        "touchstone.card": card.name,
        "touchstone.preprocessing": json.dumps(card.preprocessing.model_dump(mode="json")),
        "touchstone.output": json.dumps(card.output.model_dump(mode="json")),
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep back what the exporter says of operators of packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
