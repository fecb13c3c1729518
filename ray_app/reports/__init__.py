"""What a run, a training and an evaluation report: an HTML page each, and lines for the terminal."""

from ray_app.reports.plan import plan_lines
from ray_app.reports.run import render_run_report
from ray_app.reports.text import summary_lines, verdict_table

__all__ = ["plan_lines", "render_run_report", "summary_lines", "verdict_table"]
