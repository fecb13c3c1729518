"""Define the base class of layouts (`DatasetLayout`), and layouts that fit many data sets.

A layout reads the labels of images that are stored in one way. `LabelColumns` reads labels from
columns of Parquet, CSV, JSON lines, or sidecars of a WebDataset. `Folders` reads them from the
names of folders. `ListedLayout` is the base of layouts whose labels are in a file next to the
images, which `read_json` and `read_rows` read. `parse_split` and `parse_config` parse the names of
Parquet files on the Hugging Face hub.
"""

import functools
import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import AfterValidator, PrivateAttr

from ray_app.archives import ListedMember
from ray_app.archives.containers import detect_kind
from ray_app.archives.label_tables import LabelTable, columns_hint, match_columns
from ray_app.archives.members import ListedWithColumns
from ray_app.config import Frozen
from ray_app.datasets.labels import (
    Label,
    Labels,
    is_missing,
    is_real_generator,
    name_fake_generator,
    name_real_generator,
    parse_label,
    prompt_group,
)
from ray_app.datasets.masks import may_lead, may_name
from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonicalize, strip_secrets, urls

# Endings of files that are not images: tables, texts, settings, weights. All other files must have
# a label.
_NO_IMAGES = re.compile(
    r".*\.(csv|tsv|json|jsonl|ndjson|txt|md|ya?ml|xml|html|pdf|npy|npz|pt|pth|pkl|py|ipynb|log|sh|toml|ini|db|parquet|arrow)",
    re.IGNORECASE,
)

# 00017.tar, train-000017.tar: a numbered part, whose name does not describe its content.
_SHARD = re.compile(r"(.*\D)?\d{3,}(-of-\d+)?")

FOLDER_LABELS: dict[str, Label] = {
    "real": "real",
    "0_real": "real",
    "fake": "fake",
    "1_fake": "fake",
}

RULES_HINT = """map folders to labels by --layout paths --set 'arguments.rules=[{path: "Au/*", label: real}, {path: "Tp/*", label: fake}]'"""

# data/train-00000-of-00070.parquet, as the library `datasets` names files.
_HUB_SHARD = re.compile(r"([^/]+?)-\d{3,}-of-\d{3,}[^/]*\.parquet$")
# core/partial-train/0000.parquet, as on the branch refs/convert/parquet.
_CONVERTED = re.compile(r"(?:^|/)([^/]+)/(?:partial-)?([^/]+)/\d{4}\.parquet$")

_MAX_BYTES = 2**31  # The largest published label file has 195 MB.


class DatasetLayout(Frozen):
    """Reads the labels of the images of a data set, such as real or fake and the generator.

    A subclass reads one data set, or all data sets that store labels in the same way, such as in
    the names of folders. Its fields are arguments that the user sets in a config or command. A
    layout is picklable, because Ray tasks use it.
    """

    @property
    def published(self) -> Mapping[str, int]:
        """Number of images in each subset, such as a split, that the data set's authors published.

        The keys are names of subsets, as `subset` returns them. The rows of an index are compared
        with these numbers. Empty if no exact number is known.
        """
        return {}

    @property
    def example(self) -> str | None:
        """The path of one image in the label file. None if there is no label file.

        Error messages show this path if a source does not have the listed images.
        """
        return None

    def prepare(self, members: Iterable[ListedMember]) -> Self:
        """Return a layout that has seen all members, before any member is labelled.

        A layout overrides this method if a label depends on other members. An example is an image
        whose mask is another file. The default returns the layout unchanged. Raises ConfigError if
        the members contradict one another.
        """
        return self

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the true labels of a member, one listed file of an archive.

        A label is never assumed: an image without one is an error. The result is None if the member
        is not an image of this data set, such as a table, a mask, or an image that the data set's
        own list does not name. Raises ConfigError with the member if a label is unknown or
        contradictory.
        """
        raise NotImplementedError

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Return the name of the subset in which a member is counted, such as its split.

        The number of images in each subset is compared with `published`.
        """
        return labels.split or "all"


def _as_canonical(root: str | None) -> str | None:
    return root and canonicalize(root)


class ListedLayout(DatasetLayout):
    """Base of layouts that read labels from a label file, which lists images with their labels.

    The source is the images, and the label file is an argument. Images that the file does not list
    are left out. Relative paths are relative to `root`, by default the folder of the file.
    """

    root: str | None = None
    _listed: dict[str, Labels] = PrivateAttr(default_factory=dict)

    @property
    def example(self) -> str | None:
        """The first path in the label file."""
        return next(iter(self._listed), None)

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the labels of an image from the label file, or None if it is not listed there."""
        return self._listed.get(get_path(item))

    def _add(self, path: str, labels: Labels, file: str) -> None:
        """Record the labels that a file states for an image. Raise ConfigError if they differ."""
        if self._listed.setdefault(path, labels) != labels:
            raise ConfigError(
                f"{file}: {path} is listed twice, with different labels: [{self._listed[path]}] and [{labels}]",
                hint="keep the row with the right labels",
            )


class Folders(DatasetLayout):
    """A layout that reads the label from the innermost folder with a name like `real` or `1_fake`.

    A zip or tar counts as a folder, a numbered shard does not.

    Args:
        generator: Generator of all fakes. None to use the folder `generator_folder`.
        generator_folder: Position of the folder that names the generator of a fake or the source of
            a real image, counted from the label's folder: 1 is the next folder inside, −1 the
            folder outside. If it does not exist, fakes are by `unknown`.
        split_folder: Position of the folder that names the split, counted in the same way. None for
            no splits.
    """

    generator: str | None = None
    generator_folder: int = 1
    split_folder: int | None = None

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the labels by the path, including the path in a zip or tar."""
        if is_not_image(get_path(item)):
            return None
        folders, label_index = find_labelled_folder(item)
        label = FOLDER_LABELS[folders[label_index].lower()]
        generator_name = _step(folders, label_index, self.generator_folder)
        split = (
            None if self.split_folder is None else _step(folders, label_index, self.split_folder)
        )
        return Labels(
            label,
            name_real_generator(generator_name)
            if label == "real"
            else self.generator or name_fake_generator(generator_name),
            split=split,
        )


class CommunityForensicsFolders(Folders):
    """The folders of Community Forensics' training code: `<generator>/<real|fake>/<file>`.

    The index.csv that this code writes is not needed.
    """

    generator_folder: int = -1


class LabelColumns(DatasetLayout):
    """A layout that reads labels from columns. Only the column of the label is required.

    If a fake has no generator, its generator is `unknown`. Images without a `group` are grouped by
    their prompts. An image without group and prompt is a group of its own.

    Args:
        label: Column of the label.
        generator: Column of the generator, or of the source of a real image.
        mask: Column of the mask, which holds images or URIs. URIs are allowed if the source is a
            list of images, or if `root` is set. Masks of real images are ignored.
        prompt: Column of the prompt.
        split: Column of the split.
        group: Column of the group. Images of one group are never divided between splits.
        root: Folder to which relative mask URIs are relative, and in which all local masks of an
            archive must be.
    """

    label: str = "label"
    generator: str = "generator"
    mask: str = "mask"
    prompt: str = "prompt"
    split: str = "split"
    group: str = "group"
    # The path is made absolute, because workers run in another folder.
    root: Annotated[str | None, AfterValidator(_as_canonical)] = None

    @functools.cached_property
    def _columns(self) -> tuple[str, ...]:
        """All columns from which labels are read."""
        label_columns, mask_columns = (
            (self.label, f"{self.label}_name"),
            (self.mask, f"{self.mask}_uri"),
        )
        return (*label_columns, *mask_columns, self.generator, self.prompt, self.split, self.group)

    def labels(self, item: ListedMember) -> Labels:
        """Return the labels of a row from the columns that this layout names.

        Upper and lower case in names of columns make no difference. A number of the type ClassLabel
        of Hugging Face datasets is replaced by the name of its class.
        """
        item = rename_columns(add_sidecar_columns(item), self._columns)
        label = read_class_label(item, self.label)
        generator, prompt = get_text(item.input, self.generator), get_text(item.input, self.prompt)
        if label == "fake" and generator is not None and is_real_generator(generator):
            raise make_contradiction(
                item, f"labelled fake, but its {self.generator} is '{generator}'"
            )
        return Labels(
            label,
            name_real_generator(generator) if label == "real" else name_fake_generator(generator),
            self._resolve_mask(item) if label == "fake" else None,
            prompt,
            get_name(item.input, self.split),
            get_name(item.input, self.group) or prompt_group(prompt),
        )

    def _resolve_mask(self, item: ListedMember) -> str | None:
        uri = get_name(item.input, f"{self.mask}_uri") or get_name(item.input, self.mask)
        if uri is None:
            return None
        if strip_secrets(uri) != uri:
            raise make_contradiction(
                item,
                f"the URL of its mask {strip_secrets(uri)} has a secret, which an index may not store",
            )
        path = urls.local_path(uri)
        if "://" not in path and not path.startswith("/"):
            if self.root is None:
                raise make_contradiction(
                    item,
                    f"the mask '{uri}' is a relative path, but arguments.root does not set its folder",
                )
            uri = join_path(redact(self.root), uri)
        # A root that the user sets allows masks outside of the archive. Local masks must be below
        # it.
        root = None if self.root is None else redact(self.root)
        is_below_root = root is not None and (
            redact(uri).startswith(root + "/")
            or (urls.get_scheme(uri) != "file" and may_lead(root, uri))
        )
        # The columns of a file that no list names are from a table next to it.
        is_in_list = not isinstance(item, ListedWithColumns)
        if not (is_below_root or (is_in_list and may_name(item.uri, item.member, uri))):
            raise make_contradiction(
                item,
                f"an archive may not name the mask {uri}, unless arguments.root allows it",
            )
        return uri


def get_path(item: ListedMember) -> str:
    """Return the URI of a member, such as `a.jpg` or `a.zip/b.jpg` for a member of a zip or tar.

    For a row of a table, it is the URI of the table.
    """
    return item.uri if item.member is None or _is_row(item) else f"{item.uri}/{item.member}"


def list_folders(item: ListedMember) -> list[str]:
    """Return the folders of a member, the outermost first.

    A container counts as a folder, by its name without the ending. A numbered container (a shard)
    does not.
    """
    *outer_folders, name = item.uri.split("/")
    if item.member is None or _is_row(item):
        return outer_folders
    container = (
        re.sub(r"\.(tar\.gz|\w+)$", "", name, flags=re.IGNORECASE) if detect_kind(name) else name
    )
    return [
        *outer_folders,
        *([] if _SHARD.fullmatch(container) else [container]),
        *item.member.split("/")[:-1],
    ]


def describe_member(item: ListedMember) -> str:
    """Return the name of a member for messages, such as `a.zip/b.jpg` or `a.parquet, row 7`."""
    return f"{item.uri}, row {item.member}" if _is_row(item) else get_path(item)


def is_not_image(name: str) -> bool:
    """Return whether a file name is that of a table, a text, or a hidden file."""
    base = name.rpartition("/")[2]
    return base.startswith(".") or _NO_IMAGES.fullmatch(base) is not None


def get_column(item: ListedMember, name: str) -> Any:
    """Return the value that a member has in a column of its source.

    Raises ConfigError if there is no such column. The hint lists the existing columns.
    """
    if name not in item.input:
        hint = (
            columns_hint(list(item.input))
            if item.input
            else "try another --layout: the source has no columns"
        )
        raise ConfigError(f"{describe_member(item)}: no column '{name}'", hint=hint)
    return item.input[name]


def rename_columns(item: ListedMember, names: tuple[str, ...]) -> ListedMember:
    """Return a member whose columns have the letter case of `names`.

    A column `Label` is renamed to `label` if `names` has `label`, so that it can be looked up.
    Other columns keep their names.
    """
    new_names = _match_names(tuple(item.input), names)
    if not new_names:
        return item
    return replace(
        item, input={new_names.get(name, name): value for name, value in item.input.items()}
    )


def add_sidecar_columns(item: ListedMember) -> ListedMember:
    """Return the member with the fields of its JSON sidecar (WebDataset) as further columns."""
    if item.member is None or _is_row(item) or "json" not in item.input:
        return item
    columns = dict(item.input)
    try:
        fields = json.loads(columns.pop("json"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"{describe_member(item)}: the .json next to it is not a JSON object",
            hint="write its fields into an object, such as label and prompt",
        )
    return replace(item, input=fields | columns)


def get_text(values: Mapping[str, Any], name: str) -> str | None:
    """Return `values[name]` as text. None if the value is missing, null, or blank."""
    value = values.get(name)
    return None if value is None or not str(value).strip() else str(value)


def get_name(values: Mapping[str, Any], name: str) -> str | None:
    """Return `values[name]` as text. None also for a text that stands for a missing name."""
    value = get_text(values, name)
    return None if value is None or is_missing(value) else value


def read_class_label(item: ListedMember, name: str) -> Label:
    """Return the label, `real` or `fake`, that a member has in a column.

    If the table names the classes (ClassLabel of the library `datasets`), the name of the class
    decides, and not its number. Raise ConfigError if the column is missing or its value is not a
    label.
    """
    number = get_column(item, name)
    label_name = item.input.get(f"{name}_name")
    return parse_label(
        number if label_name is None else label_name, f"{describe_member(item)}, column '{name}'"
    )


def make_contradiction(item: ListedMember, reason: str) -> ConfigError:
    """Return the error for a member whose labels contradict one another.

    `reason` describes the contradiction, for the message.
    """
    return ConfigError(
        f"{describe_member(item)}: {reason}",
        hint="leave the file out (--exclude) or correct its source: it cannot be labelled",
    )


def find_labelled_folder(item: ListedMember) -> tuple[list[str], int]:
    """Return a member's folders, and the index of the innermost folder whose name is a label.

    Raises ConfigError if no folder has a label as its name.
    """
    folders = list_folders(item)
    indices = [number for number, name in enumerate(folders) if name.lower() in FOLDER_LABELS]
    if not indices:
        raise ConfigError(
            f"{describe_member(item)}: must be in a folder named {' or '.join(FOLDER_LABELS)}",
            hint=f"move the file, leave it out by --exclude, or {RULES_HINT}",
        )
    return folders, indices[-1]


def parse_split(uri: str) -> str | None:
    """Return the split that the name of a Parquet file on the hub shows, or None.

    For example, `data/train-00000-of-00070.parquet` is of the split `train`.
    """
    if match := _HUB_SHARD.search(uri):
        return match.group(1)
    return match.group(2) if (match := _CONVERTED.search(uri)) else None


def parse_config(uri: str) -> str | None:
    """Return the configuration that the path of a Parquet file on the hub shows, or None.

    A data set on the Hugging Face hub may have several configurations, which are sets of splits.
    The configuration is the name of the file's folder, or `default` if the folder is `data`.
    """
    if match := _HUB_SHARD.search(uri):
        folder = uri[: match.start(1)].rstrip("/").rpartition("/")[2]
        return "default" if folder == "data" else folder
    return match.group(1) if (match := _CONVERTED.search(uri)) else None


def read_json(path: str) -> Any:
    """Read a JSON file at any path or URL. Raise ConfigError if that is impossible."""
    try:
        return json.loads(Fetcher(signed=[path]).fetch(redact(path), "", _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{redact(path)}: not a valid JSON file: {error}",
            hint="correct the file, or download it again",
        ) from None
    except InputError as error:
        raise ConfigError(f"{redact(path)}: {error.detail}") from None


def read_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the row number, from 1, and the values by column of each row of a label file.

    An empty cell is "".
    """
    table, number = LabelTable(path), 0
    for chunk in table.tables(table.column_names):
        for row in chunk.to_pylist():
            number += 1
            yield number, {name: "" if value is None else value for name, value in row.items()}


def redact(path: str) -> str:
    """Return a path as an absolute path, and a URL without secrets.

    Use the result in error messages and in indexes.
    """
    return strip_secrets(canonicalize(path))


def join_path(root: str, path: str) -> str:
    """Return the absolute path or URL of a file that a row of a label file names.

    Relative paths are relative to `root`.
    """
    path = urls.local_path(path)
    if "://" in path or path.startswith("/"):
        return redact(path)
    scheme, separator, folder = root.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(folder, path))


def resolve_root(root: str | None, file: str) -> str:
    """Return the folder to which a file's paths are relative: `root`, or the folder of the file.

    The path is absolute and without secrets, as the URIs of an archive are.
    """
    return redact(file).rpartition("/")[0] if root is None else redact(root)


@functools.lru_cache(maxsize=256)
def _match_names(names: tuple[str, ...], requested: tuple[str, ...]) -> Mapping[str, str]:
    """Return the requested name for each name of a table that differs from it.

    The result is cached, because all rows of a table have the same names.
    """
    return {
        source_name: name
        for name, source_name in match_columns(names, requested, "the table of images").items()
        if source_name != name
    }


def _is_row(item: ListedMember) -> bool:
    return item.place is not None and item.place.kind == "parquet"


def _step(folders: list[str], start: int, steps: int) -> str | None:
    index = start + steps
    return folders[index] if 0 <= index < len(folders) and folders[index] else None
