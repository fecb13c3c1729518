"""Bring the rows of several sessions, whose columns may differ, to one schema (`RowShape`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.manifest import get_input_type, merge_input_types, widen_input
from ray_app.runs.directory import RunDirectory


@dataclass(frozen=True)
class RowShape:
    """A common schema for the rows of a run's sessions, whose columns may differ.

    A session is one command's work on the run. If some rows lack a column, it is null in these
    rows. A column that comes from the source table has a type that can represent all of its values,
    or else text.

    Attributes:
        schema: The common schema.
        input_type: The struct type of the source's own columns, or None if the source has none.
    """

    schema: pa.Schema
    input_type: pa.StructType | None

    @classmethod
    def of_files(cls, run: RunDirectory, paths: Sequence[str]) -> "RowShape":
        """Return the common shape of the rows in some files of a run.

        Its columns are in the order of the schema that has the most columns.
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
        """Return the rows converted to the common schema."""
        rows = widen_input(rows, self.input_type)
        columns = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.nulls(len(rows), field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)
