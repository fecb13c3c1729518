"""Simulated camera pictures and their repainted twins: a labelled set of formulas, for the demo, recipes and tests."""
