"""Read from Python a run that `touchstone score` wrote.

`load_run` returns a `ScoredRun`, which gives access to rows and images (`RunImage`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import ManifestMember, MemberReader, load_guard
from ray_app.errors import VERDICT_PHRASES, ConfigError, InputError, Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import result_html
from ray_app.runs import directory, selection
from ray_app.runs.current import CurrentRows
from ray_app.storage import Fetcher

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image


class ScoredRun:
    """Read the rows and images of a run. Nothing is written to the run directory.

    All rows are current rows: the newest row of each image. Images that were missing when
    `touchstone score` last listed the archive have no current row.

    Attributes:
        url: The URL of the run directory.

    Examples:
        >>> run = ray_app.load_run("run")
        >>> run.table(["uri", "score"]).num_rows
        2086
    """

    def __init__(self, run: directory.RunDirectory) -> None:
        self._run, self.url = run, run.store.url
        self._run_info = run.describe()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`, such as counts of statuses and verdicts, and the bottleneck.

        Raises:
            ConfigError: If the run has not finished.
        """
        self._run.describe_finished()
        return self._run.read_json("summary.json")

    @property
    def detectors(self) -> tuple[str, ...]:
        """The names of the detectors that scored the images."""
        return tuple(self._run_info["detectors"])

    def tables(
        self,
        columns: Sequence[str] | None = None,
        *,
        vanished: bool = False,
        unfinished: bool = False,
    ) -> Iterator[pa.Table]:
        """Yield the current rows, as tables of bounded size.

        Args:
            columns: Some columns of `runs.schema.row_schema`. None reads all.
            vanished: Also yield rows of files that the last listing no longer found, because they
                were changed or removed.
            unfinished: Also yield the rows so far of a listing or a retry that is not finished.

        Returns:
            An iterator over tables.

        Raises:
            ConfigError: If a column does not exist, or if no listing is finished and `unfinished`
                is False.
        """
        selected_columns = None if columns is None else list(dict.fromkeys(["image_id", *columns]))
        rows = CurrentRows.at_end(self._run) if unfinished else CurrentRows.read(self._run)
        for table in rows.tables(selected_columns, vanished=vanished):
            if missing := [name for name in columns or () if name not in table.column_names]:
                valid_names = ", ".join(next(rows.tables()).column_names)
                raise ConfigError(
                    f"{self.url}: no column {', '.join(missing)}; the columns are: {valid_names}"
                )
            yield table if columns is None else table.select(list(columns))

    def table(
        self,
        columns: Sequence[str] | None = None,
        *,
        vanished: bool = False,
        unfinished: bool = False,
    ) -> pa.Table:
        """Return the current rows as one table in memory.

        Args:
            columns: Some columns of `runs.schema.row_schema`. None reads all.
            vanished: Also return rows of files that the last listing no longer found, because they
                were changed or removed.
            unfinished: Also return the rows so far of a listing or a retry that is not finished.

        Returns:
            The table.

        Raises:
            ConfigError: If a column does not exist, the run has no rows yet, or no listing is
                finished and `unfinished` is False.
        """
        tables = list(self.tables(columns, vanished=vanished, unfinished=unfinished))
        if not tables:
            raise ConfigError(
                f"{self.url}: this run has no rows yet",
                hint="repeat the touchstone score command that started this run",
            )
        return pa.concat_tables(tables, promote_options="permissive")

    def to_frame(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Return the current rows as a pandas DataFrame.

        A column `score_NAME` for each detector replaces the column `scores`.

        Args:
            columns: Some columns of `runs.schema.row_schema`. None reads all.

        Returns:
            The data frame.

        Raises:
            ConfigError: If a column does not exist, or the run has no rows or no finished listing.
        """
        table = self.table(columns)
        for name in self.detectors if "scores" in table.column_names else ():
            table = table.append_column(f"score_{name}", pc.struct_field(table["scores"], name))
        return table.drop_columns(
            [name for name in ("scores",) if name in table.column_names]
        ).to_pandas()

    def images(
        self,
        verdict: str | None = None,
        *,
        status: str | None = None,
        generator: str | None = None,
        match: str | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
        finding: str | None = None,
    ) -> Iterator["RunImage"]:
        """Yield the images that match all filters, in the order of the archive.

        Args:
            verdict: `fake`, `real`, or `abstain`.
            status: A status, such as `ok`.
            generator: The predicted generator, or its family.
            match: A glob (* and ?) for the URI of the file or of the archive that contains it.
            min_score: The minimum score (log-odds).
            max_score: The maximum score (log-odds).
            finding: Text that the finding contains, in upper or lower case. A finding is the
                conclusion on the origin of the file.

        Returns:
            An iterator over images with their rows.

        Raises:
            ConfigError: If a filter has an unknown value, or the run has not finished.
        """
        row_filter = selection.RowFilter(
            verdict, status, generator, match, min_score, max_score, finding
        )
        for value, valid, name in (
            (verdict, VERDICT_PHRASES, "verdict"),
            (row_filter.status, [status.value for status in Status], "status"),
        ):
            if value is not None and value not in valid:
                raise ConfigError(f"unknown {name} '{value}'; use one of: {', '.join(valid)}")
        if row_filter.generator is not None:
            selection.require_known_generator(self._run, row_filter.generator)
        self._run.describe_finished()
        return self._images(row_filter)

    def _images(self, row_filter: selection.RowFilter) -> Iterator["RunImage"]:
        limits, fetcher = self._run.limits(), Fetcher(guard=load_guard(self._run.store))
        for table, members in CurrentRows.read(self._run).members():
            for row in row_filter.select(table).to_pylist():
                yield RunImage(row, members[row["image_id"]], fetcher, limits)

    def __repr__(self) -> str:
        if not self._run.store.exists("summary.json"):
            return f"ScoredRun({self.url!r}, not finished)"
        counts = ", ".join(
            f"{count:,} {verdict}" for verdict, count in self.summary["verdicts"].items()
        )
        return f"ScoredRun({self.url!r}, {self.summary['members']:,} images: {counts})"


@dataclass(frozen=True)
class RunImage:
    """One image of a run, with its row and access to its file.

    Attributes:
        row: The columns of `runs.schema.row_schema`.
    """

    row: Mapping[str, Any]
    _member: ManifestMember
    _fetcher: Fetcher
    _limits: ImageLimits

    @property
    def uri(self) -> str:
        """The URL of the file, or of the archive that contains it."""
        return str(self.row["uri"])

    @property
    def member(self) -> str | None:
        """The name of the file in the archive. None for a file outside of archives."""
        return self.row["member"]  # type: ignore[no-any-return]

    def read(self) -> bytes:
        """Read the encoded bytes of the image file again from its source.

        Returns:
            The bytes of the file.

        Raises:
            SourceError: If the file is missing, or was changed after the run scored it.
            InputError: If the file is too large.
        """
        [(_, data)] = MemberReader(self._fetcher, max_bytes=self._limits.max_bytes).read(
            [self._member]
        )
        if isinstance(data, InputError):
            raise data
        return data

    def open(self) -> "Image.Image":
        """Read and decode the image.

        Returns:
            The image as RGB.

        Raises:
            InputError: If the file cannot be read or decoded.
        """
        return decode_image(self.read(), self._limits).pixels

    def __repr__(self) -> str:
        location = self.uri if self.member is None else f"{self.uri}::{self.member}"
        return f"RunImage({location!r}, status={self.row['status']!r}, verdict={self.row['verdict']!r}, score={self.row['score']!r})"

    def _repr_html_(self) -> str:
        location = self.uri if self.member is None else f"{self.uri} · {self.member}"
        try:
            data = self.read() if self.row["status"] == Status.OK else None
        except InputError:
            data = None
        return result_html.card(
            {**self.row, "source": location, "scores": self.row["scores"] or {}}, data
        )


def load_run(path: str) -> ScoredRun:
    """Open a run that `touchstone score --out` wrote.

    Args:
        path: A path, or any fsspec URL.

    Returns:
        The run.

    Raises:
        ConfigError: If there is no run at this path.

    Examples:
        >>> run = ray_app.load_run("run")
        >>> for image in run.images("fake"):
        ...     print(image.uri, image.row["score"])
    """
    run = directory.RunDirectory.open(str(path))
    if not run.exists():
        raise run.missing_run_error()
    return ScoredRun(run)
