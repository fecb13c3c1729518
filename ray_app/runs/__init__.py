"""Read and write run directories, the folders in which `touchstone score` stores its results.

`RunDirectory` gives access to the files of a run. To only read the results of a run from Python,
use `scored_run.load_run`.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.runs.artifacts import (
        feature_rows,
        mask_image,
        mask_rows,
        write_features,
    )
    from ray_app.runs.current import (
        ChangedRows,
        CurrentRows,
        current_rows,
        current_tables,
    )
    from ray_app.runs.directory import RunDirectory, differences, fingerprint
    from ray_app.runs.retry import begin_retry
    from ray_app.runs.rows import BlockTables, block_tables, result_rows
    from ray_app.runs.schema import MASK_SCHEMA, SCHEMA_VERSION, VIEWED_MASK_SCHEMA, row_schema
    from ray_app.runs.summary import bottleneck, summarise
    from ray_app.runs.verify import check_conservation, verify_run
else:
    __getattr__ = on_first_use(__name__)
