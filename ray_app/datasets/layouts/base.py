"""What every layout offers (`DatasetLayout`), the two that are of no one data set (`Folders`,
`LabelColumns`), and what layouts read with.

`LabelColumns`: labels in columns of Parquet, CSV, JSON lines, or sidecars of a WebDataset.
`Folders`: labels in the names of folders. `ListedLayout`: what layouts share whose labels are in a
file beside the images. `read_json`, `read_rows`: label files beside the images. `split_of`,
`config_of`: the names of Parquet files on the Hugging Face hub.
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
from ray_app.archives.containers import kind_of
from ray_app.archives.label_tables import LabelTable, columns_hint, match_columns
from ray_app.archives.members import ListedWithColumns
from ray_app.config import Frozen
from ray_app.datasets.labels import Label, Labels, names_a_real, parse_label, prompt_group, real_of
from ray_app.datasets.masks import may_lead, may_name
from ray_app.errors import ConfigError, InputError
from ray_app.storage import Fetcher, canonical, strip_secrets, urls

# What lies beside images and is none: tables, texts, settings, weights. Whatever else there is must
# have a label.
_NO_IMAGES = re.compile(
    r".*\.(csv|tsv|json|jsonl|ndjson|txt|md|ya?ml|xml|html|pdf|npy|npz|pt|pth|pkl|py|ipynb|log|sh|toml|ini|db|parquet|arrow)",
    re.IGNORECASE,
)

# 00017.tar, train-000017.tar: a piece of something, whose name does not describe its content.
_SHARD = re.compile(r"(.*\D)?\d{3,}(-of-\d+)?")

FOLDER_LABELS: dict[str, Label] = {
    "real": "real",
    "0_real": "real",
    "fake": "fake",
    "1_fake": "fake",
}

# data/train-00000-of-00070.parquet, as `datasets` writes them
_HUB_SHARD = re.compile(r"([^/]+?)-\d{3,}-of-\d{3,}[^/]*\.parquet$")
# core/partial-train/0000.parquet, as on the branch refs/convert/parquet
_CONVERTED = re.compile(r"(?:^|/)([^/]+)/(?:partial-)?([^/]+)/\d{4}\.parquet$")

_MOST_BYTES = 2**31  # the largest published one has 195 MB


class DatasetLayout(Frozen):
    """One published way to keep labelled images. Its fields are its arguments; picklable, since
    tasks use it.
    """

    @property
    def published(self) -> Mapping[str, int]:
        """How many images it is published with, by `subset`; nothing where no exact number is
        known.
        """
        return {}

    @property
    def example(self) -> str | None:
        """The place of one image that it labels, where a file lists them; for those whose images
        lie elsewhere.
        """
        return None

    def prepared(self, members: Iterable[ListedMember]) -> Self:
        """The layout that has seen all members, where some are labelled by others. Raises
        ConfigError.
        """
        return self

    def labels(self, item: ListedMember) -> Labels | None:
        """The truth about a member; None for one that is no image of this layout (a table, a mask,
        a file that is not in the list).

        Raises ConfigError naming the member, and what is unknown or contradictory about it. There
        is no default label.
        """
        raise NotImplementedError

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Which of the published numbers the member counts to."""
        return labels.split or "all"


def _as_canonical(root: str | None) -> str | None:
    return root and canonical(root)


class ListedLayout(DatasetLayout):
    """A file lists the images and what they are; the images are the source, and what is not listed
    is left out.

    `root`: the folder that the file's paths are below (null = its own).
    """

    root: str | None = None
    _listed: dict[str, Labels] = PrivateAttr(default_factory=dict)

    @property
    def example(self) -> str | None:
        """The first of the file."""
        return next(iter(self._listed), None)

    def labels(self, item: ListedMember) -> Labels | None:
        """By the image's place."""
        return self._listed.get(place_of(item))

    def _enter(self, place: str, labels: Labels, file: str) -> None:
        """Record what a file, `file` in words, says of the image at a place. Raises ConfigError
        where it says something else of it, too.
        """
        if self._listed.setdefault(place, labels) != labels:
            raise ConfigError(
                f"{file}: {place} is there twice, as [{self._listed[place]}] and as [{labels}]"
            )


class Folders(DatasetLayout):
    """The innermost folder of such a name gives the label; folders above it are not searched for
    one.

    `generator`: of all fakes; else the folder `generator_folder` steps from that folder: 1 the next
    below, −1 the one above. Where there is none, fakes are of `unknown`. `split_folder` counts
    alike; null = no splits. A zip or tar is a folder too, a numbered shard is not.
    """

    generator: str | None = None
    generator_folder: int = 1
    split_folder: int | None = None

    def labels(self, item: ListedMember) -> Labels | None:
        """From the path, also that in a zip or tar."""
        if is_no_image(place_of(item)):
            return None
        folders, at = labelled_folder(item)
        label = FOLDER_LABELS[folders[at].lower()]
        near = _step(folders, at, self.generator_folder)
        split = None if self.split_folder is None else _step(folders, at, self.split_folder)
        return Labels(
            label,
            real_of(near) if label == "real" else self.generator or near or "unknown",
            split=split,
        )


class CommunityForensicsFolders(Folders):
    """The folders that Community Forensics trains on: `<generator>/<real|fake>/<file>`, with an
    index.csv that it makes itself.

    Source: specs/detectors.md §7a.
    """

    generator_folder: int = -1


class LabelColumns(DatasetLayout):
    """Which column holds what. Only the label must be there; images without a `group` of their own
    are grouped by their prompts.

    `mask`: images in the table itself, or, in a list or with `root`, their uris; relative ones are
    below `root`, and so is every local one that an archive names. A real's mask is ignored. Without
    a column of generators all fakes are of `unknown`, without one of groups and prompts every image
    is for itself.
    """

    label: str = "label"
    generator: str = "generator"
    mask: str = "mask"
    prompt: str = "prompt"
    split: str = "split"
    group: str = "group"
    # Workers, which read it, are in another folder.
    root: Annotated[str | None, AfterValidator(_as_canonical)] = None

    @functools.cached_property
    def _columns(self) -> tuple[str, ...]:
        """All columns that labels are read from."""
        of_label, of_mask = (self.label, f"{self.label}_name"), (self.mask, f"{self.mask}_uri")
        return (*of_label, *of_mask, self.generator, self.prompt, self.split, self.group)

    def labels(self, item: ListedMember) -> Labels:
        """From the columns, their names in any case; a ClassLabel's number by its name."""
        item = with_columns(with_sidecar(item), self._columns)
        label = class_label(item, self.label)
        generator, prompt = text(item.input, self.generator), text(item.input, self.prompt)
        if label == "fake" and generator is not None and names_a_real(generator):
            raise contradiction(item, f"labelled fake, but its {self.generator} is '{generator}'")
        return Labels(
            label,
            real_of(generator) if label == "real" else generator or "unknown",
            self._mask(item) if label == "fake" else None,
            prompt,
            text(item.input, self.split),
            text(item.input, self.group) or prompt_group(prompt),
        )

    def _mask(self, item: ListedMember) -> str | None:
        place = text(item.input, f"{self.mask}_uri") or text(item.input, self.mask)
        if place is None:
            return None
        if strip_secrets(place) != place:
            raise contradiction(
                item,
                f"its mask {strip_secrets(place)} is named with a key, and secrets are not kept",
            )
        if "://" not in place and not place.startswith("/"):
            if self.root is None:
                raise contradiction(
                    item,
                    f"the mask '{place}' is a relative path; arguments.root says below which folder it lies",
                )
            place = place_below(shown(self.root), place)
        # A root of the user's states that masks lie outside the archive; local ones lie below it.
        root = None if self.root is None else shown(self.root)
        is_below_root = root is not None and (
            shown(place).startswith(root + "/")
            or (urls.scheme_of(place) != "file" and may_lead(root, place))
        )
        # a file that no list names has its columns from a table beside it
        is_of_list = not isinstance(item, ListedWithColumns)
        if not (is_below_root or (is_of_list and may_name(item.uri, item.member, place))):
            raise contradiction(
                item,
                f"an archive may not say that its mask lies at {place}, unless arguments.root does",
            )
        return place


def place_of(item: ListedMember) -> str:
    """The full name of a member: its uri, and behind it the path in its container."""
    return item.uri if item.member is None or _is_row(item) else f"{item.uri}/{item.member}"


def folders_of(item: ListedMember) -> list[str]:
    """The folders that a member lies in, the outermost first. A container counts as one, by its
    name up to the ending; a numbered one (a shard) does not.
    """
    *outside, name = item.uri.split("/")
    if item.member is None or _is_row(item):
        return outside
    container = (
        re.sub(r"\.(tar\.gz|\w+)$", "", name, flags=re.IGNORECASE) if kind_of(name) else name
    )
    return [
        *outside,
        *([] if _SHARD.fullmatch(container) else [container]),
        *item.member.split("/")[:-1],
    ]


def where(item: ListedMember) -> str:
    """The member as an error names it."""
    return f"{item.uri}, row {item.member}" if _is_row(item) else place_of(item)


def is_no_image(name: str) -> bool:
    """Whether a file announces by its name that it is no image: a table, a text, or hidden, as
    .DS_Store is.
    """
    base = name.rpartition("/")[2]
    return base.startswith(".") or _NO_IMAGES.fullmatch(base) is not None


def column(item: ListedMember, name: str) -> Any:
    """A column of the member's source. Raises ConfigError, with the columns that there are, where
    it has none of that name.
    """
    if name not in item.input:
        hint = (
            columns_hint(list(item.input))
            if item.input
            else "it has no columns at all: another --layout?"
        )
        raise ConfigError(f"{where(item)}: no column '{name}'", hint=hint)
    return item.input[name]


def with_columns(item: ListedMember, wanted: tuple[str, ...]) -> ListedMember:
    """Return the member with these columns under these names, whatever case its source writes them
    in.
    """
    renamed = _renamed(tuple(item.input), wanted)
    if not renamed:
        return item
    return replace(
        item, input={renamed.get(name, name): value for name, value in item.input.items()}
    )


def with_sidecar(item: ListedMember) -> ListedMember:
    """The member with the fields of its JSON sidecar (WebDataset) as columns beside its own. Raises
    ConfigError for one that has none.
    """
    if item.member is None or _is_row(item) or "json" not in item.input:
        return item
    own = dict(item.input)
    try:
        fields = json.loads(own.pop("json"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"{where(item)}: the .json beside it is no JSON object",
            hint="a sidecar has fields, such as label and prompt",
        )
    return replace(item, input=fields | own)


def text(values: Mapping[str, Any], name: str) -> str | None:
    """One of some values, such as a member's columns, as text; None where it is absent, null or
    blank.
    """
    value = values.get(name)
    return None if value is None or not str(value).strip() else str(value)


def class_label(item: ListedMember, name: str) -> Label:
    """The label in a column: by the name that the table's own ClassLabel gives the number, where it
    does; else as `parse_label`.
    """
    number = column(item, name)
    named = item.input.get(f"{name}_name")
    return parse_label(number if named is None else named, f"{where(item)}, column '{name}'")


def contradiction(item: ListedMember, reason: str) -> ConfigError:
    """The error for a member whose labels do not agree."""
    return ConfigError(
        f"{where(item)}: {reason}",
        hint="such a file cannot be labelled: leave it out (--exclude) or correct its source",
    )


def labelled_folder(item: ListedMember) -> tuple[list[str], int]:
    """The folders of a member's path, and which of them is the innermost that gives a label. Raises
    ConfigError where none does.
    """
    folders = folders_of(item)
    found = [number for number, name in enumerate(folders) if name.lower() in FOLDER_LABELS]
    if not found:
        raise ConfigError(
            f"{where(item)}: in no folder called {', '.join(FOLDER_LABELS)}",
            hint="labels are never guessed; --exclude leaves it out",
        )
    return folders, found[-1]


def split_of(uri: str) -> str | None:
    """The split that a shard is of; None where its name does not show it."""
    if match := _HUB_SHARD.search(uri):
        return match.group(1)
    return match.group(2) if (match := _CONVERTED.search(uri)) else None


def config_of(uri: str) -> str | None:
    """The configuration that a shard is of: the folder it lies in, `default` for `data`; None where
    its name does not show it.
    """
    if match := _HUB_SHARD.search(uri):
        folder = uri[: match.start(1)].rstrip("/").rpartition("/")[2]
        return "default" if folder == "data" else folder
    return match.group(1) if (match := _CONVERTED.search(uri)) else None


def read_json(place: str) -> Any:
    """The content of a JSON file at any URL. Raises ConfigError."""
    try:
        return json.loads(Fetcher(signed=[place]).fetch(shown(place), "", _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown(place)}: not JSON: {error}") from None
    except InputError as error:
        raise ConfigError(f"{shown(place)}: {error.detail}") from None


def read_rows(place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table with a header, each with its number; an empty cell is "". Raises
    ConfigError.
    """
    table, number = LabelTable(place), 0
    for piece in table.tables(table.column_names):
        for row in piece.to_pylist():
            number += 1
            yield number, {name: "" if value is None else value for name, value in row.items()}


def shown(place: str) -> str:
    """The place without secrets, as errors and indexes name it."""
    return strip_secrets(canonical(place))


def place_below(root: str, path: str) -> str:
    """The full name of a file that a row calls `path`: as it is where it is absolute or a URL, else
    below `root`.
    """
    if "://" in path or path.startswith("/"):
        return shown(path)
    scheme, mark, below = root.rpartition("://")
    return scheme + mark + posixpath.normpath(posixpath.join(below, path))


def root_of(root: str | None, file: str) -> str:
    """The folder that a file's paths are below: the one its user names, else its own; spelt as the
    uris of an archive are.
    """
    return shown(file).rpartition("/")[0] if root is None else shown(root)


@functools.lru_cache(maxsize=256)
def _renamed(names: tuple[str, ...], wanted: tuple[str, ...]) -> Mapping[str, str]:
    """Return the wanted name for each of a table's names that differs from it. Cached: all rows of
    a table have the same names.
    """
    return {
        own: name
        for name, own in match_columns(names, wanted, "the table of images").items()
        if own != name
    }


def _is_row(item: ListedMember) -> bool:
    return item.place is not None and item.place.kind == "parquet"


def _step(folders: list[str], at: int, steps: int) -> str | None:
    place = at + steps
    return folders[place] if 0 <= place < len(folders) and folders[place] else None
