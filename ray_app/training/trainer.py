"""One session of Ray Train, from the last committed checkpoint to the last step: `fit`, the only
place that builds a trainer, and what each of its worker processes does (`train_worker`): take
batches, learn, note, and commit checkpoints.

Ray Train's `fit` runs in an actor of its own (`TrainerActor`). The driver watches the board, draws
the progress line, and handles signals; it ends the session by killing the actor, which takes Ray
Train's controller and the workers with it. `join_process_group` connects the workers: the store of
torch.distributed needs no secret, so it listens on the address of one node alone.

Whatever ends a worker, the next attempt resumes from the last committed checkpoint: the step in it
is the whole position. All ranks do the same steps and report the same number of times; what is
decided on the way (stop, look for notices) rank 0 decides. They also check while they wait for
data: Ray Data gives a loader no more work once its machine is to go, so no step may come after
which to save.
"""

import logging
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    UserCallback,
    ValidationConfig,
    ValidationTaskConfig,
)
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ray_app.cluster.ray_cluster import on_own_node
from ray_app.cluster.shutdown import signal_grace_s
from ray_app.errors import ClusterError, ConfigError, TouchstoneError, describe_error
from ray_app.storage import Store
from ray_app.training import checkpoints, file_notes, ray_data, run_directory, validate
from ray_app.training.captioner import caption_learner, embedding_batches
from ray_app.training.detector import DetectorLearner
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Learner
from ray_app.training.loader import Batch
from ray_app.training.progress import ProgressReport, TrainingProgress

REPORT_EVERY_S = 0.5
# for a notice that a machine will be taken away; asking is a round of all workers
NOTICE_POLL_S = 2.0
FEW_IMAGES = 200  # before so many were seen, a share of bad ones says nothing
GO_ON, WAIT, LOOK, STOP, END = range(5)  # of several words the strongest holds
POLL_S = 0.5
PRUNE_EVERY_S = 2.0
STALL_S = 900.0
GROUP_TIMEOUT = timedelta(seconds=1800)
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # importing torch in every worker of a busy machine takes its time
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def fit(job: TrainingJob) -> None:
    """Train until the last step is committed and every validation is over.

    Raises the TouchstoneError that a worker met, ClusterError when Ray Train gives up or nothing
    happens for too long, and KeyboardInterrupt, after the workers have saved, when a signal
    requests to stop.
    """
    checkpoints.remove_ray_notes(job.out)
    actor: Any = ray.remote(num_cpus=0, label_selector=on_own_node())(TrainerActor).remote()
    over = actor.fit.remote({"job": ray.put(job)})  # In a dict, so that Ray passes the reference.
    progress = TrainingProgress(job.total_steps)
    watch = _Watch(job, over, progress)
    try:
        watch.wait()
    except KeyboardInterrupt:
        watch.let_them_save()
        raise
    finally:
        progress.close()
        ray.kill(actor)
    if (failure := watch.failure()) is not None:
        raise ClusterError(
            f"training gave up: {failure}",
            hint="the same command continues; the logs of the Ray session say more",
        )
    if not checkpoints.is_trained(job.out):
        raise ClusterError(
            "training ended before its last step was committed", hint="the same command goes on"
        )


class _Marking(UserCallback):
    """Marks a checkpoint as complete once all workers have reported it and its files are in
    storage. Runs in Ray Train's controller.
    """

    def __init__(self, out: Store) -> None:
        self._out = out

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """See `ray.train.UserCallback`."""
        if checkpoint is not None:
            checkpoints.mark_complete(
                self._out, Path(checkpoint.path).name, finished=metrics[0]["finished"]
            )


class TrainerActor:
    """Run Ray Train's trainer in a process of its own, so that the driver handles signals itself
    and can end the session at any time.
    """

    def fit(self, given: dict[str, Any]) -> str | None:
        """Run the trainer of `given["job"]`, which refers to the `TrainingJob`. Return why it gave
        up, or None.
        """
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        try:
            _trainer(given["job"]).fit()
        except Exception as error:
            first = next(iter(getattr(error, "worker_failures", {}).values()), error)
            return describe_error(first)
        return None


class _Watch:
    """The main thread's view of one session."""

    def __init__(
        self, job: TrainingJob, over: "ray.ObjectRef[str | None]", progress: TrainingProgress
    ) -> None:
        self._job, self._over, self._progress = job, over, progress
        self._last_report, self._changed_at = ProgressReport({}), time.monotonic()
        self._pruned_at = 0.0
        self._files = file_notes.FileLog(job.out)
        self._patience_s = job.config.cluster.stall_timeout_s or STALL_S

    def wait(self) -> None:
        """Wait until the trainer ends. Raises what a worker reported, and ClusterError at a
        standstill.
        """
        while not self._is_over(POLL_S):
            self._check_board()
        self._check_board()
        self._name_files()

    def failure(self) -> str | None:
        """Return why the trainer gave up, or None if it finished."""
        try:
            failure: str | None = ray.get(self._over)
        except RayError as error:
            return describe_error(error)
        return failure

    def _is_over(self, wait_s: float) -> bool:
        return bool(ray.wait([self._over], timeout=wait_s)[0])

    def _name_files(self) -> None:
        for line in self._files.new_lines():
            self._progress.say(line)

    def let_them_save(self) -> None:
        """Ask the workers to save and stop, and give them some time; a second signal ends that."""
        grace_s = signal_grace_s(self._job.config.cluster.grace_s)
        until = time.monotonic() + grace_s
        if not ray.get(self._job.board.read.remote()).steps:
            return
        self._progress.say(
            f"stopping: the workers have {grace_s:.0f} s to save; a second signal stops at once"
        )
        self._job.board.stop.remote()
        while not self._is_over(POLL_S) and time.monotonic() < until and not self._is_saved():
            pass

    def _is_saved(self) -> bool:
        stopped = ray.get(self._job.board.read.remote()).figures.get("stopped")
        latest = checkpoints.latest_checkpoint(self._job.out)
        return stopped is not None and latest is not None and latest.step >= stopped

    def _check_board(self) -> None:
        report: ProgressReport = ray.get(self._job.board.read.remote())
        if (error := report.error()) is not None:
            raise error
        now = time.monotonic()
        if report != self._last_report:
            self._last_report, self._changed_at = report, now
        if now - self._changed_at > self._patience_s:
            raise ClusterError(
                f"no step ended in {self._patience_s:.0f} s; stopped, what is committed is kept",
                hint="does the cluster have room for the workers? --set cluster.stall_timeout_s=… waits longer",
            )
        if now - self._pruned_at >= PRUNE_EVERY_S:
            self._pruned_at = now
            judged = validate.validations(self._job.out)
            validate.remove_superseded_checkpoints(self._job, judged)
            self._progress.judged(_last_judged(self._job, judged))
            self._name_files()
        self._progress.show(report)


def _trainer(shared: "ray.ObjectRef[TrainingJob]") -> Any:
    train: Any = ray.train  # Type checkers see the names of Ray Train V1 here; V2 is what runs.
    job = ray.get(shared)
    config, layout = job.config, job.layout
    request = {"CPU": layout.worker_cpus} | (
        {"GPU": layout.worker_gpus} if layout.worker_gpus else {}
    )
    labels = dict(config.cluster.labels)
    judging: dict[str, Any] = {
        "num_cpus": layout.validation_cpus,
        "num_gpus": layout.validation_gpus,
    }
    return train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"job": shared},
        torch_config=OwnProcessGroup(),
        datasets={}
        if "vectors" in job.shared
        else {ray_data.TRAIN: partial(ray_data.steps_to_come, job)},
        dataset_config=ray_data.Shards(job),
        scaling_config=train.ScalingConfig(
            num_workers=layout.workers
            if layout.least == layout.workers
            else (layout.least, layout.workers),
            use_gpu=layout.worker_gpus > 0,
            resources_per_worker=request,
            label_selector=labels or None,
        ),
        run_config=train.RunConfig(
            **checkpoints.ray_storage(job.out),
            failure_config=FailureConfig(max_failures=config.faults.max_failures),
            callbacks=[_Marking(job.out)],
        ),
        validation_config=ValidationConfig(
            fn=validate.validate,
            task_config=ValidationTaskConfig(fn_kwargs={"job": shared}),
            ray_remote_kwargs=judging | ({"label_selector": labels} if labels else {}),
        ),
    )


def _last_judged(job: TrainingJob, judged: Sequence[Mapping[str, Any]]) -> str:
    if not judged:
        return ""
    metric, last = job.config.validation.metric, judged[-1]
    value = last.get(metric)
    return "" if value is None else f"{metric} {value:.4f} at {last['step']:,}"


class SharedDevices(Backend):
    """Lets the workers of one node see all of its GPUs, as NCCL needs to connect them. Sets up
    nothing else.
    """

    share_cuda_visible_devices = True


class OwnProcessGroup(TorchConfig):
    """Leaves the process group to `join_process_group`. Ray Train's own store would listen on every
    address of the node.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """See `ray.train.backend.BackendConfig`."""
        return SharedDevices


def join_process_group(
    rank: int, world_size: int, backend: str, timeout: timedelta = GROUP_TIMEOUT
) -> None:
    """Connect this worker of Ray Train with the others. The store of rank 0 listens on the address
    of its node alone.

    Args:
        rank: The rank of this worker.
        world_size: The number of workers.
        backend: `nccl` or `gloo`.
        timeout: How long an operation of the group may take.
    """
    listener = listen_on(ray.util.get_node_ip_address()) if rank == 0 else None  # type: ignore[no-untyped-call]
    host, port = broadcast_from_rank_zero(None if listener is None else listener.getsockname()[:2])
    store = open_store(host, port, world_size, timeout, listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def listen_on(host: str) -> socket.socket:
    """Return a socket that listens on a free port of one address, IPv4 or IPv6."""
    return socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
    )


def open_store(
    host: str, port: int, world_size: int, timeout: timedelta, listener: socket.socket | None
) -> TCPStore:
    """Return a client of the store at an address, or its server if `listener` is the socket that it
    is to use.
    """
    if listener is None:
        return TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    return TCPStore(
        host, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach()
    )


def train_worker(given: dict[str, Any]) -> None:
    """The function that Ray Train runs in every worker; `given["job"]` refers to the `TrainingJob`."""
    job: TrainingJob = ray.get(given["job"])
    try:
        Rank(job).run()
        dist.destroy_process_group()
    except TouchstoneError as error:
        if not isinstance(error, ClusterError):  # another attempt would meet the same
            ray.get(job.board.fail.remote(pickle.dumps(error)))
        raise
    except Exception:
        found = TouchstoneError(
            f"a training worker failed at its first step:\n{traceback.format_exc()}",
            hint="this looks like a bug",
        )
        ray.get(job.board.fail.remote(pickle.dumps(found), only_before_steps=True))
        raise


def _require_shared(out: Store) -> None:
    """Raise ConfigError if this worker's node does not see the directory of the training."""
    if not out.exists(run_directory.FILE):
        raise ConfigError(
            f"{out.url}/{run_directory.FILE} does not exist on the node {socket.gethostname()}",
            hint="give an --out that all nodes share, such as s3://BUCKET/DIR",
        )


class Rank:
    """One worker from its start to its end."""

    def __init__(self, job: TrainingJob) -> None:
        context = ray.train.get_context()
        self._job, self._rank, self._world = job, context.get_world_rank(), context.get_world_size()
        join_process_group(self._rank, self._world, "nccl" if job.layout.worker_gpus else "gloo")
        job.settle_process(job.layout.device, job.layout.threads)
        _require_shared(job.out)
        # Rank 0 decides for all: listings of one folder may differ for a moment between nodes.
        self._checkpoint = broadcast_from_rank_zero(
            checkpoints.latest_checkpoint(job.out) if self._rank == 0 else None
        )
        self._begun = 0 if self._checkpoint is None else self._checkpoint.step
        self._stream = self._batches()
        self._taker = futures.ThreadPoolExecutor(1)
        # the loaders start beside the network
        self._coming = self._taker.submit(next, self._stream, None)
        self._device = str(ray.train.torch.get_device())
        self._learner = self._made()
        self._history, self._samples = (
            run_directory.HistoryWriter(job.out, folder, self._rank)
            for folder in (run_directory.HISTORY, run_directory.SAMPLES)
        )
        self._notes = file_notes.StepNotes(job.out, job.rows("train"), self._rank)
        self._seen = self._bad = 0
        self._unreported = 0
        self._reported_at = self._polled_at = 0.0
        self._reply: Any = None
        self._saved_on_notice = False
        self._line: dict[str, Any] = {}

    def _batches(self) -> Iterator[Batch]:
        if "vectors" in self._job.shared:
            return embedding_batches(self._job, self._begun, self._rank, self._world)
        return ray_data.batches(self._begun)

    def _made(self) -> Learner:
        """What learns in this worker: a detector or, by method `describe`, words."""
        job = self._job
        if job.config.method == "describe":
            return caption_learner(job, self._device, self._rank)
        strategy = job.config.workers.strategy
        return DetectorLearner(
            job.config,
            job.card,
            device=self._device,
            total_steps=job.total_steps,
            rank=self._rank,
            strategy=strategy,
        )

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

    def _awaited(self) -> Batch | None:
        """The next batch, as soon as every worker has one; None after the last one, and where
        training ends while it waits.
        """
        while (
            self._agree(GO_ON if futures.wait([self._coming], NOTICE_POLL_S).done else WAIT) == WAIT
        ):
            if self._rank == 0 and self._reply is None:
                self._report(self._line)
            if self._commit_or_end(after_step=False):
                return None
        batch = self._coming.result()
        self._coming = self._taker.submit(next, self._stream, None)
        return batch

    def _restore(self) -> bool:
        """Load the latest complete checkpoint, if there is one. Return whether no step is left."""
        if self._checkpoint is None or self._checkpoint.finished:
            return self._checkpoint is not None
        with checkpoints.ray_checkpoint(
            self._job.out, self._checkpoint.name
        ).as_directory() as folder:
            self._learner.load(Path(folder))
        return False

    def _learn(self, batch: Batch, waited_s: float, began: float) -> None:
        figures = self._learner.step(batch)
        if self._job.config.faults.record_samples:
            rows, ids = batch["row"].tolist(), batch["image_id"].tolist()
            self._samples.add(
                {"step": figures.step, "rank": self._rank, "rows": rows, "image_ids": ids}
            )
        # With vectors, images are noted when their embeddings are computed.
        if "vectors" not in self._job.shared:
            self._notes.add(batch, figures.step)
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
        if self._bad > most * self._seen and self._seen >= min(
            FEW_IMAGES, self._job.order().rows_per_epoch
        ):
            self._notes.write(self._begun)
            self._samples.write(self._begun)
            examples = file_notes.join_examples(self._notes.first_unreadable)
            raise TouchstoneError(
                f"{self._bad:,} of {self._seen:,} training images could not be read ({self._bad / self._seen:.1%})"
                + (f", for example {examples}" if examples else ""),
                hint=f"repair the files that {self._job.out.url}/{run_directory.UNREADABLE}/ names, "
                f"or allow more than {most:.1%} by --set faults.max_bad_fraction=…",
            )

    def _report(self, line: dict[str, Any]) -> None:
        self._reply = self._job.board.report.remote(
            {**line, "total": self._job.total_steps}, self._unreported
        )
        self._unreported, self._reported_at = 0, time.monotonic()

    def _commit_or_end(self, *, after_step: bool) -> bool:
        """Commit what is due or requested; True when training ends here."""
        step = self._learner.step_number
        word = self._agree(self._decision(after_step) if self._rank == 0 else GO_ON)
        noticed = (
            word == LOOK
            and ray.train.get_preemption_info() is not None
            and not self._saved_on_notice
        )
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
        """Save, note, and report; `at_once` waits until the files lie in storage, else that goes on
        beside the next steps.
        """
        step = self._learner.step_number
        self._samples.write(self._begun)
        self._notes.write(self._begun)
        lines = self._history.write(self._begun)
        if lines:
            run_directory.write_events(self._job.out, self._begun, lines)
        self._begun = step
        folder = Path(tempfile.mkdtemp(prefix="touchstone-checkpoint-"))
        self._learner.save(folder)
        checkpoint = None
        if self._rank == 0:
            checkpoint = Checkpoint.from_directory(folder)
            self._report(dict(lines[-1]) if lines else {"step": step})
        else:
            folder.rmdir()
        ray.train.report(
            {"step": step, "finished": finished},
            checkpoint=checkpoint,
            checkpoint_dir_name=checkpoints.new_name(step),
            checkpoint_upload_mode=CheckpointUploadMode.SYNC
            if at_once or finished
            else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
            validation=self._rank == 0
            and self._job.config.method != "describe"
            and (step in self._job.milestones or finished),
        )
