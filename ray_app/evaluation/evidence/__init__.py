"""One image's record: what was decided of it, on which grounds, and how to check that. Reads runs; starts no cluster."""
