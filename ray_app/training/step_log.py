"""Record the training steps of a worker, with their metrics and unreadable files: `StepLog`."""

import time
from typing import Any

from ray_app.errors import TouchstoneError
from ray_app.training import file_notes, run_directory
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch, StepMetrics
from ray_app.training.worker import Worker

# With fewer images, the fraction of unreadable images means little.
MIN_IMAGES = 200


class StepLog:
    """Records the training steps of one worker, in memory until the next checkpoint.

    With each checkpoint, `write` stores the records in the training's directory.

    Args:
        job: The job.
        worker: The worker.
        first: The first step that is recorded.
    """

    def __init__(self, job: TrainingJob, worker: Worker, first: int) -> None:
        self._job, self._worker, self._first = job, worker, first
        self._history, self._samples = (
            run_directory.HistoryWriter(job.out, folder, worker.rank)
            for folder in (run_directory.HISTORY, run_directory.SAMPLES)
        )
        self._notes = file_notes.StepNotes(job.out, job.rows("train"), worker.rank)
        self._files = file_notes.FileLog(job.out) if worker.rank == 0 else None
        self._n_images = self._n_unreadable = 0
        self._line: dict[str, Any] = {}

    def add(
        self, batch: Batch, metrics: StepMetrics, precision: str, waited_s: float, started_at: float
    ) -> None:
        """Record a step. Rank 0 also shows its metrics on the progress line.

        Args:
            batch: This worker's part of the images.
            metrics: The metrics of the step.
            precision: The precision in which the network learns.
            waited_s: Seconds that the step waited for its batch.
            started_at: Start of the step, on the monotonic clock.

        Raises:
            TouchstoneError: The fraction of unreadable images exceeds `faults.max_bad_fraction`.
        """
        job = self._job
        if job.config.faults.record_samples:
            rows, ids = batch["row"].tolist(), batch["image_id"].tolist()
            self._samples.add(
                {"step": metrics.step, "rank": self._worker.rank, "rows": rows, "image_ids": ids}
            )
        if not job.has_vectors:  # Otherwise images are noted when embeddings are computed.
            self._notes.add(batch, metrics.step)
        self._n_images += job.config.loop.batch
        self._n_unreadable += metrics.unusable
        self._require_readable()
        if self._worker.rank == 0:
            self._add_line(metrics, precision, waited_s, time.monotonic() - started_at)

    def _add_line(
        self, metrics: StepMetrics, precision: str, waited_s: float, compute_s: float
    ) -> None:
        line = {
            "step": metrics.step,
            "loss": metrics.loss,
            "rate": metrics.rate,
            "gradient_norm": metrics.gradient_norm,
            "images_per_s": self._job.config.loop.batch / (waited_s + compute_s),
            "wait_s": waited_s,
            "compute_s": compute_s,
            "unusable": metrics.unusable,
            "precision": precision,
            "time": time.time(),
            **metrics.parts,
        }
        self._history.add(line)
        self._line |= line
        self._worker.show(self._line)

    def show_validation(self, text: str) -> None:
        """Show the result of the last validation on the progress line. Called by rank 0.

        Args:
            text: The result, see `validate.describe_last`.
        """
        self._line["judged"] = text
        self._worker.show(self._line)

    def _require_readable(self) -> None:
        limit = self._job.config.faults.max_bad_fraction
        enough = min(MIN_IMAGES, self._job.order.rows_per_epoch)
        if self._n_unreadable <= limit * self._n_images or self._n_images < enough:
            return
        self._notes.write(self._first)
        self._samples.write(self._first)
        examples = file_notes.join_examples(self._notes.first_unreadable)
        raise TouchstoneError(
            f"{self._n_unreadable:,} of {self._n_images:,} training images could not be read ({self._n_unreadable / self._n_images:.1%})"
            + (f", for example {examples}" if examples else ""),
            hint=f"repair the files that {self._job.out.url}/{run_directory.UNREADABLE}/ names, "
            f"or allow more than {limit:.1%} by --set faults.max_bad_fraction=…",
        )

    def write(self, step: int) -> None:
        """Write the records of the steps since the previous call into the training's directory.

        The records are metrics, image ids, and notes on unreadable images and odd masks. Call this
        method with each checkpoint.

        Args:
            step: The number of finished steps. The next records start at this step.
        """
        self._samples.write(self._first)
        self._notes.write(self._first)
        if lines := self._history.write(self._first):
            run_directory.write_events(self._job.out, self._first, lines)
        self._first = step

    def name_files(self) -> None:
        """Print which files could not be read, by any worker, each file once. Called by rank 0."""
        assert self._files is not None, "only rank 0 has the log of files"
        for text in self._files.new_lines():
            self._worker.say(text)
