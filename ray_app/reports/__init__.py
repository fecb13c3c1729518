"""Reports of runs, trainings, and evaluations: HTML pages, and lines for the terminal."""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.reports.plan import plan_lines
    from ray_app.reports.run import render_run_report
    from ray_app.reports.text import summary_lines, verdict_table
else:
    __getattr__ = on_first_use(__name__)
