"""What every process of one training session is given: the recipe, where its results go, and references to what is shared.

Knows no Ray call but reading a shared object; everything here is small and picklable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray_app.detectors import DetectorCard
from ray_app.storage import Guard, Store
from ray_app.training.config import TrainConfig
from ray_app.training.layout import Layout

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_app.augmentation import RealStatistics
    from ray_app.datasets.order import Order


@dataclass(frozen=True)
class Job:
    """`shared`: Ray references by name: `order`, and the labelled rows of `train`, `validation` and, where there is one, `test`.

    `milestones`: the steps after which the network is judged, the last one included; `mirror`: where workers find weights; `board`: the
    actor that the driver reads (ray_app.training.board); `guard`: which web servers are asked for images.
    """

    config: TrainConfig
    card: DetectorCard
    out: Store
    layout: Layout
    total_steps: int
    milestones: frozenset[int]
    shared: Mapping[str, Any]
    statistics: "RealStatistics | None" = None
    mirror: str | None = None
    board: Any = None
    guard: Guard = field(default_factory=Guard)

    def rows(self, split: str) -> "pa.Table":
        """The labelled rows of a split, read in place from the object store."""
        import ray

        table: pa.Table = ray.get(self.shared[split])
        return table

    def order(self) -> "Order":
        """Which rows each step sees."""
        import ray

        order: Order = ray.get(self.shared["order"])
        return order

    @property
    def wants_masks(self) -> bool:
        """Whether the loss, and so every batch, has masks."""
        return self.config.loss.name == "maskclip"

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written when so many steps are done."""
        every = self.config.faults.checkpoint_every
        return step in self.milestones or (every is not None and step % every == 0)
