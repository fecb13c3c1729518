"""Serve ensembles of detectors over HTTP, with a web page, on one machine or on Ray Serve."""

from ray_app.serving.config import ServeConfig

__all__ = ["ServeConfig"]
