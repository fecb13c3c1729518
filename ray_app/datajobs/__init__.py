"""Jobs that create or move data: download images, generate images, and pack files into shards."""
