"""What a run, a training and an evaluation report: an HTML page each, and lines for the terminal."""

from ray_app.reports.evaluation.page import evaluation_lines, render_evaluation
from ray_app.reports.plan import plan_lines
from ray_app.reports.run import render_run_report
from ray_app.reports.text import summary_lines, verdict_table
from ray_app.reports.training import render_training_report, training_lines

__all__ = [
    "evaluation_lines",
    "plan_lines",
    "render_evaluation",
    "render_run_report",
    "render_training_report",
    "summary_lines",
    "training_lines",
    "verdict_table",
]
