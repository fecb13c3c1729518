"""One image's record: what was decided of it, on which grounds, and how anybody can check that. Reads runs; starts no cluster."""
