"""Look up documented faults of published data sets, from `configs/datasets/known_faults.yaml`.

A fault is an error in the data, such as prompts that belong to other images. `find_faults` returns
the faults of a source, and `fault_lines` describes them for users. `drop_faulty_labels` leaves out
the images and prompts that a fault makes wrong.
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
"""Split, label, and generator of some rows."""


class KnownFault(Frozen):
    """One documented fault of a published data set, such as prompts that belong to other images.

    `layouts`, `at`, and `version` select the data. `splits`, `label`, and `generators` select the
    rows that may have the fault. `numbers` selects rows by the number that is their file name.
    """

    name: str = Field(description="name of the fault")
    data: str = Field(description="name of the data set")
    layouts: tuple[str, ...] = Field(min_length=1, description="layouts of the data")
    at: tuple[str, ...] = Field(
        default=(), description="the path or URL of the data contains one of these; empty = any"
    )
    version: str = Field(
        default="", description="beginning of the layout's argument `version`; empty = any"
    )
    splits: tuple[str, ...] = Field(default=(), description="splits of the rows; empty = any")
    label: Label | None = Field(default=None, description="label of the rows; null = both")
    generators: tuple[str, ...] = Field(
        default=("*",), description="globs, one of which matches the generator of the rows"
    )
    numbers: tuple[int, int] | None = Field(
        default=None,
        description="only rows whose file name is a number in this range, both ends included; null = all",
    )
    kind: Literal["prompts", "labels", "content", "duplicates", "format", "size", "compression"] = (
        Field(description="kind of the fault")
    )
    what: str = Field(description="the fault, as text")
    leave_out: Literal["image", "prompt"] | None = Field(
        default=None,
        description="whether leaving out the image or its prompt avoids the fault; null = neither",
    )
    source: str = Field(min_length=10, description="where the fault is documented")
    looked_up: date = Field(description="when `source` was read")

    def holds(self, stratum: Stratum) -> bool:
        """Return whether rows of this split, label, and generator may have the fault.

        Args:
            stratum: The split, label, and generator of the rows.

        Returns:
            True if the fault is documented for such rows, even if only for some of them.
        """
        split, label, generator = stratum
        is_by_generator = any(fnmatchcase(generator, glob) for glob in self.generators)
        return (
            is_by_generator
            and self.label in (None, label)
            and (not self.splits or split in self.splits)
        )


@cache
def known_faults() -> Mapping[str, KnownFault]:
    """Return all documented faults by name.

    Raises:
        ConfigError: The file known_faults.yaml is invalid.
    """
    file = config_root() / "datasets/known_faults.yaml"
    return {
        name: validate({"name": name, **fault}, KnownFault, where=f"{file}, {name}")
        for name, fault in read_mapping(file).items()
    }


def find_faults(source: Mapping[str, Any]) -> list[KnownFault]:
    """Return the documented faults of a source.

    Args:
        source: The keys `layout`, `at`, and `arguments` of the source, as in `IndexInfo.source`. If
            the arguments have no `version`, faults of all versions match.

    Returns:
        The faults. Empty if none is documented.
    """
    path, version = (
        " ".join(source.get("at", ())).lower(),
        source.get("arguments", {}).get("version"),
    )
    layout_faults = [
        fault for fault in known_faults().values() if source.get("layout") in fault.layouts
    ]
    data_faults = [
        fault for fault in layout_faults if not fault.at or any(term in path for term in fault.at)
    ]
    return [
        fault for fault in data_faults if version is None or str(version).startswith(fault.version)
    ]


def fault_lines(
    faults: Iterable[KnownFault], strata: Mapping[Stratum, int] | None, *, left_out: bool = False
) -> list[str]:
    """Return a line of text for each fault that some rows may have, to print for the user.

    Args:
        faults: Faults of the source, from `find_faults`.
        strata: Number of rows by split, label, and generator. None if unknown: then every fault
            gets a line.
        left_out: Whether images and prompts with faults were left out, for the text.

    Returns:
        The lines, in the order of the faults.
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
            text = f"{fault.what}; {option}" if fault.leave_out else fault.what
            lines.append(
                f"{fault.data}, {count} rows: {text} ({fault.name}, {fault.source.partition('; ')[0]})"
            )
    return lines


def drop_faulty_labels(labels: Labels, faults: Iterable[KnownFault]) -> Labels | None:
    """Remove the prompt from an image's labels if a documented fault may have made it wrong.

    The label `group` is also removed if it was derived from the prompt.

    Args:
        labels: The labels.
        faults: Faults of the source, from `find_faults`.

    Returns:
        The labels, unchanged if no fault applies. None if the image itself has to be left out.
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
