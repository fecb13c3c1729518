"""Ray Data as the one way in which images are streamed through pools of actors: items → `Stage` after `Stage` → messages.

`stream(items, pools)` is the whole of it; `Feed` is a source that grows while it is read. Training hands a `dataset` to Ray Train instead,
and reads its `messages` there.
"""

from ray_app.streams.feed import Feed
from ray_app.streams.pool import Pool, dataset, messages, stream, through
from ray_app.streams.stage import Ended, Failed, Stage, translated

__all__ = ["Ended", "Failed", "Feed", "Pool", "Stage", "dataset", "messages", "stream", "through", "translated"]
