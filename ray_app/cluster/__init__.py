"""Start or join Ray for a command, print its progress, and stop it gracefully.

`ray_cluster.cluster` starts or joins Ray, `progress` prints the progress of a command, and
`shutdown` lets a scoring run commit its running work before it stops. Importing this package does
not import Ray.
"""
