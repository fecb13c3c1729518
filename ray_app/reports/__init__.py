"""What a run says to people: one HTML page, and plain tables for the terminal. Knows summaries, not how they are made."""

from ray_app.reports.plan_lines import plan_lines
from ray_app.reports.run_report import render_run_report
from ray_app.reports.tables import summary_lines, verdict_table

__all__ = ["plan_lines", "render_run_report", "summary_lines", "verdict_table"]
