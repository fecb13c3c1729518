"""Estimate the error rates of a run on its whole archive, by labelling a small random sample.

`sample` draws the images that people label, and `estimate` computes the rates from the labels.
Importing this package loads neither Ray nor torch.
"""
