"""Jobs that create or move data: downloads, generated images, and shards."""
