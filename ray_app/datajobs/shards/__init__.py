"""Pack the files of an archive into Parquet or tar shards, without changing their bytes.

A shard is a large file with many images. The entry point is
`ray_app.datajobs.shards.run.pack_archive`.
"""

from ray_app.datajobs.shards.config import PackConfig
