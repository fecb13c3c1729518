"""From a labelled run to an ensemble whose error rate is known: parts, calibrations, thresholds. No
Ray, no torch.
"""
