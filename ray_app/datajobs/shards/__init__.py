"""Members → a list, Parquet or tar shards, their bytes untouched: `pack` for any source, `filter` for a scored run without what it flags.

Decodes and scores nothing, deletes nothing. Importing it is cheap: what moves bytes is in `ray_app.datajobs.shards.run` and `.filtering`.
"""

from ray_app.datajobs.shards.plan import FilterConfig, PackConfig

__all__ = ["PackConfig", "FilterConfig"]
