"""Evaluate how good a run's scores are.

The scores are joined with labels and measured, by the rules of a paper if requested. The result is
metrics, a table, and a page. Large runs are read on Ray. Start at `ray_app.evaluation.run`.
"""
