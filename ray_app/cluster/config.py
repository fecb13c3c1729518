"""Where a command on Ray executes, and how much of a node it may take (`ClusterConfig`)."""

from collections.abc import Mapping

from pydantic import Field

from ray_app.config import Frozen, Seconds
from ray_app.inference.decoder import WALL_LIMIT_S

# of a node's memory, which Ray schedules on; the rest is the object store and the system
RAY_SHARE = 0.7


class ClusterConfig(Frozen):
    """Where the run executes. Operational: none of it changes a score, so a resumed run may set it
    anew.
    """

    address: str | None = Field(
        default=None,
        description="Ray address; null starts a local cluster unless RAY_ADDRESS is set",
    )
    cpus: int | None = Field(
        default=None, ge=1, description="cores to plan for; null = what the cluster has now"
    )
    gpus: int | None = Field(
        default=None,
        ge=0,
        description="GPUs to plan for, also those an autoscaler has yet to start; null = what is there now",
    )
    workers: int | None = Field(
        default=None, ge=1, description="scoring processes; null = one per core, or one per GPU"
    )
    worker_bytes: int | None = Field(
        default=None,
        ge=2**28,
        description="memory that one scoring process may take; detectors that need more, by the sizes on their cards, take turns on each "
        "block; null = as many processes as take the least time in the memory of the smallest node, and with GPUs all detectors together",
    )
    labels: Mapping[str, str] = Field(
        default={},
        description="Ray node labels that the workers' nodes must have; {workload: '!serving'} leaves an endpoint's nodes alone",
    )
    object_store_bytes: int | None = Field(
        default=None,
        ge=80 * 2**20,
        description="object store of a local cluster; null = 512 MiB, or with a GPU 30 % of the memory or 90 % of /dev/shm, whichever is less",
    )
    stall_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="a run in which no block ends for this many seconds stops, and its state is kept; null = 15 minutes (an hour where "
        "images are of 8 MiB and more on average), or what a block of the largest images may take the slowest detectors",
    )
    grace_s: float | None = Field(
        default=None,
        ge=0,
        description="seconds that running work has to be committed when a run is to stop; null = 25 s after a signal or when the "
        "driver's machine is taken away, 60 s when --max-hours or --max-cost is reached; a job that `ray job stop` ends has 3 s less than "
        "RAY_JOB_STOP_WAIT_TIME_S, which is 3 s unless the head or the job sets it",
    )
    idle_s: Seconds | None = Field(
        default=None,
        ge=0,
        description="of a source that is followed: stop the workers if nothing new came for this time, and with them the nodes of an "
        "autoscaler; they start again for the next items; null = they stay until midnight (UTC)",
    )
    decode_limit_s: float = Field(
        default=WALL_LIMIT_S,
        gt=0,
        description="an image whose decoding takes longer is given up (decode_timeout); one of over 50 megapixels may take as many times "
        "longer as it is larger; on slow nodes set it higher, then --retry those",
    )
    decode_bytes: int | None = Field(
        default=None,
        ge=2**28,
        description="memory that images over 50 megapixels, and others that take much, may take together on one node: they wait for their "
        "turn, and one that takes more is image_too_large; null = a quarter of the node's memory",
    )
