"""Start or join Ray, and stop a scoring session in time.

A session is one execution of a command, which may resume an earlier session. `ray_cluster.cluster`
starts or joins Ray, `shutdown` ends a session gracefully, and `progress` prints its progress.
Importing this package does not import Ray.
"""
