"""What words an image may have been made from, by one of several means behind one interface."""

from ray_app.attribution.captioners.registry import Caption, Describer

__all__ = ["Caption", "Describer"]
