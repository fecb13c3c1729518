"""Start or join Ray, stop a session in time, and report its progress.

Start at `ray_cluster.cluster`. Importing this package does not import Ray.
"""
