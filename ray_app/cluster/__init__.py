"""Ray: a private local one, joining a cluster, stopping in time, tasks and their attempts.
Importing it imports no Ray.
"""
