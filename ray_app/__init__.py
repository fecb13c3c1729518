"""Touchstone: tells which images in an archive were made or altered by a generative model.

    >>> import ray_app
    >>> ensemble = ray_app.load_ensemble("default")
    >>> ensemble.score(["photo.jpg"])[0].verdict
    'real'

Importing this package imports neither torch nor ray; `load_ensemble` and `load_detector` import torch when they are called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_app.inference.ensemble import Ensemble, Result, load_detector, load_ensemble

__version__ = "0.13.0"
__all__ = ["Ensemble", "Result", "load_detector", "load_ensemble"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ray_app.inference import ensemble

        return getattr(ensemble, name)
    raise AttributeError(f"module 'ray_app' has no attribute {name!r}")
