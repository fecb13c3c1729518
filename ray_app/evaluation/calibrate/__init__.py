"""Fit an ensemble of detectors on a labelled run, with a threshold that bounds false positives.

The entry point is `ray_app.evaluation.calibrate.run.calibrate_run`. Importing this package loads
neither Ray nor torch.
"""
