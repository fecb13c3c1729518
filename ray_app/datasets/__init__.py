"""Read labelled images: layouts of published data sets, indexes, splits, and sample orders."""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.datasets.config import DatasetSource
    from ray_app.datasets.index import (
        IndexInfo,
        build_index,
        index_source,
        read_index,
        read_info,
        write_index,
    )
    from ray_app.datasets.labels import INPUT
    from ray_app.datasets.layouts import LAYOUTS, make_layout
else:
    __getattr__ = on_first_use(__name__)
