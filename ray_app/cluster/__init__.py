"""Ray itself: starting a private one, reaching a cluster, stopping in time, tasks and their attempts. Importing it imports no Ray."""
