"""The run directory: rows, identity, what is done, what is current. Knows files and ids; knows nothing of Ray or torch."""

from ray_app.runs.blocks import BlockTables, block_tables
from ray_app.runs.conservation import check_conservation
from ray_app.runs.directory import RunDirectory
from ray_app.runs.features import block_features, feature_rows, kept_features, vectors_of, write_features
from ray_app.runs.identity import differences, fingerprint
from ray_app.runs.masks import mask_image, mask_rows
from ray_app.runs.reader import current_masks, current_rows, current_tables
from ray_app.runs.retries import Retry, begin_retry, begun_retry, merge_retry
from ray_app.runs.rows import result_rows
from ray_app.runs.schema import MASK_SCHEMA, SCHEMA_VERSION, VIEWED_MASK_SCHEMA, row_schema
from ray_app.runs.summary import bottleneck, summarise

__all__ = [
    "RunDirectory",
    "Retry",
    "begin_retry",
    "begun_retry",
    "merge_retry",
    "fingerprint",
    "differences",
    "row_schema",
    "SCHEMA_VERSION",
    "MASK_SCHEMA",
    "VIEWED_MASK_SCHEMA",
    "BlockTables",
    "block_tables",
    "result_rows",
    "mask_rows",
    "feature_rows",
    "vectors_of",
    "write_features",
    "block_features",
    "kept_features",
    "mask_image",
    "current_masks",
    "current_rows",
    "current_tables",
    "check_conservation",
    "summarise",
    "bottleneck",
]
