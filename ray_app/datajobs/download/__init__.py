"""Images that a list of urls names → files or shards with their words. Knows hosts, urls and downloads on Ray; scores nothing."""

from ray_app.datajobs.download.config import CollectConfig

__all__ = ["CollectConfig"]
