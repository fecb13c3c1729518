"""The ensemble behind HTTP: a Ray Serve application, its API `v1` and its page."""

from ray_app.serving.config import ServeConfig

__all__ = ["ServeConfig"]
