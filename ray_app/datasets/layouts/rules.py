"""Layouts that say in data where labels are: in paths (`PathRules`), in a list beside the images
(`TableRules`), in words of a column (`WordColumns`). Published ones are files of `configs/layouts`
(`PublishedLayout`), so that a further data set is a file and no code.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from ray_app.archives import ListedMember
from ray_app.config import Frozen
from ray_app.datasets.labels import Label, Labels, parse_label, real_of
from ray_app.datasets.layouts import base
from ray_app.errors import ConfigError

_PLACE = re.compile(r"\{(generator|split)\}|(\*\*/)|(\*)")


class PathRule(Frozen):
    """`path`: the end of a member's path, in any case: `*` is any part of a name, `**/` any
    folders, `{generator}` and `{split}` are a folder's name. `generator` names all of them, and of
    real images their source.
    """

    path: str
    label: Label
    generator: str | None = None

    def match(self, place: str) -> re.Match[str] | None:
        """The path in the rule's parts; None where it is another."""
        taken = _PLACE.sub(
            lambda one: (
                f"(?P<{one[1]}>[^/]+)" if one[1] else r"(?:[^/]+/)*" if one[2] else r"[^/]*"
            ),
            _quoted(self.path),
        )
        return re.fullmatch(rf"(?:.*/)?{taken}", place, re.IGNORECASE)


class PathRules(base.DatasetLayout):
    """The first of the `rules` that a member's path fits gives its label. One that fits none is an
    error, or, `others: skip`, left out.
    """

    rules: tuple[PathRule, ...] = Field(min_length=1)
    others: Literal["refuse", "skip"] = "refuse"

    def labels(self, item: ListedMember) -> Labels | None:
        """From the path, also that in a zip or tar."""
        place = base.place_of(item)
        if base.is_no_image(place):
            return None
        for rule in self.rules:
            if found := rule.match("/".join([*base.folders_of(item), place.rpartition("/")[2]])):
                parts = found.groupdict()
                name = rule.generator or parts.get("generator")
                return Labels(
                    rule.label,
                    real_of(name) if rule.label == "real" else name or "unknown",
                    split=parts.get("split"),
                )
        if self.others == "skip":
            return None
        raise ConfigError(
            f"{base.where(item)}: none of the layout's paths",
            hint=f"{', '.join(rule.path for rule in self.rules)}; --exclude leaves it out",
        )


class TableRules(base.ListedLayout):
    """`file`: a list beside the images, a CSV or a JSON list of objects. `name` is the column (or
    field) of their names, `label` that of what they are, by `words` where those are no labels.

    Images are below `root`, there below `folder`. Rows with one of the `unknown` words are left
    out. `generator` and `split` are columns, where there are any; `generators` names all fakes.
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
        """Reads the file."""
        root, file = base.root_of(self.root, self.file), base.shown(self.file)
        for where, row in _rows(self.file):
            if missing := [
                name
                for name in (self.name, self.label, self.generator, self.split)
                if name is not None and name not in row
            ]:
                raise ConfigError(
                    f"{where}: no column '{missing[0]}'", hint=f"its columns: {', '.join(row)}"
                )
            word = str(row[self.label]).strip()
            if word in self.unknown:
                continue
            label = self.words.get(word) or parse_label(word, where)
            made = (base.text(row, self.generator) if self.generator else None) or self.generators
            split = base.text(row, self.split) if self.split else None
            path = "/".join(part for part in (self.folder, str(row[self.name])) if part)
            self._enter(
                base.place_below(root, path),
                Labels(label, "real" if label == "real" else made, split=split),
                file,
            )


class WordColumns(base.LabelColumns):
    """Columns as in `columns`, the label in `words` of the data set's own."""

    words: Mapping[str, Label] = Field(min_length=1)

    def labels(self, item: ListedMember) -> Labels:
        """From the columns."""
        item = base.with_columns(base.with_sidecar(item), self._columns)
        said = item.input.get(f"{self.label}_name", base.column(item, self.label))
        known = self.words.get(str(said).strip())
        rest = {key: value for key, value in item.input.items() if key != f"{self.label}_name"}
        return super().labels(
            item if known is None else replace(item, input=rest | {self.label: known})
        )


class PublishedLayout(Frozen):
    """A file of `configs/layouts`: one of the layouts of code with these arguments. `source`: what
    says that the data set is so.
    """

    name: str
    title: str
    source: str
    note: str = ""
    layout: str
    arguments: Mapping[str, Any] = {}

    @field_validator("source")
    @classmethod
    def _stated(cls, source: str) -> str:
        if len(source) < 10:
            raise ValueError("say where the layout is described")
        return source


def _rows(place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a list, each with its place in words: a CSV's, or the objects of a JSON list.
    Raises ConfigError.
    """
    file = base.shown(place)
    if not file.lower().endswith(".json"):
        return ((f"{file}, row {number}", row) for number, row in base.read_rows(place))
    content = base.read_json(place)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise ConfigError(f"{file}: not a list of objects")
    return ((f"{file}, object {number}", row) for number, row in enumerate(content))


def _quoted(path: str) -> str:
    """A path as a pattern, its marks left as they are."""
    return re.sub(r"[.+^$()\[\]|\\]", lambda one: "\\" + one[0], path)
