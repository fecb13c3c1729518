"""Download the images of a list of URLs as files or shards, within the limits of each host.

The entry point is `ray_app.datajobs.download.run.collect`.
"""

from ray_app.datajobs.download.config import CollectConfig
