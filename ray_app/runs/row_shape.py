"""Convert the rows of a run to one schema (`RowShape`).

The columns of a run's Parquet files may differ, because a later command on the run can add columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.manifest import get_input_type, merge_input_types, widen_input
from ray_app.runs.directory import RunDirectory


@dataclass(frozen=True)
class RowShape:
    """A common schema for all rows of a run, whose files may have different columns.

    If some rows lack a column, its value is null in these rows. If the scored source is a table of
    images, the column `input` is a struct with the columns of this table. Each field of the struct
    gets a type that can represent its values in all files, or else text.

    Attributes:
        schema: The common schema.
        input_type: The struct type of `input`, or None if the source has no columns.
    """

    schema: pa.Schema
    input_type: pa.StructType | None

    @classmethod
    def of_files(cls, run: RunDirectory, paths: Sequence[str]) -> "RowShape":
        """Find the common schema of the rows in some Parquet files of a run.

        The columns are in the order of the file that has the most columns.

        Args:
            run: The run directory.
            paths: The paths of the files, relative to the run directory.

        Returns:
            The common schema.
        """
        schemas = []
        for path in paths:
            with run.store.open_file(path) as handle:
                schemas.append(pq.read_schema(handle))
        empty = [schema.empty_table() for schema in dict.fromkeys(schemas)]
        if not empty:
            return cls(pa.schema([]), None)
        merged_type = merge_input_types(map(get_input_type, empty), as_text=True)
        schemas = [widen_input(table, merged_type).schema for table in empty]
        fields = {
            field.name: field for field in pa.unify_schemas(schemas, promote_options="permissive")
        }
        longest = max(schemas, key=lambda schema: len(schema.names)).names
        names = [*longest, *(name for name in fields if name not in longest)]
        return cls(
            pa.schema([fields[name] for name in names], metadata=schemas[-1].metadata), merged_type
        )

    def apply(self, rows: pa.Table) -> pa.Table:
        """Return rows of the run, converted to the common schema.

        Missing columns are added, with null values.
        """
        rows = widen_input(rows, self.input_type)
        columns = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.nulls(len(rows), field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)
