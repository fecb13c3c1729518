"""The contenders, one module each. Each runs in a fresh process, so that none profits from what
another has warmed up.
"""

from benchmarks.contenders import daft_guide, daft_model, dataloader, limit, ray_guide, touchstone
from benchmarks.contenders.contender import Contender

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        limit.LIMIT,
        *dataloader.DATALOADERS,
        ray_guide.RAY_GUIDE,
        daft_guide.DAFT_GUIDE,
        daft_model.DAFT_MODEL,
        touchstone.TOUCHSTONE,
    )
}
OURS = touchstone.TOUCHSTONE.name

__all__ = ["CONTENDERS", "OURS", "Contender"]
