"""Pack the members of any source into Parquet or tar shards without changing their bytes."""

from ray_app.datajobs.shards.config import PackConfig
