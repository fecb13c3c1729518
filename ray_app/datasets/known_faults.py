"""Documented faults of published data sets, from `configs/datasets/known_faults.yaml`: those of a
source (`faults_of`), lines on them (`fault_lines`), and labels without what they spoil (`spared`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

from pydantic import Field

from ray_app.config import Frozen, config_root, read_mapping, validate
from ray_app.datasets.labels import Label, Labels

Stratum = tuple[str | None, str, str]
"""Split, label and generator of some rows."""


class KnownFault(Frozen):
    """One documented fault, and the rows that have it.

    Attributes:
        layouts: Layouts of the data.
        at: Words of which one is in the path or URL of the data; none matches any.
        version: What the argument `version` of the layout begins with.
        splits: Splits of the rows; none matches any.
        label: Label of the rows; None matches both.
        generators: Globs of which one matches the generator of the rows.
        numbers: Only rows whose file has a number in this range as its name, ends included.
        leave_out: Whether the image or its prompt should be left out; None if neither helps.
        source: Where the fault is documented.
        looked_up: When `source` was read.
    """

    name: str
    data: str
    layouts: tuple[str, ...] = Field(min_length=1)
    at: tuple[str, ...] = ()
    version: str = ""
    splits: tuple[str, ...] = ()
    label: Label | None = None
    generators: tuple[str, ...] = ("*",)
    numbers: tuple[int, int] | None = None
    kind: Literal["prompts", "labels", "content", "duplicates", "format", "size", "compression"]
    what: str
    leave_out: Literal["image", "prompt"] | None = None
    source: str = Field(min_length=10)
    looked_up: date

    def holds(self, stratum: Stratum) -> bool:
        """Return whether rows of this split, label, and generator may have the fault."""
        split, label, generator = stratum
        is_by = any(fnmatchcase(generator, glob) for glob in self.generators)
        return is_by and self.label in (None, label) and (not self.splits or split in self.splits)


@cache
def known_faults() -> Mapping[str, KnownFault]:
    """Return all documented faults by name. Raises ConfigError."""
    file = config_root() / "datasets/known_faults.yaml"
    return {
        name: validate({"name": name, **fault}, KnownFault, where=f"{file}, {name}")
        for name, fault in read_mapping(file).items()
    }


def faults_of(source: Mapping[str, Any]) -> list[KnownFault]:
    """Return the faults of a source, from its `layout`, `at`, and `arguments` as an index keeps
    them. Without an argument `version`, faults of all versions match.
    """
    place, version = (
        " ".join(source.get("at", ())).lower(),
        source.get("arguments", {}).get("version"),
    )
    of_layout = [
        fault for fault in known_faults().values() if source.get("layout") in fault.layouts
    ]
    there = [
        fault for fault in of_layout if not fault.at or any(word in place for word in fault.at)
    ]
    return [fault for fault in there if version is None or str(version).startswith(fault.version)]


def fault_lines(
    faults: Iterable[KnownFault], strata: Mapping[Stratum, int] | None, *, left_out: bool = False
) -> list[str]:
    """Return a line for each fault that some rows may have.

    Args:
        faults: Faults of the source.
        strata: Number of rows of each stratum; None if unknown.
        left_out: Whether spoiled images and prompts are left out.
    """
    lines = []
    for fault in faults:
        rows = sum(count for stratum, count in (strata or {}).items() if fault.holds(stratum))
        if rows or strata is None:
            count = "some" if fault.numbers or strata is None else f"{rows:,}"
            option = (
                f"{fault.leave_out}s left out"
                if left_out
                else f"leave_out_faults leaves these {fault.leave_out}s out"
            )
            what = f"{fault.what}; {option}" if fault.leave_out else fault.what
            lines.append(
                f"{fault.data}, {count} rows: {what} ({fault.name}, {fault.source.partition('; ')[0]})"
            )
    return lines


def spared(labels: Labels, faults: Iterable[KnownFault]) -> Labels | None:
    """Return the labels without a prompt that a fault spoils, and without the group of that prompt;
    None if a fault spoils the image.
    """
    spoiled = {
        fault.leave_out
        for fault in faults
        if fault.holds((labels.split, labels.label, labels.generator))
    }
    if "prompt" in spoiled:
        labels = replace(
            labels,
            prompt=None,
            group=None if (labels.group or "").startswith("prompt:") else labels.group,
        )
    return None if "image" in spoiled else labels
