"""One session of Ray Train, from the last committed checkpoint to the last step: `fit`, the only place that builds a trainer.

Ray Train's `fit` runs in a thread, since in the main thread it would take SIGINT for itself; the main thread watches the board, draws
the progress line and handles signals. Processes meet at one address (`OneAddress`): torch's store listens on all and needs no secret.
"""

import contextlib
import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from datetime import timedelta
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.validation_config import ValidationConfig, ValidationTaskConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ray_app.cluster.shutdown import signal_grace_s
from ray_app.errors import ClusterError, describe_error
from ray_app.metrics import FIGURES
from ray_app.training import checkpoints, ray_data, worker
from ray_app.training.job import TrainingJob
from ray_app.training.progress import ProgressReport, TrainingProgress
from ray_app.training.validate import validate, validations

POLL_S = 0.5
COPY_EVERY_S = 2.0  # Ray Train registers checkpoints as often
STALL_S = 900.0
END_S = 60.0  # on a busy machine
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # importing torch in every worker of a busy machine takes its time
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def fit(job: TrainingJob) -> None:
    """Train until the last step is committed and every validation is over.

    Raises the TouchstoneError that a worker met, ClusterError when Ray Train gives up or nothing happens for too long, and
    KeyboardInterrupt, after the workers have saved, when a signal requests to stop.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    over = _in_thread(_trainer(job).fit)
    progress = TrainingProgress(job.total_steps)
    watch = _Watch(job, over, progress)
    try:
        watch.wait()
    except KeyboardInterrupt:
        watch.let_them_save()
        raise
    finally:
        progress.close()
        _end(job, over)
    if over.done() and (error := over.exception()) is not None:
        first = next(iter(getattr(error, "worker_failures", {}).values()), error)
        raise ClusterError(
            f"training gave up: {describe_error(first)}", hint="the same command goes on; the Ray session's logs say more"
        ) from error
    if not checkpoints.is_trained(job.out):
        raise ClusterError("training ended before its last step was committed", hint="the same command goes on")


class _Introduction(ControllerCallback):
    """Makes Ray Train's controller known to the driver, which has no other way to end it but from the main thread."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called in the controller's own process."""
        self._board.introduce.remote(ray.get_runtime_context().current_actor)


def _end(job: TrainingJob, over: "futures.Future[None]") -> None:
    """See the thread out of Ray: one that still waits inside while Ray is shut down takes the whole process along."""
    if over.done():
        return
    controller = ray.get(job.board.controller.remote())
    if controller is not None:
        with contextlib.suppress(RayError):
            ray.get(controller.abort.remote(), timeout=END_S)
        with contextlib.suppress(RayError):
            ray.kill(controller)
    futures.wait([over], END_S)


def _in_thread(call: Callable[[], Any]) -> "futures.Future[None]":
    """Run a call in a thread of its own; the future says how it ends.

    The future is checked instead of `Thread.is_alive`: a signal that interrupts `Thread.join` makes Python 3.11 believe that the thread has
    ended (bpo-45274).
    """
    over: futures.Future[None] = futures.Future()

    def run() -> None:
        try:
            call()
            over.set_result(None)
        except BaseException as error:  # whoever waits has to learn of any end
            over.set_exception(error)

    threading.Thread(target=run, name="fit", daemon=True).start()
    return over


class _Watch:
    """The main thread's view of one session."""

    def __init__(self, job: TrainingJob, over: "futures.Future[None]", progress: TrainingProgress) -> None:
        self._job, self._over, self._progress = job, over, progress
        self._last_report, self._changed_at = ProgressReport({}), time.monotonic()
        self._copied_at = 0.0
        self._patience_s = job.config.cluster.stall_timeout_s or STALL_S

    def wait(self) -> None:
        """Until the thread ends. Raises what a worker reported, and ClusterError at a standstill."""
        while not self._over.done():
            self._check_board()
            futures.wait([self._over], POLL_S)
        self._check_board()

    def let_them_save(self) -> None:
        """Ask the workers to save and stop, and give them some time; a second signal ends that."""
        grace_s = signal_grace_s(self._job.config.cluster.grace_s)
        until = time.monotonic() + grace_s
        if not ray.get(self._job.board.read.remote()).steps:
            return
        self._progress.say(f"stopping: the workers have {grace_s:.0f} s to save; a second signal stops at once")
        self._job.board.stop.remote()
        while not self._over.done() and time.monotonic() < until and not self._is_saved():
            futures.wait([self._over], POLL_S)

    def _is_saved(self) -> bool:
        stopped = ray.get(self._job.board.read.remote()).figures.get("stopped")
        return stopped is not None and any(one.step >= stopped for one in checkpoints.kept(self._job.out))

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
        if now - self._copied_at >= COPY_EVERY_S:
            self._copied_at = now
            checkpoints.copy_list(self._job.out)
            self._progress.judged(_last_judged(self._job))
        self._progress.show(report)


def _trainer(job: TrainingJob) -> TorchTrainer:
    config, layout = job.config, job.layout
    shared = ray.put(job)
    request = {"CPU": layout.worker_cpus} | ({"GPU": layout.worker_gpus} if layout.worker_gpus else {})
    labels, metric = dict(config.cluster.labels), config.validation.metric
    chosen: dict[str, Any] = {"checkpoint_score_attribute": metric, "checkpoint_score_order": FIGURES[metric]}
    judging: dict[str, Any] = {"num_cpus": layout.validation_cpus, "num_gpus": layout.validation_gpus}
    return TorchTrainer(
        worker.train_worker,
        train_loop_config={"job": shared},
        torch_config=OneAddress(),
        datasets={} if "vectors" in job.shared else {ray_data.TRAIN: partial(ray_data.steps_to_come, job)},
        dataset_config=ray_data.Shards(job),
        scaling_config=ScalingConfig(
            num_workers=layout.workers if layout.least == layout.workers else (layout.least, layout.workers),
            use_gpu=layout.worker_gpus > 0,
            resources_per_worker=request,
            label_selector=labels or None,
        ),
        run_config=RunConfig(
            name=checkpoints.RUN,
            **checkpoints.storage(job.out),
            failure_config=FailureConfig(max_failures=config.faults.max_failures),
            callbacks=[_Introduction(job.board)],  # type: ignore[list-item]
            checkpoint_config=CheckpointConfig(num_to_keep=config.faults.keep, **({} if config.method == "describe" else chosen)),
        ),
        validation_config=ValidationConfig(
            fn=validate,
            task_config=ValidationTaskConfig(fn_kwargs={"job": shared}),
            ray_remote_kwargs=judging | ({"label_selector": labels} if labels else {}),
        ),
    )


def _last_judged(job: TrainingJob) -> str:
    if not (found := validations(job.out)):
        return ""
    metric, last = job.config.validation.metric, found[-1]
    value = last.get(metric)
    return "" if value is None else f"{metric} {value:.4f} at {last['step']:,}"


class OneAddress(TorchConfig):
    """Ray Train's way to set up torch.distributed, but for the address of the store: that of the first worker's node alone."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `ray.train.backend.BackendConfig`."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: WorkerGroup, backend_config: TorchConfig) -> None:  # type: ignore[override]  # as TorchBackend's own
        worker_group.execute(meet_at_one_address)
        super().on_start(worker_group, backend_config)


def meet_at_one_address() -> None:
    """From now on the store of this process's `env://` rendezvous listens on MASTER_ADDR alone. PyTorch has no setting for it."""
    rendezvous = importlib.import_module("torch.distributed.rendezvous")  # as an attribute of its package the name is a function
    rendezvous._create_c10d_store = _store  # type: ignore[attr-defined]


def _store(hostname: str, port: int, rank: int, world_size: int, timeout: timedelta, use_libuv: bool = True) -> TCPStore:
    if rank:
        return TCPStore(hostname, port, world_size, is_master=False, timeout=timeout)
    family = socket.AF_INET6 if ":" in hostname else socket.AF_INET
    listening = socket.create_server((hostname, port), family=family, backlog=1024).detach()
    return TCPStore(
        hostname, port, world_size, is_master=True, timeout=timeout, multi_tenant=True, master_listen_fd=listening, use_libuv=use_libuv
    )
