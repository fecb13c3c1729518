"""Calibrate an ensemble on a labelled run, so that its false-positive rate has a bound.

Importing this package loads neither Ray nor torch.
"""
