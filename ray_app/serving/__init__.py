"""Serve ensembles over HTTP: the API `v1`, its web page, and a Ray Serve application."""

from ray_app.serving.config import ServeConfig

__all__ = ["ServeConfig"]
