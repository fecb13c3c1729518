"""Estimate the error rates of a run on its whole archive from people's labels of a few images.

Importing this package loads neither Ray nor torch.
"""
