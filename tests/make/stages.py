"""The stages of both layouts, one block after another in this process: what workers do on Ray,
without Ray.
"""

import math
import pickle
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import cloudpickle
import pytest

from ray_app.archives import map_serial
from ray_app.archives.listing import ListingOutcome, list_archive
from ray_app.errors import TouchstoneError
from ray_app.scoring import sample
from ray_app.scoring.control import Control
from ray_app.scoring.plan import plan_run
from ray_app.scoring.stages import (
    BlockCommitter,
    BlockDecoder,
    BlockReport,
    BlockScorer,
    StoredBlockScorer,
    scorer_stages,
)
from ray_app.streams.stage import StageFailure, deserialize, serialize

# Settings that lay out a run so on a CPU.
LAYOUTS = {"fused": {"device": "cpu"}, "split": {"device": "cpu", "cluster": {"gpus": 1}}}


def of_tiny(settings):
    """Settings of a run, with the demonstration ensemble where they name neither ensemble nor
    detectors; `ensemble=None`: none is named.
    """
    if {"ensemble", "detectors"} & settings.keys():
        return {name: one for name, one in settings.items() if (name, one) != ("ensemble", None)}
    return settings | {"ensemble": "tiny"}


@contextmanager
def without_ray():
    """Inside, `score_archive` and every command that calls it do all that they do, but for Ray: two
    cores, its stages in this process.
    """
    given = {
        "cluster": lambda config, **_: nullcontext(),
        "resources": lambda config: (float(config.cpus or 2), float(config.gpus or 0), math.inf),
        "working_nodes": lambda labels: (1, None),
        "planned_nodes": lambda labels, cpus: (1, None),
        "has_other_nodes": lambda: False,
        "get_draining_nodes": dict,
        "current_node_id": str,
        "on_ray": map_serial,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in given.items():
            for module in (
                "ray_app.cluster.ray_cluster",
                "ray_app.scoring.run",
            ):
                patch.setattr(f"{module}.{name}", stand_in, raising=False)
        patch.setattr("ray_app.scoring.engine.score_turn", _score_turn)
        patch.setattr(
            "ray_app.scoring.run.start_control", lambda window: nullcontext(Control(window))
        )
        patch.setattr("ray_app.scoring.run.ListingProcess", ListingHere)
        yield


@contextmanager
def probed_here():
    """Inside, the probe of a plan works in this process, which starts no other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_WorkerProcess", ProbeHere)
        yield


def plan_here(config, **options):
    with probed_here():
        return plan_run(config, **options)


class ProbeHere:
    """A process of the probe, in this process."""

    def __init__(self, job, kind):
        self._stages = sample._open_stages(pickle.loads(pickle.dumps(job)), kind)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if (reading := getattr(self._stages[0], "_reading", None)) is not None:
            reading.close()

    def send(self, ref):
        self._ref = ref

    def receive(self):
        done = sample._work(self._stages, self._ref)
        if isinstance(done, TouchstoneError):
            raise done
        return done


class ListingHere:
    """In place of a `ListingProcess`: lists in this process, before anything is scored."""

    is_running = False

    def __init__(self, request):
        self._request, self._outcome, self._error = request, ListingOutcome(), None

    def __enter__(self):
        try:
            if info := list_archive(self._request, lambda members: None):
                self._outcome = ListingOutcome(members=info.members, blocks=info.blocks)
        except TouchstoneError as error:
            self._error = error
        return self

    def __exit__(self, *_):
        pass

    def result(self):
        if self._error is not None:
            raise self._error
        return self._outcome


def _score_turn(turn, job, layout, watch):
    for finished, message in enumerate(_messages(turn(), job, layout.kind), 1):
        watch.progressed()
        turn.control.release(finished)
        if isinstance(message, BlockReport):
            yield message


def split_stages(job):
    scorers = [stage(job, *arguments) for stage, arguments in scorer_stages(job)]
    return [BlockDecoder(job), *scorers, BlockCommitter(job)]


def _messages(refs, job, kind):
    """What the last stage gives for each block; the job arrives as processes get it."""
    job = replace(
        cloudpickle.loads(cloudpickle.dumps(replace(job, control=None))), control=job.control
    )
    fused = BlockScorer if job.stored is None else StoredBlockScorer
    stages = [fused(job)] if kind == "fused" else split_stages(job)
    try:
        for ref in refs:
            table = serialize(ref)
            for stage in stages:
                table = stage(table)
            message = deserialize(table)
            if isinstance(message, StageFailure):
                raise message.error
            yield message
    finally:
        if (reading := getattr(stages[0], "_reading", None)) is not None:
            reading.close()
