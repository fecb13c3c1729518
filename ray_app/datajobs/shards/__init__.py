"""Members → a list, Parquet or tar shards, bytes untouched: `pack` for any source, `filter` for a run without what it flags."""

from ray_app.datajobs.shards.config import FilterConfig, PackConfig
