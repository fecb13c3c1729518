"""What every layout offers, and what several need to read names by. Knows names and columns; opens no image."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

from ray_app.archives import Listed
from ray_app.archives.containers import kind_of
from ray_app.config import Frozen
from ray_app.datasets.labels import Label, Labels, parse_label
from ray_app.errors import ConfigError

# What lies beside images and is none: tables, texts, settings, weights. Whatever else there is must have a label.
_NO_IMAGES = re.compile(
    r".*\.(csv|tsv|json|jsonl|ndjson|txt|md|ya?ml|xml|html|pdf|npy|npz|pt|pth|pkl|py|ipynb|log|sh|toml|ini|db|parquet|arrow)", re.IGNORECASE
)

# 00017.tar, train-000017.tar: a piece of something, whose name says nothing of what is in it.
_SHARD = re.compile(r"(.*\D)?\d{3,}(-of-\d+)?")


class Layout(Frozen):
    """One published way to keep labelled images. Its fields are its arguments; picklable, since tasks use it."""

    @property
    def published(self) -> Mapping[str, int]:
        """How many images it is published with, by `subset`; nothing where no exact number is known."""
        return {}

    @property
    def example(self) -> str | None:
        """The place of one image that it labels, where a file lists them; for those whose images lie elsewhere."""
        return None

    def prepared(self, members: Iterable[Listed]) -> Self:
        """The layout that has seen all members, where some are labelled by others. Raises ConfigError."""
        return self

    def labels(self, item: Listed) -> Labels | None:
        """The truth about a member; None for one that is no image of this layout (a table, a mask, a file that is not in the list).

        Raises ConfigError naming the member, and what is unknown or contradictory about it. There is no default label.
        """
        raise NotImplementedError

    def subset(self, item: Listed, labels: Labels) -> str:
        """Which of the published numbers the member counts to."""
        return labels.split or "all"


def place_of(item: Listed) -> str:
    """The full name of a member: its uri, and behind it the path in its container."""
    return item.uri if item.member is None or _is_row(item) else f"{item.uri}/{item.member}"


def folders_of(item: Listed) -> list[str]:
    """The folders that a member lies in, the outermost first. A container counts as one, by its name up to the ending; a numbered one
    (a shard) does not.
    """
    *outside, name = item.uri.split("/")
    if item.member is None or _is_row(item):
        return outside
    container = re.sub(r"\.(tar\.gz|\w+)$", "", name, flags=re.IGNORECASE) if kind_of(name) else name
    return [*outside, *([] if _SHARD.fullmatch(container) else [container]), *item.member.split("/")[:-1]]


def where(item: Listed) -> str:
    """The member as an error names it."""
    return f"{item.uri}, row {item.member}" if _is_row(item) else place_of(item)


def is_no_image(name: str) -> bool:
    """Whether a file announces by its name that it is no image: a table, a text, or hidden, as .DS_Store is."""
    base = name.rpartition("/")[2]
    return base.startswith(".") or _NO_IMAGES.fullmatch(base) is not None


def column(item: Listed, name: str) -> Any:
    """A column of the member's source. Raises ConfigError, with the columns that there are, where it has none of that name."""
    if name not in item.input:
        hint = f"its columns: {', '.join(item.input)}" if item.input else "it has no columns at all: another --layout?"
        raise ConfigError(f"{where(item)}: no column '{name}'", hint=hint)
    return item.input[name]


def with_sidecar(item: Listed) -> Listed:
    """The member with the fields of its JSON sidecar (WebDataset) as columns beside its own. Raises ConfigError for one that has none."""
    if item.member is None or _is_row(item) or "json" not in item.input:
        return item
    own = dict(item.input)
    try:
        fields = json.loads(own.pop("json"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where(item)}: the .json beside it is no JSON object", hint="a sidecar has fields, such as label and prompt")
    return replace(item, input=fields | own)


def text(values: Mapping[str, Any], name: str) -> str | None:
    """One of some values, such as a member's columns, as text; None where it is absent, null or blank."""
    value = values.get(name)
    return None if value is None or not str(value).strip() else str(value)


def class_label(item: Listed, name: str) -> Label:
    """The label in a column: by the name that the table's own ClassLabel gives the number, where it does; else as `parse_label`."""
    number = column(item, name)
    named = item.input.get(f"{name}_name")
    return parse_label(number if named is None else named, f"{where(item)}, column '{name}'")


def contradiction(item: Listed, told: str) -> ConfigError:
    """What to say of a member whose labels do not agree."""
    return ConfigError(f"{where(item)}: {told}", hint="such a member cannot be labelled: leave it out (--exclude) or correct its source")


def _is_row(item: Listed) -> bool:
    return item.place is not None and item.place.kind == "parquet"
