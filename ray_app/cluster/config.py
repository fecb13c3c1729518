"""Configure where a command runs on Ray, and how much of a node it may use (`ClusterConfig`)."""

from collections.abc import Mapping

from pydantic import Field

from ray_app.config import Frozen, Seconds
from ray_app.inference.decoder import WALL_LIMIT_S

# The fraction of a node's memory that Ray schedules. The rest is the object store and the system.
RAY_SHARE = 0.7


class ClusterConfig(Frozen):
    """The Ray cluster that a command runs on, and the cores, memory, and time that it may use.

    These settings do not change scores, so a resumed run may change them.
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
        description="GPUs to plan for, including those that an autoscaler starts later; null = what the cluster has now",
    )
    workers: int | None = Field(
        default=None, ge=1, description="scoring processes; null = one per core, or one per GPU"
    )
    worker_bytes: int | None = Field(
        default=None,
        ge=2**28,
        description="memory that one scoring process may use; detectors that need more, by the sizes on their cards, take turns on each "
        "block; null = the number of processes that is fastest in the memory of the smallest node, and with GPUs all detectors together",
    )
    labels: Mapping[str, str] = Field(
        default={},
        description="Ray node labels that the workers' nodes must have; {workload: '!serving'} excludes the nodes of an endpoint",
    )
    object_store_bytes: int | None = Field(
        default=None,
        ge=80 * 2**20,
        description="object store of a local cluster; null = 512 MiB, or with a GPU the smaller of 30 % of the memory and 90 % of /dev/shm",
    )
    stall_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="a run stops if no block ends for this many seconds, and its state is kept; null = 15 minutes (an hour if "
        "images have 8 MiB or more on average), or longer if a block of the largest images may take the slowest detectors longer",
    )
    grace_s: float | None = Field(
        default=None,
        ge=0,
        description="seconds in which running work may still be committed when a run has to stop; null = 25 s after a signal or when the "
        "driver's machine is taken away, 60 s when --max-hours or --max-cost is reached; after `ray job stop` at most "
        "RAY_JOB_STOP_WAIT_TIME_S minus 3 s, and that variable is 3 s unless the head or the job sets it",
    )
    idle_s: Seconds | None = Field(
        default=None,
        ge=0,
        description="with `follow`: stop the workers, and the nodes of an autoscaler with them, if no new item came for this time; "
        "they start again for the next items; null = they stay until midnight (UTC)",
    )
    decode_limit_s: float = Field(
        default=WALL_LIMIT_S,
        gt=0,
        description="maximum seconds for decoding an image; after that its status is decode_timeout; an image of over 50 megapixels may take "
        "as many times longer as it is larger; on slow nodes use a higher value, then --retry those images",
    )
    decode_bytes: int | None = Field(
        default=None,
        ge=2**28,
        description="memory that images over 50 megapixels, and others that need much, may use together on one node: they wait for their "
        "turn, and an image that needs more is image_too_large; null = a quarter of the node's memory",
    )
