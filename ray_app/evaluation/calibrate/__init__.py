"""Calibrate an ensemble on a labelled run, so that its error rate is known.

Importing this package loads neither Ray nor torch.
"""
