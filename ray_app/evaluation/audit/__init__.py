"""Estimate error rates for a whole archive from labels of a few images, or from known reals.

Importing this package loads neither Ray nor torch.
"""
