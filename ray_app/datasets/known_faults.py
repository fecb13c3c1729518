"""Documented faults of published data sets (`configs/datasets/known_faults.yaml`): those of a source (`faults_of`), a line for each that
labelled rows may have (`lines_of`), and labels without what these spoil (`spared`).
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
    """One fault; `source` says where it is documented, `looked_up` when that was read.

    The data: `layouts`, words of which one stands in the address (`at`), what the layout's argument `version` begins with. The rows:
    those of these `splits`, this `label`, and `generators` that a glob matches; nothing = all. `numbers`: only those whose file has a
    number in this range for a name, ends included. `leave_out`: what of such rows is better left out; None where that would not help.
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
        """Whether rows of this split, label and generator may have it."""
        split, label, generator = stratum
        is_by = any(fnmatchcase(generator, glob) for glob in self.generators)
        return is_by and self.label in (None, label) and (not self.splits or split in self.splits)


@cache
def known_faults() -> Mapping[str, KnownFault]:
    """All of the file, by name. Raises ConfigError."""
    file = config_root() / "datasets/known_faults.yaml"
    return {name: validate({"name": name, **fault}, KnownFault, where=f"{file}, {name}") for name, fault in read_mapping(file).items()}


def faults_of(source: Mapping[str, Any]) -> list[KnownFault]:
    """Those of a source: its `layout`, `at` and `arguments`, as an index keeps them. Without a `version` of the layout, of any version."""
    place, version = " ".join(source.get("at", ())).lower(), source.get("arguments", {}).get("version")
    of_layout = [fault for fault in known_faults().values() if source.get("layout") in fault.layouts]
    there = [fault for fault in of_layout if not fault.at or any(word in place for word in fault.at)]
    return [fault for fault in there if version is None or str(version).startswith(fault.version)]


def lines_of(faults: Iterable[KnownFault], strata: Mapping[Stratum, int] | None, *, left_out: bool = False) -> list[str]:
    """One line for each fault that some rows may have. `strata`: how many there are, None = unknown; `left_out`: what they spoil is."""
    lines = []
    for fault in faults:
        rows = sum(count for stratum, count in (strata or {}).items() if fault.holds(stratum))
        if rows or strata is None:
            count = "some" if fault.numbers or strata is None else f"{rows:,}"
            option = f"{fault.leave_out}s left out" if left_out else f"leave_out_faults leaves these {fault.leave_out}s out"
            what = f"{fault.what}; {option}" if fault.leave_out else fault.what
            lines.append(f"{fault.data}, {count} rows: {what} ({fault.name}, {fault.source.partition('; ')[0]})")
    return lines


def spared(labels: Labels, faults: Iterable[KnownFault]) -> Labels | None:
    """The labels without a prompt that one of these faults spoils, and without the group made of it; None where it spoils the image."""
    spoiled = {fault.leave_out for fault in faults if fault.holds((labels.split, labels.label, labels.generator))}
    if "prompt" in spoiled:
        labels = replace(labels, prompt=None, group=None if (labels.group or "").startswith("prompt:") else labels.group)
    return None if "image" in spoiled else labels
