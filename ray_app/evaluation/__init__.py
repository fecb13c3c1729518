"""Evaluate how good a run's scores are.

An evaluation joins the rows of a run with labels, and measures the scores, by the rules of a paper
if requested. The result is metrics, a table, and an HTML page. Large runs are read on Ray. The
entry point is `ray_app.evaluation.run`.
"""
