"""What a worker notes of its steps (`StepLog`): their metrics, the images that they saw, and files
that could not be read.
"""

import time
from typing import Any

from ray_app.errors import TouchstoneError
from ray_app.training import file_notes, run_directory
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch, StepFigures
from ray_app.training.worker import Worker

# Before so many images were seen, the fraction of unreadable ones says nothing.
MIN_IMAGES = 200


class StepLog:
    """The notes of one worker, kept until the next checkpoint."""

    def __init__(self, job: TrainingJob, worker: Worker, first: int) -> None:
        self._job, self._worker, self._first = job, worker, first
        self._history, self._samples = (
            run_directory.HistoryWriter(job.out, folder, worker.rank)
            for folder in (run_directory.HISTORY, run_directory.SAMPLES)
        )
        self._notes = file_notes.StepNotes(job.out, job.rows("train"), worker.rank)
        self._files = file_notes.FileLog(job.out) if worker.rank == 0 else None
        self._seen = self._unreadable = 0
        self._line: dict[str, Any] = {}

    def add(
        self, batch: Batch, figures: StepFigures, precision: str, waited_s: float, began: float
    ) -> None:
        """Note a step.

        Args:
            batch: This worker's part of the images.
            figures: The metrics of the step.
            precision: The precision that the network learns in.
            waited_s: Seconds that the step waited for its batch.
            began: When the step began, on the monotonic clock.

        Raises:
            TouchstoneError: Too many images could not be read.
        """
        job = self._job
        if job.config.faults.record_samples:
            rows, ids = batch["row"].tolist(), batch["image_id"].tolist()
            self._samples.add(
                {"step": figures.step, "rank": self._worker.rank, "rows": rows, "image_ids": ids}
            )
        if not job.has_vectors:  # Otherwise images are noted when embeddings are computed.
            self._notes.add(batch, figures.step)
        self._seen += job.config.loop.batch
        self._unreadable += figures.unusable
        self._require_readable()
        if self._worker.rank == 0:
            self._add_line(figures, precision, waited_s, time.monotonic() - began)

    def _add_line(
        self, figures: StepFigures, precision: str, waited_s: float, compute_s: float
    ) -> None:
        line = {
            "step": figures.step,
            "loss": figures.loss,
            "rate": figures.rate,
            "gradient_norm": figures.gradient_norm,
            "images_per_s": self._job.config.loop.batch / (waited_s + compute_s),
            "wait_s": waited_s,
            "compute_s": compute_s,
            "unusable": figures.unusable,
            "precision": precision,
            "time": time.time(),
            **figures.parts,
        }
        self._history.add(line)
        self._line |= line
        self._worker.show(self._line)

    def show_validation(self, text: str) -> None:
        """Show the last validation, in a few words, with the last step. Called by rank 0."""
        self._line["judged"] = text
        self._worker.show(self._line)

    def _require_readable(self) -> None:
        limit = self._job.config.faults.max_bad_fraction
        enough = min(MIN_IMAGES, self._job.order.rows_per_epoch)
        if self._unreadable <= limit * self._seen or self._seen < enough:
            return
        self._notes.write(self._first)
        self._samples.write(self._first)
        examples = file_notes.join_examples(self._notes.first_unreadable)
        raise TouchstoneError(
            f"{self._unreadable:,} of {self._seen:,} training images could not be read ({self._unreadable / self._seen:.1%})"
            + (f", for example {examples}" if examples else ""),
            hint=f"repair the files that {self._job.out.url}/{run_directory.UNREADABLE}/ names, "
            f"or allow more than {limit:.1%} by --set faults.max_bad_fraction=…",
        )

    def write(self, step: int) -> None:
        """Write all notes of the steps before `step` that are not written yet."""
        self._samples.write(self._first)
        self._notes.write(self._first)
        if lines := self._history.write(self._first):
            run_directory.write_events(self._job.out, self._first, lines)
        self._first = step

    def name_files(self) -> None:
        """Name the files that any worker could not read, once. Called by rank 0."""
        assert self._files is not None, "rank 0 has the log of files"
        for text in self._files.new_lines():
            self._worker.say(text)
