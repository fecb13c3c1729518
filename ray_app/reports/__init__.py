"""What a run and a training say to people: one HTML page each, and plain lines for the terminal. Knows summaries, not how they are made."""

from ray_app.reports.plan_lines import plan_lines
from ray_app.reports.run_report import render_run_report
from ray_app.reports.tables import summary_lines, verdict_table
from ray_app.reports.training_report import render_training_report, training_lines

__all__ = ["plan_lines", "render_run_report", "render_training_report", "summary_lines", "training_lines", "verdict_table"]
