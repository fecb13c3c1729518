r"""Run a localizer of IMDLBenCo, with masks, as a callable of Touchstone.

IMDLBenCo: https://github.com/scu-zjz/IMDLBenCo

Copy this file, set the constants, and add it with the Python that has the package:

    touchstone detectors add callable:imdlbenco_adapter:Detector --python benco/bin/python \
        --pictures pil --scores probability --as mesorch

Images are prepared by the package's own dataset, as its test scripts do. The scripts set these
constants:

    Cat_Net, Mesorch, SparseViT     IMAGE_SIZE = 512
    MSCDI_Net, MVSSNet              IMAGE_SIZE = 512, EDGE_MASK_WIDTH = 7
    PSCC_Net                        IMAGE_SIZE = 256, EDGE_MASK_WIDTH = 7
    ObjectFormer, SPAN              IMAGE_SIZE = 224, EDGE_MASK_WIDTH = 7
    MantraNet                       IMAGE_SIZE = 512, PADS = True, EDGE_MASK_WIDTH = 7
    IML_ViT                         IMAGE_SIZE = 1024, PADS = True, EDGE_MASK_WIDTH = 7

For a model of your own, import the module that registers it before `MODELS` is read.
"""

import argparse
import random
from typing import Any

import numpy
import torch
from IMDLBenCo import MODELS, POSTFUNCS
from IMDLBenCo.datasets.abstract_dataset import AbstractDataset

NAME = "Mesorch"
"""A name of the registry `IMDLBenCo.MODELS`."""

CHECKPOINT = "mesorch.pth"
"""Weights as the package's training script saves them."""

ARGUMENTS: dict[str, Any] = {}
"""Further arguments of the model's class."""

IMAGE_SIZE = 512
PADS = False
EDGE_MASK_WIDTH: int | None = None


class Detector:
    """The model NAME.

    Touchstone creates one instance per process and calls it with batches of images.
    """

    weight_files = (CHECKPOINT,)  # Touchstone refuses the card once its content has changed.
    max_side_px = IMAGE_SIZE if PADS else None  # The card says that larger images get no score.

    def __init__(self, device: str = "cpu") -> None:
        _seed()
        self.device = device
        self.model = MODELS.get(NAME)(**ARGUMENTS)
        # The training script saves its arguments.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state.get("model", state))
        self.model.to(device).eval()
        functions = {name.lower(): function for name, function in POSTFUNCS.module_dict.items()}
        self.dataset = OneImage(
            "image", PADS, not PADS, (IMAGE_SIZE, IMAGE_SIZE), edge_width=EDGE_MASK_WIDTH,
            post_funcs=functions.get(f"{NAME.lower()}_post_func"),
        )  # fmt: skip

    def __call__(self, images: list[Any]) -> list[Any]:
        """Return `(mask, P(fake))` of each PIL image, or only the mask if the model has no label."""
        return [self._localize(image) for image in images]

    def _localize(self, image: Any) -> Any:
        if PADS and max(image.size) > IMAGE_SIZE:
            raise ValueError(
                f"{image.width} × {image.height} is more than the {IMAGE_SIZE} px that images are padded to"
            )
        _seed()
        self.dataset.img_loader = lambda path: image
        batch = torch.utils.data.default_collate([self.dataset[0]])
        with torch.no_grad():
            result = self.model(
                **{
                    key: value.to(self.device) if hasattr(value, "to") else value
                    for key, value in batch.items()
                }
            )
        mask = result["pred_mask"][0, 0]
        if PADS:
            mask = mask[: image.height, : image.width]
        label = result.get("pred_label")
        return mask if label is None else (mask, float(label.reshape(-1)[0]))


class OneImage(AbstractDataset):
    """The package's dataset for one image, which `img_loader` returns."""

    def _init_dataset_path(self, path: str) -> tuple[list[str], list[str]]:
        return [path], ["Negative"]


def _seed() -> None:
    """Give each image the same random numbers, whatever was scored before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
