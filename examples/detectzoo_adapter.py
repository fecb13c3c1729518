r"""Run an image detector of DetectZoo as a callable of Touchstone.

DetectZoo: https://github.com/sadjadeb/DetectZoo

Copy this file, set NAME and OPTIONS, and add it with the Python that has the package:

    python3 -m venv zoo
    zoo/bin/pip install detectzoo PyWavelets 'setuptools<81'
    zoo/bin/pip uninstall --yes torchaudio
    touchstone detectors add callable:detectzoo_adapter:Detector --python zoo/bin/python \
        --pictures pil --scores probability --as detectzoo-safe

The package downloads its weights into `.detectzoo_data` in the current folder (or `--folder`).
State the licence of the detector's authors with `--licence`. The score of `aeroblade` is a
distance: return `score - self.detector.threshold`, and leave `--scores` out. `manifold_bias` must
be calibrated on your own images first: call its `calibrate` in `__init__`.
"""

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from detectzoo import load_detector

NAME = "safe"
"""A name of `detectzoo.list_detectors("image")`."""

OPTIONS: dict[str, Any] = {}
"""Further arguments of `detectzoo.load_detector`."""


class Detector:
    """The detector NAME.

    Touchstone creates one instance per process and calls it with batches of images.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.detector = load_detector(NAME, device=device, **OPTIONS)
        paths = [value for value in vars(self.detector).values() if isinstance(value, Path)]
        # Touchstone refuses the card once the content of these files has changed.
        self.weight_files = [
            file
            for path in paths
            for file in ([path] if path.is_file() else sorted(path.rglob("*.*")))
        ]

    def __call__(self, images: list[Any]) -> list[float]:
        """Return P(fake) of each PIL image."""
        return [self._score(image) for image in images]

    def _score(self, image: Any) -> float:
        # Some detectors draw random numbers; each image gets the same ones, whatever was scored
        # before it.
        random.seed(0)
        numpy.random.seed(0)
        torch.manual_seed(0)
        return float(self.detector.predict(image).score)
