"""What the runs of a cluster ask of its autoscaler (`ask`), and take back when they end (`withdraw`).

Ray keeps one request for the whole cluster, the last one, until another replaces it: nodes stay up for it although nothing runs. So every
run notes its own beside it, under its job, and the request is always the sum of the notes of runs that live. A driver that was killed
leaves its note; whoever asks or ends next drops it.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from ray_app.errors import describe_error

_NOTES = b"touchstone_demand"  # the namespace of the notes in Ray's own key-value store, where the request lies, too

Demand = tuple[int, int, Mapping[str, str]]  # cores, GPUs, and the labels of nodes that may give them


def ask(cpus: int, gpus: int, labels: Mapping[str, str]) -> None:
    """Have so many cores and GPUs on nodes with these labels until `withdraw`, beside what other runs ask; an earlier ask is replaced."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_own_note(), json.dumps((cpus, gpus, dict(labels))).encode(), overwrite=True, namespace=_NOTES)
    _request()


def withdraw() -> None:
    """Take back what this run asked for, and what runs left that were killed, so that the autoscaler removes idle nodes.

    Never raises, as the end of whatever a run ended by; a line on stderr says that it failed. What others requested of Ray themselves stays
    where no run of ours asked for anything.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_del

    try:
        if ray.is_initialized() and _notes():
            _internal_kv_del(_own_note(), namespace=_NOTES)
            _request()
    except Exception as error:  # such as of a head that is gone, and its autoscaler with it
        print(f"nodes that this run requested were not given back: {describe_error(error)}; the next run's end does it", file=sys.stderr)


def _request() -> None:
    """Request what all notes say together. Another run may change its note meanwhile: whoever writes last has read all."""
    from ray.autoscaler.sdk import request_resources

    requested: dict[bytes, Demand] | None = None
    while (wanted := _living(_notes())) != requested:
        bundles, selectors = list[dict[str, int]](), list[dict[str, str]]()
        for cpus, gpus, labels in wanted.values():
            bundles += [{"CPU": 1}] * cpus + [{"GPU": 1}] * gpus
            selectors += [dict(labels)] * (cpus + gpus)
        request_resources(bundles=bundles, bundle_label_selectors=selectors)
        requested = wanted


def _living(notes: Mapping[bytes, bytes]) -> dict[bytes, Demand]:
    """The demands of runs whose driver is there; the notes of others are removed."""
    from ray._private.state import state
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import _internal_kv_del

    try:
        drivers: list[dict[str, Any]] = state.job_table()  # type: ignore[no-untyped-call]
    except RayError:  # of a driver that joined as a client, which sees no table: it lets all be
        drivers = [{"JobID": job.decode(), "IsDead": False} for job in notes]
    there = {job["JobID"].encode() for job in drivers if not job["IsDead"]} | {_own_note()}
    for gone in notes.keys() - there:
        _internal_kv_del(gone, namespace=_NOTES)
    return {job: json.loads(note) for job, note in notes.items() if job in there}


def _notes() -> dict[bytes, bytes]:
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

    found = {job: _internal_kv_get(job, namespace=_NOTES) for job in _internal_kv_list(b"", namespace=_NOTES)}
    return {job: note for job, note in found.items() if note is not None}


def _own_note() -> bytes:
    import ray

    return str(ray.get_runtime_context().get_job_id()).encode()
