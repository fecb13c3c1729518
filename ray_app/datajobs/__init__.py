"""Jobs that make or move data on Ray: downloads, generated images, shards."""
