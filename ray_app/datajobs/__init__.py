"""Jobs that prepare data for training and scoring.

They download images, generate images, and pack files into shards. Each job has a `touchstone data`
command.
"""
