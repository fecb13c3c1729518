"""Score an archive on Ray: list it, cut it into blocks, and write a run directory.

Importing this package does not import Ray. Ray is imported when a run starts.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.scoring.config import ScoreConfig
else:
    __getattr__ = on_first_use(__name__)
