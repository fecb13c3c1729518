"""Run the training loop in one process, under torchrun, or in Ray Train: `train`.

However a process ends, the next attempt resumes from the last complete checkpoint. The number of
its step is enough to know which images come next.

Before each step, the workers exchange one number, a `Vote`. They agree whether to make the step, to
check for a notice that a machine will be taken away, or to stop. They also vote while they wait for
a batch. Ray Data gives no more work to the loaders of a machine that will be taken away, so there
may be no further step after which to save.
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


class Vote(IntEnum):
    """The vote of a worker on what all workers do next. The vote with the greatest number wins.

    Attributes:
        WAIT: Vote again, because a worker has no batch yet.
        CHECK_NOTICE: Check whether a machine will be taken away.
    """

    STEP = 0
    WAIT = 1
    CHECK_NOTICE = 2
    STOP = 3


def train(job: TrainingJob, worker: Worker) -> bool:
    """Train from the last complete checkpoint, and return whether the training is complete.

    All workers call this function. If the training is not complete, it was asked to stop, and saved
    a checkpoint.
    """
    job.prepare_process()
    latest = _find_checkpoint(job, worker)
    if latest is not None and latest.finished:
        return True
    first = 0 if latest is None else latest.step
    # The first batches are loaded while the network is built.
    with closing(_open_batches(job, worker, first)) as batches:
        learner = make_learner(job, worker)
        if latest is not None:
            with checkpoints.fetch_checkpoint(job.out, latest.name) as folder:
                learner.load(folder)
        if worker.rank == 0:
            run_directory.delete_history_from(job.out, first)
        # No worker writes before rank 0 has deleted the files that are written again.
        worker.broadcast(None)
        return _Training(job, worker, learner).run(batches)


def _open_batches(job: TrainingJob, worker: Worker, first: int) -> Any:
    """Return this worker's batches from step `first` on, of images or of stored embeddings."""
    if job.captions is not None and job.captions.vectors is not None:
        from ray_app.training.captioner import embedding_batches

        return embedding_batches(job, job.captions.vectors, first, worker.rank, worker.world)
    return worker.batches(job, first)


def make_learner(job: TrainingJob, worker: Worker) -> Learner:
    """Return the object that makes this worker's training steps.

    It trains a describer, which predicts prompts, if the job has `captions`. Otherwise it trains a
    detector.
    """
    if job.captions is not None:
        from ray_app.training.captioner import make_caption_learner

        return make_caption_learner(job, job.captions, worker.device, worker.rank)
    return DetectorLearner(
        job.config,
        job.card,
        device=worker.device,
        total_steps=job.total_steps,
        rank=worker.rank,
        strategy=job.config.workers.strategy,
    )


def _find_checkpoint(job: TrainingJob, worker: Worker) -> CheckpointEntry | None:
    """Return the last complete checkpoint, after the validations that an earlier session missed.

    Rank 0 decides for all, because listings of one folder may differ between machines for a moment.
    """
    if not job.out.exists(run_directory.FILE):
        raise ConfigError(
            f"{job.out.url}/{run_directory.FILE} does not exist on the machine of worker {worker.rank}",
            hint="give an --out that all machines share, such as s3://BUCKET/DIR",
        )
    state = None
    if worker.rank == 0:
        state = checkpoints.latest_checkpoint(job.out), validate.list_unjudged_checkpoints(job)
    latest, unjudged = worker.broadcast(state)
    for entry in unjudged:
        validate.validate_checkpoint(job, CheckpointEntry(*entry), worker)
    return None if latest is None else CheckpointEntry(*latest)


class _Training:
    """The steps of one worker, starting from a checkpoint."""

    def __init__(self, job: TrainingJob, worker: Worker, learner: Learner) -> None:
        self._job, self._worker, self._learner = job, worker, learner
        self._log = StepLog(job, worker, learner.step_number)
        self._writer = CheckpointWriter(job.out)
        self._saved_step = learner.step_number
        self._is_over = self._is_interrupted = self._has_handled_notice = False

    def run(self, batches: Iterator[Batch | None]) -> bool:
        """Make all remaining steps; see `train`."""
        batch, clock = None, time.monotonic()
        while not self._is_over:
            batch = next(batches) if batch is None else batch
            vote = self._worker.agree(self._choose_vote(batch))
            if vote == Vote.STOP:
                self._save(at_once=True)
                return False
            if vote == Vote.CHECK_NOTICE:
                self._check_notice()
            if vote != Vote.STEP or batch is None:
                continue
            waited_s, clock = time.monotonic() - clock, time.monotonic()
            metrics = self._learner.step(batch)
            self._log.add(batch, metrics, self._learner.precision, waited_s, clock)
            batch = None
            self._finish_step()
            clock = time.monotonic()
        return not self._is_interrupted

    def _choose_vote(self, batch: Batch | None) -> Vote:
        if self._worker.is_stopping():
            return Vote.STOP
        if self._worker.is_notice_due():
            return Vote.CHECK_NOTICE
        return Vote.WAIT if batch is None else Vote.STEP

    def _check_notice(self) -> None:
        """Save once if a machine will be taken away."""
        has_notice = self._worker.has_notice()
        if has_notice and not self._has_handled_notice:
            self._save(at_once=True)
        self._has_handled_notice = has_notice

    def _finish_step(self) -> None:
        """Save and validate if this is due."""
        step = self._learner.step_number
        self._is_over = step == self._job.total_steps
        if not self._job.is_due(step):
            return
        is_judged = self._job.is_validated and step in self._job.milestones
        name = self._save(at_once=self._is_over or is_judged)
        if is_judged:
            self._validate(CheckpointEntry(name, step, self._is_over))

    def _validate(self, checkpoint: CheckpointEntry) -> None:
        """Validate a checkpoint. It becomes the last one if `validation.patience` is exhausted."""
        if not validate.validate_checkpoint(self._job, checkpoint, self._worker):
            self._is_interrupted = True
            return
        is_rank_zero = self._worker.rank == 0
        if self._worker.broadcast(is_rank_zero and validate.is_out_of_patience(self._job)):
            self._is_over = True
            if is_rank_zero:
                checkpoints.mark_complete(self._job.out, checkpoint.name, finished=True)
        if is_rank_zero:
            self._log.show_validation(validate.describe_last(self._job))
            validate.remove_superseded_checkpoints(self._job)

    def _save(self, *, at_once: bool) -> str:
        """Write the log, and a checkpoint if there were steps since the last one; return its name.

        If `at_once`, wait until the last checkpoint is in storage, which may be one whose upload
        began before this call.
        """
        written: str | None = ""
        if self._learner.step_number != self._saved_step:
            self._saved_step = self._learner.step_number
            self._log.write(self._saved_step)
            written = self._writer.save(self._learner, finished=self._is_over)
        if at_once:
            self._writer.wait()
        # The end of any worker ends all of them, so no worker returns before rank 0 has waited.
        name: str = self._worker.broadcast(written)
        if self._worker.rank == 0:
            self._log.name_files()
            validate.remove_superseded_checkpoints(self._job)
        return name
