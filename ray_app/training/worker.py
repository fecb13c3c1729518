"""What one worker process of a training does: `train_worker` takes its batches, learns, notes, and commits checkpoints.

Whatever ends a worker, the next attempt resumes from the last committed checkpoint: the step in it is the whole position. All ranks do
the same steps and report the same number of times; what is decided on the way (stop, look for notices) rank 0 decides. They also check
while they wait for data: Ray Data gives a loader no more work once its machine is to go, so no step may come after which to save.
"""

import pickle
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode

from ray_app.errors import ClusterError, TouchstoneError
from ray_app.training import checkpoints, ray_data, run_directory, validate
from ray_app.training.captioner import embedding_batches, word_learner
from ray_app.training.detector import DetectorLearner
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Learner

REPORT_EVERY_S = 0.5
NOTICE_POLL_S = 2.0  # for a notice that a machine will be taken away; asking is a round of all workers
FEW_IMAGES = 200  # before so many were seen, a share of bad ones says nothing
GO_ON, WAIT, LOOK, STOP, END = range(5)  # of several words the strongest holds


def train_worker(given: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker; `given["job"]` refers to the `TrainingJob`."""
    job: TrainingJob = ray.get(given["job"])
    try:
        Rank(job).run()
    except TouchstoneError as error:
        if not isinstance(error, ClusterError):  # another attempt would meet the same
            ray.get(job.board.fail.remote(pickle.dumps(error)))
        raise
    except Exception:
        found = TouchstoneError(f"a training worker failed at its first step:\n{traceback.format_exc()}", hint="this looks like a bug")
        ray.get(job.board.fail.remote(pickle.dumps(found), only_before_steps=True))
        raise


class Rank:
    """One worker from its start to its end."""

    def __init__(self, job: TrainingJob) -> None:
        context = ray.train.get_context()
        self._job, self._rank, self._world = job, context.get_world_rank(), context.get_world_size()
        job.settle_process(job.layout.device, job.layout.threads)
        self._checkpoint = ray.train.get_checkpoint()
        self._begun = 0 if self._checkpoint is None else checkpoints.step_of(Path(self._checkpoint.path).name)
        self._stream = self._batches()
        self._taker = futures.ThreadPoolExecutor(1)
        self._coming = self._taker.submit(next, self._stream, None)  # the loaders start beside the network
        self._device = str(ray.train.torch.get_device())
        self._learner = self._made()
        self._history, self._samples, self._unreadable = (
            run_directory.HistoryWriter(job.out, folder, self._rank)
            for folder in (run_directory.HISTORY, run_directory.SAMPLES, run_directory.UNREADABLE)
        )
        self._seen = self._bad = 0
        self._unreported = 0
        self._reported_at = self._polled_at = 0.0
        self._reply: Any = None
        self._saved_on_notice = False
        self._line: dict[str, Any] = {}

    def _batches(self) -> Iterator[ray_data.Batch]:
        if "vectors" in self._job.shared:
            return embedding_batches(self._job, self._begun, self._rank, self._world)
        return ray_data.batches(self._begun)

    def _made(self) -> Learner:
        """What learns in this worker: a detector or, by method `describe`, words."""
        job = self._job
        if job.config.method == "describe":
            return word_learner(job, self._device, self._rank)
        strategy = job.config.workers.strategy
        return DetectorLearner(job.config, job.card, device=self._device, total_steps=job.total_steps, rank=self._rank, strategy=strategy)

    def run(self) -> None:
        """All steps from the last committed one on."""
        if self._restore():
            return
        if self._rank == 0:
            run_directory.delete_history_from(self._job.out, self._begun)
            self._line = {"step": self._begun}
            self._report(self._line)
        self._agree(GO_ON)  # nobody writes before what is to be written anew was removed
        clock = time.monotonic()
        while (batch := self._awaited()) is not None:
            waited, clock = time.monotonic() - clock, time.monotonic()
            self._learn(batch, waited, clock)
            if self._commit_or_end(after_step=True):
                return
            clock = time.monotonic()

    def _awaited(self) -> ray_data.Batch | None:
        """The next batch, as soon as every worker has one; None after the last one, and where training ends while it waits."""
        while self._agree(GO_ON if futures.wait([self._coming], NOTICE_POLL_S).done else WAIT) == WAIT:
            if self._rank == 0 and self._reply is None:
                self._report(self._line)
            if self._commit_or_end(after_step=False):
                return None
        batch = self._coming.result()
        self._coming = self._taker.submit(next, self._stream, None)
        return batch

    def _restore(self) -> bool:
        """Take up the last committed checkpoint, if any; True where no step is left."""
        if self._checkpoint is None:
            return False
        with self._checkpoint.as_directory() as folder:
            _, finished = checkpoints.read_facts(Path(folder))
            if not finished:
                self._learner.load(Path(folder))
        return finished

    def _learn(self, batch: ray_data.Batch, waited_s: float, began: float) -> None:
        figures = self._learner.step(batch)
        if self._job.config.faults.record_samples:
            rows, ids = batch["row"].tolist(), batch["image_id"].tolist()
            self._samples.add({"step": figures.step, "rank": self._rank, "rows": rows, "image_ids": ids})
        for place in (~batch["usable"]).nonzero()[0]:
            self._unreadable.add({"step": figures.step, "image_id": int(batch["image_id"][place]), "detail": str(batch["detail"][place])})
        self._seen += self._job.config.loop.batch
        self._bad += figures.unusable
        self._require_readable()
        seconds = time.monotonic() - began
        line = {
            "step": figures.step,
            "loss": figures.loss,
            "rate": figures.rate,
            "gradient_norm": figures.gradient_norm,
            "images_per_s": self._job.config.loop.batch / (waited_s + seconds),
            "wait_s": waited_s,
            "compute_s": seconds,
            "unusable": figures.unusable,
            "precision": self._learner.precision,
            "time": time.time(),
            **figures.parts,
        }
        self._unreported, self._line = self._unreported + 1, line
        if self._rank == 0:
            self._history.add(line)
            if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
                self._report(line)

    def _require_readable(self) -> None:
        most = self._job.config.faults.max_bad_fraction
        if self._bad > most * self._seen and self._seen >= min(FEW_IMAGES, self._job.order().rows_per_epoch):
            for notes in (self._unreadable, self._samples):
                notes.write(self._begun)
            raise TouchstoneError(
                f"{self._bad:,} of {self._seen:,} training images could not be read ({self._bad / self._seen:.1%})",
                hint=f"unreadable/ in the run says which and why; --set faults.max_bad_fraction=… allows more than {most:.1%}",
            )

    def _report(self, line: dict[str, Any]) -> None:
        self._reply = self._job.board.report.remote({**line, "total": self._job.total_steps}, self._unreported)
        self._unreported, self._reported_at = 0, time.monotonic()

    def _commit_or_end(self, *, after_step: bool) -> bool:
        """Commit what is due or requested; True when training ends here."""
        step = self._learner.step_number
        word = self._agree(self._decision(after_step) if self._rank == 0 else GO_ON)
        noticed = word == LOOK and ray.train.get_preemption_info() is not None and not self._saved_on_notice
        self._saved_on_notice |= noticed
        ends, at_once = word in (STOP, END), noticed or word in (STOP, END)
        if at_once or (after_step and self._job.is_due(step)):
            self._commit(at_once=at_once, finished=word == END or step == self._job.total_steps)
        if ends and self._rank == 0:
            ray.get(self._job.board.report.remote({"stopped": step}, 0))
        return ends

    def _decision(self, after_step: bool) -> int:
        """What rank 0 wants all to do."""
        step = self._learner.step_number
        if self._reply is not None and ray.wait([self._reply], timeout=0)[0]:
            stop_requested, self._reply = ray.get(self._reply), None
            if stop_requested and step < self._job.total_steps:
                return STOP
        if after_step and step in self._job.milestones and validate.is_out_of_patience(self._job):
            return END
        if time.monotonic() - self._polled_at >= NOTICE_POLL_S:
            self._polled_at = time.monotonic()
            return LOOK
        return GO_ON

    def _agree(self, word: int) -> int:
        """The strongest word that any worker says, known to all when this returns."""
        if self._world == 1:
            return word
        found = torch.tensor(word, device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())

    def _commit(self, *, at_once: bool, finished: bool = False) -> None:
        """Save, note, and report; `at_once` waits until the files lie in storage, else that goes on beside the next steps."""
        step = self._learner.step_number
        for notes in (self._samples, self._unreadable):
            notes.write(self._begun)
        lines = self._history.write(self._begun)
        if lines:
            run_directory.write_events(self._job.out, self._begun, lines)
        self._begun = step
        folder = Path(tempfile.mkdtemp(prefix="touchstone-checkpoint-"))
        self._learner.save(folder)
        checkpoint = None
        if self._rank == 0:
            checkpoints.write_facts(folder, step=step, finished=finished)
            checkpoint = Checkpoint.from_directory(folder)
            self._report(dict(lines[-1]) if lines else {"step": step})
        else:
            folder.rmdir()
        ray.train.report(
            {"step": step, "finished": finished},
            checkpoint=checkpoint,
            checkpoint_dir_name=checkpoints.new_name(step),
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if at_once or finished else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
            validation=self._rank == 0 and self._job.config.method != "describe" and (step in self._job.milestones or finished),
        )
