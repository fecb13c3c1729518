"""Read labelled images, for training and evaluation.

A layout reads the labels of one published data set. `index` lists the images of a source once, with
their labels. `splits` divides the images into train, validation, and test. `sampling` decides the
order in which a training run reads the images.
"""

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
