"""Labelled images: how published sets tell their labels, the index of them, splits, and the order in which a training sees them.

Knows names, labels and counts. Opens images only to hash or to load them; knows no network and no Ray.
"""

from ray_app.datasets.config import Data, DatasetSource, HeldOut, Sampling
from ray_app.datasets.index import IndexInfo, build_index, index_source, read_index, read_info, write_index
from ray_app.datasets.labels import INPUT, Labels, parse_label
from ray_app.datasets.layouts import LAYOUTS, make_layout

__all__ = [
    "Data",
    "HeldOut",
    "Sampling",
    "DatasetSource",
    "INPUT",
    "Labels",
    "parse_label",
    "LAYOUTS",
    "make_layout",
    "IndexInfo",
    "write_index",
    "build_index",
    "read_index",
    "read_info",
    "index_source",
]
