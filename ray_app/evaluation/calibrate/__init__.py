"""From a labelled run to an ensemble whose error rate is known: parts, calibrations, thresholds. Knows scores; starts no Ray, no torch."""
