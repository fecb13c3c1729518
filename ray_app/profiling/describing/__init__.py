"""What words an image may have been made from, by one of several means behind one interface."""

from ray_app.profiling.describing.described import Described, Describer

__all__ = ["Described", "Describer"]
