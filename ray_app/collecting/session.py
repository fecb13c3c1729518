"""One session of collecting: what is missing is given out, what comes back is counted, until nothing is missing. Asks no host itself."""

from collections.abc import Iterable
from dataclasses import replace

from ray_app.collecting.collector import Told
from ray_app.collecting.config import CollectConfig
from ray_app.collecting.crews import Crew
from ray_app.collecting.feeding import Feeder, owner_of
from ray_app.collecting.state import Records
from ray_app.collecting.statuses import OK
from ray_app.collecting.wanted import Task
from ray_app.scoring.cluster import named_cluster
from ray_app.scoring.progress import Progress
from ray_app.storage import Lease

# Fewer are there before a local cluster would be up, or soon after: one process asks a thousand urls at once.
_FEW = 20_000
_LISTEN_S = 1.0


class Session:
    """The driver's side. `ended`: the status of every url that ended in this session, by id."""

    def __init__(self, config: CollectConfig, records: Records, lease: Lease, progress: Progress) -> None:
        self._config, self._records, self._lease, self._progress = config, records, lease, progress
        self.ended: dict[str, str] = {}
        self._feeders: list[Feeder] = []

    def run(self, crew: Crew, tasks: Iterable[Task]) -> None:
        """Until every task has ended and is committed. Raises the fault of a worker, IdentityError when another took the directory over."""
        self._feeders = [Feeder(self._config.politeness.per_host) for _ in range(crew.size)]
        self._add(tasks)
        try:
            while not all(feeder.is_done for feeder in self._feeders):
                self._turn(crew)
        finally:
            last = crew.close()
        for worker, told in last:
            self._heard(worker, told)

    def _turn(self, crew: Crew) -> None:
        for worker, feeder in enumerate(self._feeders):
            if tasks := feeder.next():
                crew.give(worker, tasks)
        for worker, told in crew.take(_LISTEN_S):
            if told is None:
                self._lost(worker)
            else:
                self._heard(worker, told)
        self._progress.redraw()
        self._lease.check()

    def _heard(self, worker: int, told: Told) -> None:
        feeder = self._feeders[worker]
        for name, status in told.ended:
            feeder.ended(name)
            if name not in self.ended:
                self._progress.advance(1, status != OK)
            self.ended[name] = status
        feeder.committed(told.committed)
        for task in told.moved:
            feeder.moved(task.id)
        self._add(told.moved)
        if told.fault is not None:
            raise told.fault

    def _lost(self, worker: int) -> None:
        """A worker died: what it had not committed is given out again. It may have committed more than it came to say."""
        state = self._records.read()
        there = dict(zip(state.rows["id"].to_pylist(), state.rows["ended_at"].to_pylist(), strict=True))
        again = [task for task in self._feeders[worker].again() if there.get(task.id) in (None, task.before)]
        self._progress.say(f"a worker died; {len(again):,} urls are asked again")
        self._add(replace(task, there=state.left.get(task.stem, ())) for task in again)

    def _add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._feeders[owner_of(task.host, len(self._feeders))].add([task])


def wants_ray(config: CollectConfig, urls: int) -> bool:
    """Ray where there is a cluster, or where it is asked for or pays; one worker without a cluster is this process."""
    if named_cluster(config.cluster.address):
        return True
    return config.cluster.workers != 1 and (config.cluster.workers is not None or urls > _FEW)
