"""Members → a list, Parquet or tar shards, their bytes untouched: `pack` for any source, `filter` for a scored run without what it flags.

Decodes and scores nothing, deletes nothing. Importing it is cheap: what moves bytes is in `ray_app.packing.pack` and `.filtering`.
"""

from ray_app.packing.config import FilterConfig, PackConfig

__all__ = ["PackConfig", "FilterConfig"]
