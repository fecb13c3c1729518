"""Detectors that are functions of a module `strange`."""

import numpy as np

from ray_app.detectors.callables.addition import CallableAddition, add_callable


def added(folder, function, **options):
    """Add `strange:FUNCTION` of this folder, and return its card."""
    addition = CallableAddition(f"strange:{function}", folder=folder, licence="own", **options)
    return add_callable(addition).card


def card_path(folder, name):
    return folder / "config" / "detectors" / f"{name}.yaml"


def of_width(*widths):
    return [np.full((20, width, 3), 7, np.uint8) for width in widths]
