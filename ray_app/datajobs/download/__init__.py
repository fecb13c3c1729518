"""Images that a list of urls names → files or shards with their columns: downloads on Ray, within
each host's limits.
"""

from ray_app.datajobs.download.config import CollectConfig
