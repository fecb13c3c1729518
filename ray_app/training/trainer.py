"""Run the training loop in several workers of Ray Train: `fit`.

Ray Train's own `fit` runs in an actor (`TrainingSession`). So this process, the driver, handles
signals itself and can end the session at any time: it kills the actor, which takes Ray Train's
controller and the workers with it. Workers report to this actor, and ask it whether to stop.
`join_process_group` connects the workers. The store of torch.distributed needs no secret, so it
listens on the address of one node only.
"""

import logging
import os
import pickle
import socket
import time
import traceback
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import FailureConfig
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from typing_extensions import override

from ray_app.cluster.ray_cluster import select_current_node
from ray_app.cluster.shutdown import signal_grace_s
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.training import checkpoints, loop, ray_data
from ray_app.training.job import TrainingJob
from ray_app.training.learner import Batch
from ray_app.training.local_data import STALL_S
from ray_app.training.progress import TrainingProgress
from ray_app.training.worker import Worker

if TYPE_CHECKING:
    from ray.actor import ActorHandle

REPORT_EVERY_S = 0.5
# All workers exchange a message to check whether a machine will be taken away.
NOTICE_POLL_S = 2.0
POLL_S = 0.5
GROUP_TIMEOUT = timedelta(seconds=1800)
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Importing torch in every worker of a busy machine is slow.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class SessionReport:
    """The state of a training session, as its workers reported it to the driver.

    Attributes:
        steps: Number of training steps that this session has reported.
        beats: Number of times that a worker reported that a validation advances.
        said: Lines for the user that the driver has not read yet.
        failure: A pickled error of a worker. It is set only if a restart of the worker would raise
            the error again.
        is_saved: Whether the workers were asked to stop and have saved a checkpoint.
    """

    line: dict[str, Any]
    steps: int = 0
    beats: int = 0
    said: tuple[str, ...] = ()
    failure: bytes | None = None
    is_saved: bool = False

    def error(self) -> TouchstoneError | None:
        """Return the error that ends the session, or None if there is none.

        A restart of the worker would raise this error again.
        """
        return None if self.failure is None else pickle.loads(self.failure)  # noqa: S301  (pickled by a worker of this session)


class TrainingSession:
    """The Ray actor of a training session, in which Ray Train runs.

    It passes messages between the workers and the driver, the process of the command.
    """

    def __init__(self) -> None:
        self._report = SessionReport({})
        self._is_stopping = False

    @ray.method(concurrency_group="fit")
    def fit(self, shared: ray_data.SharedJob) -> str | None:
        """Run Ray Train for a job. Return the reason if Ray Train failed, or None."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        session = ray.get_runtime_context().current_actor
        try:
            with TemporaryDirectory(prefix="touchstone-") as folder:
                _make_trainer(shared, session, folder).fit()
        except Exception as error:
            cause = next(iter(getattr(error, "worker_failures", {}).values()), error)
            return describe_error(cause)
        return None

    def report(self, line: dict[str, Any], steps: int) -> None:
        """Store the metrics of rank 0's latest step, which the driver shows.

        `steps` counts those since the last report.
        """
        self._report = replace(self._report, line=line, steps=self._report.steps + steps)

    def say(self, text: str) -> None:
        """Store a line of text of a worker, which the driver prints for the user."""
        self._report = replace(self._report, said=(*self._report.said, text))

    def beat(self) -> None:
        """Record that a validation advances.

        The driver stops a session that neither makes steps nor calls this method for too long.
        """
        self._report = replace(self._report, beats=self._report.beats + 1)

    def fail(self, failure: bytes, *, only_before_steps: bool = False) -> None:
        """Store the error of a worker that a restart of the worker would raise again.

        The driver then ends the session. Only the first error is stored. With `only_before_steps`,
        an error after this session's first step is ignored.
        """
        if self._report.failure is None and not (only_before_steps and self._report.steps):
            self._report = replace(self._report, failure=failure)

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and stop."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Return whether the workers were asked to save a checkpoint and stop."""
        return self._is_stopping

    def mark_saved(self) -> None:
        """Record that all workers have saved a checkpoint and stopped training."""
        self._report = replace(self._report, is_saved=True)

    def read(self) -> SessionReport:
        """Return the reports of the workers so far. Each line for the user is returned once."""
        report, self._report = self._report, replace(self._report, said=())
        return report


def fit(job: TrainingJob) -> None:
    """Train in workers of Ray Train until the last step is in a complete checkpoint.

    After a signal, the workers have `cluster.grace_s` seconds to save a checkpoint, and
    KeyboardInterrupt is raised. Raises ClusterError if Ray Train gave up, or there was no progress
    for too long.
    """
    remote: Any = ray.remote
    actor = remote(num_cpus=0, concurrency_groups={"fit": 1}, label_selector=select_current_node())
    session = actor(TrainingSession).remote()
    over = session.fit.remote({"job": ray.put(job)})
    progress = TrainingProgress(job.total_steps)
    watch = _Watch(job, session, over, progress)
    try:
        watch.wait()
    except KeyboardInterrupt:
        watch.wait_for_checkpoint()
        raise
    finally:
        progress.close()
        ray.kill(session)
    if (failure := watch.failure()) is not None:
        raise ClusterError(
            f"training gave up: {failure}",
            hint="run the same command again to resume; see the logs of the Ray session for details",
        )
    if not checkpoints.is_trained(job.out):
        raise ClusterError(
            "training ended before its last step was in a complete checkpoint",
            hint="run the same command again to resume",
        )


class _Watch:
    """The driver's view of one session."""

    def __init__(
        self,
        job: TrainingJob,
        session: "ActorHandle[TrainingSession]",
        over: "ray.ObjectRef[str | None]",
        progress: TrainingProgress,
    ) -> None:
        self._session, self._over, self._progress = session, over, progress
        self._grace_s = signal_grace_s(job.config.cluster.grace_s)
        self._stall_timeout_s = job.config.cluster.stall_timeout_s or STALL_S
        self._last_report, self._changed_at = SessionReport({}), time.monotonic()

    def wait(self) -> None:
        """Wait until the trainer ends.

        Raises the error that a worker reported, and ClusterError without progress for too long.
        """
        while not self._is_over(POLL_S):
            self._check()
        self._check()

    def failure(self) -> str | None:
        """Return why the trainer failed, or None if it finished."""
        try:
            failure: str | None = ray.get(self._over)
        except RayError as error:
            return describe_error(error)
        return failure

    def wait_for_checkpoint(self) -> None:
        """Ask the workers to save and stop, and wait for them; a second signal ends the wait.

        Raises the error that a worker reported, for example because it cannot save.
        """
        deadline = time.monotonic() + self._grace_s
        if not self._read().steps:
            return
        self._progress.say(
            f"stopping: the workers have {self._grace_s:.0f} s to save; a second signal stops at once"
        )
        self._session.stop.remote()
        while time.monotonic() < deadline:
            is_over, report = self._is_over(POLL_S), self._read()
            if (error := report.error()) is not None:
                raise error
            if is_over or report.is_saved:
                return
        self._progress.say(
            f"the workers did not save in {self._grace_s:.0f} s: the last complete checkpoint is kept"
        )

    def _is_over(self, wait_s: float) -> bool:
        return bool(ray.wait([self._over], timeout=wait_s)[0])

    def _read(self) -> SessionReport:
        session: Any = self._session
        report: SessionReport = ray.get(session.read.remote())
        for text in report.said:
            self._progress.say(text)
        return replace(report, said=())

    def _check(self) -> None:
        report, now = self._read(), time.monotonic()
        if (error := report.error()) is not None:
            raise error
        if report != self._last_report:
            if report.steps > self._last_report.steps:
                self._progress.show(report.line)
            self._last_report, self._changed_at = report, now
        if now - self._changed_at > self._stall_timeout_s:
            raise ClusterError(
                f"no step ended in {self._stall_timeout_s:.0f} s: training stopped, complete checkpoints are kept",
                hint="check that the workers fit the cluster, or wait longer by --set cluster.stall_timeout_s=…",
            )
        self._progress.redraw()


def _make_trainer(
    shared: ray_data.SharedJob, session: "ActorHandle[TrainingSession]", folder: str
) -> Any:
    """Return the trainer of a job. The files of Ray Train itself go to a temporary folder."""
    train: Any = ray.train  # Type checkers see the names of Ray Train V1, but V2 runs.
    job = ray_data.read_job(shared)
    config, layout = job.config, job.layout
    resources = {"CPU": layout.worker_cpus}
    if layout.worker_gpus:
        resources["GPU"] = layout.worker_gpus
    is_elastic = layout.least != layout.workers
    return train.torch.TorchTrainer(
        train_worker,
        train_loop_config={**shared, "session": session},
        torch_config=OwnProcessGroup(),
        datasets={}
        if job.has_vectors
        else {ray_data.TRAIN: partial(ray_data.make_step_dataset, shared)},
        dataset_config=ray_data.Shards(shared),
        scaling_config=train.ScalingConfig(
            num_workers=(layout.least, layout.workers) if is_elastic else layout.workers,
            use_gpu=layout.worker_gpus > 0,
            resources_per_worker=resources,
            label_selector=dict(config.cluster.labels) or None,
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=config.faults.max_failures),
        ),
    )


class SharedDevices(Backend):
    """Lets the workers of a node see all of its GPUs, which NCCL needs to connect them."""

    share_cuda_visible_devices = True


class OwnProcessGroup(TorchConfig):
    """Keeps Ray Train from creating the process group of torch.

    `join_process_group` creates it instead, because Ray Train's store would listen on every address
    of the node.
    """

    @property
    @override
    def backend_cls(self) -> type[Backend]:
        return SharedDevices


def join_process_group(
    rank: int, world_size: int, backend: str, timeout: timedelta = GROUP_TIMEOUT
) -> None:
    """Connect this worker of Ray Train with the others in a process group of torch.

    The TCPStore of rank 0 listens only on the address of its node.
    """
    listener = open_listener(ray.util.get_node_ip_address()) if rank == 0 else None  # type: ignore[no-untyped-call]
    host, port = broadcast_from_rank_zero(None if listener is None else listener.getsockname()[:2])
    store = open_store(host, port, world_size, timeout, listener)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def open_listener(host: str) -> socket.socket:
    """Return a socket that listens on a free port of one address, IPv4 or IPv6."""
    return socket.create_server(
        (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024
    )


def open_store(
    host: str, port: int, world_size: int, timeout: timedelta, listener: socket.socket | None
) -> TCPStore:
    """Return torch's TCPStore, by which the workers find each other.

    `listener` is the socket of the server, in the worker that runs it. None in other workers, which
    get a client.
    """
    if listener is None:
        return TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    return TCPStore(
        host, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach()
    )


def train_worker(config: dict[str, Any]) -> None:
    """Run the training loop in a worker of Ray Train, with `job` and `session` as references."""
    job, session = ray.get(config["job"]), config["session"]
    try:
        worker = RayWorker(session)
        if not loop.train(job, worker):
            ray.get(session.mark_saved.remote())
        dist.destroy_process_group()
    except TouchstoneError as error:
        if not isinstance(error, ClusterError):  # Another attempt would repeat the error.
            ray.get(session.fail.remote(pickle.dumps(error)))
        raise
    except Exception:
        failure = TouchstoneError(
            f"a training worker failed at its first step:\n{traceback.format_exc()}",
            hint="report this, because it looks like a bug",
        )
        ray.get(session.fail.remote(pickle.dumps(failure), only_before_steps=True))
        raise


class RayWorker(Worker):
    """A worker of Ray Train, which reports its steps to a `TrainingSession`."""

    def __init__(self, session: "ActorHandle[TrainingSession]") -> None:
        context, device = ray.train.get_context(), ray.train.torch.get_device()
        super().__init__(context.get_world_rank(), context.get_world_size(), str(device))
        self._session = session
        self._unreported = 0
        self._reported_at = self._beat_at = self._asked_at = self._looked_at = 0.0
        self._is_stopping, self._answer = False, None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        join_process_group(self.rank, self.world, "gloo" if device.type == "cpu" else "nccl")

    @override
    def batches(self, job: TrainingJob, first: int) -> Iterator[Batch | None]:
        return _prefetch(ray_data.batches(first))

    @override
    def is_stopping(self) -> bool:
        answer: Any = self._answer
        if answer is not None and ray.wait([answer], timeout=0)[0]:
            self._is_stopping, self._answer = ray.get(answer), None
        elif answer is None and time.monotonic() - self._asked_at >= REPORT_EVERY_S:
            self._answer, self._asked_at = self._session.is_stopping.remote(), time.monotonic()
        return self._is_stopping

    @override
    def is_notice_due(self) -> bool:
        is_due = self.rank == 0 and time.monotonic() - self._looked_at >= NOTICE_POLL_S
        if is_due:
            self._looked_at = time.monotonic()
        return is_due

    @override
    def has_notice(self) -> bool:
        return ray.train.get_preemption_info() is not None

    @override
    def show(self, line: dict[str, Any]) -> None:
        self._unreported += 1
        if time.monotonic() - self._reported_at >= REPORT_EVERY_S:
            self._session.report.remote(line, self._unreported)
            self._unreported, self._reported_at = 0, time.monotonic()

    @override
    def beat(self) -> None:
        if time.monotonic() - self._beat_at >= NOTICE_POLL_S:
            self._session.beat.remote()
            self._beat_at = time.monotonic()

    @override
    def say(self, text: str) -> None:
        self._session.say.remote(text)


def _prefetch(stream: Iterator[Batch]) -> Iterator[Batch | None]:
    """Return the batches of a stream, which a thread requests one ahead.

    None means that no batch came in `NOTICE_POLL_S`. The thread starts at once.
    """
    taker = futures.ThreadPoolExecutor(1)
    first = taker.submit(next, stream, None)

    def take() -> Iterator[Batch | None]:
        pending = first
        try:
            while True:
                if not futures.wait([pending], NOTICE_POLL_S).done:
                    yield None
                    continue
                if (batch := pending.result()) is None:
                    return
                pending = taker.submit(next, stream, None)
                yield batch
        finally:
            taker.shutdown(wait=False, cancel_futures=True)

    return take()
