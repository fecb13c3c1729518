"""The training loop: a function of the job, the same in one process, under torchrun, and in the
workers of Ray Train (`train`).

Whatever ends a process, the next attempt resumes from the last complete checkpoint: the step in it
is the whole position. Before each step the workers agree, by one exchange of a number, whether to
make it, to look for a notice that a machine will be taken away, or to stop. They also agree while a
batch is missing: Ray Data gives the loaders of a machine that will be taken away no more work, so
no further step may come after which to save.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from enum import IntEnum
from typing import Any

from ray_app.errors import ConfigError
from ray_app.training import checkpoints, run_directory, validate
from ray_app.training.checkpoints import CheckpointEntry, CheckpointWriter
from ray_app.training.detector import DetectorLearner
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch, Learner
from ray_app.training.step_log import StepLog
from ray_app.training.worker import Worker


class Word(IntEnum):
    """What a worker wants all workers to do next. The greatest word of all wins."""

    STEP = 0
    WAIT = 1
    LOOK = 2
    STOP = 3


def train(job: TrainingJob, worker: Worker) -> bool:
    """Train from the last complete checkpoint to the last step. All workers call it.

    Returns:
        Whether the training is over. Otherwise it was asked to stop, and has saved.
    """
    job.settle_process()
    latest = _find_checkpoint(job, worker)
    if latest is not None and latest.finished:
        return True
    first = 0 if latest is None else latest.step
    # The first batches are loaded while the network is built.
    with closing(_open_batches(job, worker, first)) as batches:
        learner = make_learner(job, worker)
        if latest is not None:
            with checkpoints.fetched(job.out, latest.name) as folder:
                learner.load(folder)
        if worker.rank == 0:
            run_directory.delete_history_from(job.out, first)
        worker.share(None)  # Nobody writes before rank 0 has deleted what is written again.
        return _Training(job, worker, learner).run(batches)


def _open_batches(job: TrainingJob, worker: Worker, first: int) -> Any:
    """Return the generator of this worker's batches from step `first` on: of images, or of stored
    embeddings.
    """
    if job.captions is not None and job.captions.vectors is not None:
        from ray_app.training.captioner import embedding_batches

        return embedding_batches(job, job.captions.vectors, first, worker.rank, worker.world)
    return worker.batches(job, first)


def make_learner(job: TrainingJob, worker: Worker) -> Learner:
    """Return what learns: a detector or, by method `describe`, a describer."""
    if job.captions is not None:
        from ray_app.training.captioner import caption_learner

        return caption_learner(job, job.captions, worker.device, worker.rank)
    return DetectorLearner(
        job.config,
        job.card,
        device=worker.device,
        total_steps=job.total_steps,
        rank=worker.rank,
        strategy=job.config.workers.strategy,
    )


def _find_checkpoint(job: TrainingJob, worker: Worker) -> CheckpointEntry | None:
    """Return the last complete checkpoint, after the validations that an earlier session owes.

    Rank 0 decides for all: listings of one folder may differ for a moment between machines. Raises
    ConfigError if a worker does not see the directory of the training.
    """
    if not job.out.exists(run_directory.FILE):
        raise ConfigError(
            f"{job.out.url}/{run_directory.FILE} does not exist on the machine of worker {worker.rank}",
            hint="give an --out that all machines share, such as s3://BUCKET/DIR",
        )
    found = None
    if worker.rank == 0:
        found = checkpoints.latest_checkpoint(job.out), validate.unjudged_checkpoints(job)
    latest, unjudged = worker.share(found)
    for entry in unjudged:
        validate.validate_checkpoint(job, CheckpointEntry(*entry), worker)
    return None if latest is None else CheckpointEntry(*latest)


class _Training:
    """The steps of one worker, from a checkpoint on."""

    def __init__(self, job: TrainingJob, worker: Worker, learner: Learner) -> None:
        self._job, self._worker, self._learner = job, worker, learner
        self._log = StepLog(job, worker, learner.step_number)
        self._writer = CheckpointWriter(job.out)
        self._saved_step = learner.step_number
        self._is_over = self._is_interrupted = self._heeds_notice = False

    def run(self, batches: Iterator[Batch | None]) -> bool:
        """Make all steps that are left; see `train`."""
        batch, clock = None, time.monotonic()
        while not self._is_over:
            batch = next(batches) if batch is None else batch
            word = self._worker.agree(self._choose_word(batch))
            if word == Word.STOP:
                self._save(at_once=True)
                return False
            if word == Word.LOOK:
                self._look_for_notice()
            if word != Word.STEP or batch is None:
                continue
            waited_s, clock = time.monotonic() - clock, time.monotonic()
            figures = self._learner.step(batch)
            self._log.add(batch, figures, self._learner.precision, waited_s, clock)
            batch = None
            self._finish_step()
            clock = time.monotonic()
        return not self._is_interrupted

    def _choose_word(self, batch: Batch | None) -> Word:
        if self._worker.is_stopping():
            return Word.STOP
        if self._worker.is_notice_due():
            return Word.LOOK
        return Word.WAIT if batch is None else Word.STEP

    def _look_for_notice(self) -> None:
        """Save once if a machine will be taken away."""
        has_notice = self._worker.has_notice()
        if has_notice and not self._heeds_notice:
            self._save(at_once=True)
        self._heeds_notice = has_notice

    def _finish_step(self) -> None:
        """Save and validate if that is due."""
        step = self._learner.step_number
        self._is_over = step == self._job.total_steps
        if not self._job.is_due(step):
            return
        is_judged = self._job.is_validated and step in self._job.milestones
        name = self._save(at_once=self._is_over or is_judged)
        if is_judged:
            self._validate(CheckpointEntry(name, step, self._is_over))

    def _validate(self, checkpoint: CheckpointEntry) -> None:
        """Validate a checkpoint. It is the last if the recipe's patience is over."""
        if not validate.validate_checkpoint(self._job, checkpoint, self._worker):
            self._is_interrupted = True
            return
        is_rank_zero = self._worker.rank == 0
        if self._worker.share(is_rank_zero and validate.is_out_of_patience(self._job)):
            self._is_over = True
            if is_rank_zero:
                checkpoints.mark_complete(self._job.out, checkpoint.name, finished=True)
        if is_rank_zero:
            self._log.show_validation(validate.describe_last(self._job))
            validate.remove_superseded_checkpoints(self._job)

    def _save(self, *, at_once: bool) -> str:
        """Write the log, and a checkpoint if there were steps since the last one; return its name.

        Args:
            at_once: Whether to wait until the checkpoint is in storage.
        """
        if self._learner.step_number == self._saved_step:
            return ""
        self._saved_step = self._learner.step_number
        self._log.write(self._saved_step)
        written = self._writer.save(self._learner, finished=self._is_over)
        if at_once:
            self._writer.wait()
        name: str = self._worker.share(written)
        if self._worker.rank == 0:
            self._log.name_files()
            validate.remove_superseded_checkpoints(self._job)
        return name
