"""Define layouts that are configured in YAML, so that a new data set needs no code.

A layout reads the labels of images. `PathRules` reads them from paths, and `TableRules` from a list
next to the images. `WordColumns` reads them from a column with the data set's own names for real
and fake. A file of `configs/layouts` is a `PublishedLayout`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from ray_app.archives import ListedMember
from ray_app.config import Frozen
from ray_app.datasets.labels import (
    Label,
    Labels,
    name_fake_generator,
    name_real_generator,
    parse_label,
)
from ray_app.datasets.layouts import base
from ray_app.errors import ConfigError

_WILDCARD = re.compile(r"\{(generator|split)\}|(\*\*/)|(\*)")


class PathRule(Frozen):
    """A rule of `PathRules`: images whose path matches a pattern have a label.

    For example, the pattern `{generator}/1_fake/*` with the label fake.
    """

    path: str = Field(
        description="the end of a member's path, in any case: `*` is any part of a name, `**/` any folders, `{generator}` and `{split}` "
        "the name of a folder"
    )
    label: Label = Field(description="label of these members")
    generator: str | None = Field(
        default=None,
        description="generator of all these members, or of real images their source; null = the folder `{generator}`, or unknown without one",
    )

    def match(self, path: str) -> re.Match[str] | None:
        """Match a path with this rule. Return None if the path does not match.

        The named groups of the match are `generator` and `split`, if the pattern has them. They are
        the names of folders.
        """
        pattern = _WILDCARD.sub(
            lambda wildcard: (
                f"(?P<{wildcard[1]}>[^/]+)"
                if wildcard[1]
                else r"(?:[^/]+/)*"
                if wildcard[2]
                else r"[^/]*"
            ),
            _quote(self.path),
        )
        return re.fullmatch(rf"(?:.*/)?{pattern}", path, re.IGNORECASE)


class PathRules(base.DatasetLayout):
    """A layout in which the first rule that a member's path matches gives its label.

    Args:
        rules: The rules.
        others: How members that match no rule are handled: `refuse` is an error, `skip` leaves them
            out.
    """

    rules: tuple[PathRule, ...] = Field(min_length=1)
    others: Literal["refuse", "skip"] = "refuse"

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the labels by the first rule that matches the path, also inside a zip or tar."""
        path = base.get_path(item)
        if base.is_not_image(path):
            return None
        for rule in self.rules:
            if match := rule.match("/".join([*base.list_folders(item), path.rpartition("/")[2]])):
                parts = match.groupdict()
                name = rule.generator or parts.get("generator")
                return Labels(
                    rule.label,
                    name_real_generator(name)
                    if rule.label == "real"
                    else name_fake_generator(name),
                    split=parts.get("split"),
                )
        if self.others == "skip":
            return None
        raise ConfigError(
            f"{base.describe_member(item)}: the path matches no rule of the layout",
            hint=f"leave the file out by --exclude, use one of the paths {', '.join(rule.path for rule in self.rules)}, or {base.RULES_HINT}",
        )


class TableRules(base.ListedLayout):
    """A layout whose labels are in a list next to the images: a CSV or a JSON list of objects.

    Args:
        file: Path or URL of the list.
        folder: Folder of the images below `root`, the folder to which paths are relative.
        name: Column (or field) of the image's name.
        label: Column of the label.
        words: The label for each value of the column `label` that is not a label itself, such as
            real for "Authentic".
        unknown: Values of the column `label` whose rows are left out.
        generator: Column of the generator. None if there is none.
        generators: Name for the generator of each fake that has no value in the column `generator`.
        split: Column of the split. None if there is none.
    """

    file: str
    folder: str = ""
    name: str
    label: str
    words: Mapping[str, Label] = {}
    unknown: tuple[str, ...] = ()
    generator: str | None = None
    generators: str = "unknown"
    split: str | None = None

    def model_post_init(self, context: object) -> None:
        """Read the list `file`, so that `labels` can look up each image."""
        root, file = base.resolve_root(self.root, self.file), base.redact(self.file)
        for where, row in _iter_rows(self.file):
            if missing := [
                name
                for name in (self.name, self.label, self.generator, self.split)
                if name is not None and name not in row
            ]:
                raise ConfigError(
                    f"{where}: no column '{missing[0]}'",
                    hint=f"set the argument of the layout to one of {', '.join(row)}",
                )
            term = str(row[self.label]).strip()
            if term in self.unknown:
                continue
            label = self.words.get(term) or parse_label(term, where)
            generator = (
                base.get_name(row, self.generator) if self.generator else None
            ) or self.generators
            split = base.get_name(row, self.split) if self.split else None
            path = "/".join(part for part in (self.folder, str(row[self.name])) if part)
            self._add(
                base.join_path(root, path),
                Labels(label, "real" if label == "real" else generator, split=split),
                file,
            )


class WordColumns(base.LabelColumns):
    """A layout that reads labels from columns, with the data set's own names for real and fake.

    Args:
        words: The label for each of these names, such as real for "Authentic".
    """

    words: Mapping[str, Label] = Field(min_length=1)

    def labels(self, item: ListedMember) -> Labels:
        """Return the labels of a row from its columns.

        The argument `words` maps the data set's own names to labels, such as "Authentic" to real.
        Any other value in the column must itself be a label, such as `real`.
        """
        item = base.rename_columns(base.add_sidecar_columns(item), self._columns)
        term = item.input.get(f"{self.label}_name", base.get_column(item, self.label))
        term_label = self.words.get(str(term).strip())
        columns = {key: value for key, value in item.input.items() if key != f"{self.label}_name"}
        return super().labels(
            item if term_label is None else replace(item, input=columns | {self.label: term_label})
        )


class PublishedLayout(Frozen):
    """A file of `configs/layouts`: the layout of one data set.

    It names a layout class of this package and the arguments of the class for this data set.
    """

    name: str = Field(description="name of the layout, in commands")
    title: str = Field(description="name of the data set, for people")
    source: str = Field(description="where the structure of the data set is described")
    note: str = Field(default="", description="a remark for readers")
    layout: str = Field(description="name of the layout class that reads the data set")
    arguments: Mapping[str, Any] = Field(
        default={}, description="arguments of that layout class, by name"
    )

    @field_validator("source")
    @classmethod
    def _stated(cls, source: str) -> str:
        if len(source) < 10:
            raise ValueError(
                "must be the address or the paper that describes the layout, in 10 or more characters"
            )
        return source


def _iter_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a list, each with its location as text.

    The list is a CSV or a JSON list of objects. Raise ConfigError if it cannot be read.
    """
    file = base.redact(path)
    if not file.lower().endswith(".json"):
        return ((f"{file}, row {number}", row) for number, row in base.read_rows(path))
    content = base.read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ConfigError(f"{file}: the JSON is not a list of objects")
    return ((f"{file}, object {number}", row) for number, row in enumerate(content))


def _quote(path: str) -> str:
    """Return a path as a regular expression, without quoting its wildcards."""
    return re.sub(r"[.+^$()\[\]|\\]", lambda match: "\\" + match[0], path)
