"""Define layouts, which read the labels of a data set, for data sets that need their own code.

The data sets are OpenFake, those in IMDLBenCo's formats, Community Forensics as Parquet,
OpenDeepfake-Preview, OpenSDI, and DFLIP-3K.

Version 1 of DFLIP-3K has fakes only, and one JSON file per family of generators. The file maps the
id of each image to its metadata, strings that may be missing. The images are `<id>.<ext>`, and an
id ends at the first dot. Version 2 is a JSON list of {image_path, is_fake, family_id, version_id,
split}. On the hub, version 2 is WebDataset shards below {train,test}/{fake/<family>,real}, with the
prompts in the sidecars.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import PrivateAttr

from ray_app.archives import ListedMember
from ray_app.datasets.known_faults import known_faults
from ray_app.datasets.labels import Label, Labels, name_real_generator, parse_label, prompt_group
from ray_app.datasets.layouts import base
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError

# The authors' code treats every label but "real" as fake in version 1, and every label but a few
# terms as real in version 2. Here both versions have only their documented terms and no default.
# These are the terms of version 2. `tampered` images are altered in part and have no masks, so they
# can train detection, but not masks.
_FAKE_WORDS = ("synthetic", "full_synthetic", "tampered")
_PUBLISHED: dict[str, dict[str, int]] = {
    "v1-2025-05": {"default/train": 635_138, "default/test": 30_000},
    "v1": {"default/train": 1_870_684, "default/test": 59_658},
    "v2": {"core/validation": 59_000, "core/test": 91_398, "reddit/test": 36_240},
}


class OpenFake(base.DatasetLayout):
    """Layout of OpenFake as a table with the columns `image`, `prompt`, `label`, and `model`.

    Version 2 also has `type` and `release_date`. Images of one prompt are one group. In the
    configuration `reddit`, a row without a model gets the model `reddit`, as in the authors' code
    (experiments/data/splits.py at af44d6d).

    Args:
        version: Version of the data set, with whose published number of images the rows are
            compared. The set has changed several times. None for no comparison.
    """

    version: Literal["v1-2025-05", "v1", "v2"] | None = None

    @property
    def published(self) -> Mapping[str, int]:
        """Published number of rows, by configuration and split. Empty if no version is set."""
        return _PUBLISHED[self.version] if self.version else {}

    def labels(self, item: ListedMember) -> Labels:
        """Return the labels of a row."""
        base.get_column(item, "label")
        is_wild = (
            base.get_name(item.input, "model") is None and base.parse_config(item.uri) == "reddit"
        )
        row = {**item.input, "model": "reddit"} if is_wild else item.input
        return _read_labels(
            row,
            base.get_path(item),
            base.parse_split(item.uri) or base.get_name(item.input, "split"),
            base.describe_member(item),
        )

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Return the configuration and split of a row, such as `core/test`.

        The path of the Parquet file names both. If it does not, the configuration is `default`, and
        the split is that of the column `split`.
        """
        return f"{base.parse_config(item.uri) or 'default'}/{labels.split}"


class OpenFakeCsv(base.ListedLayout):
    """Layout that reads OpenFake's label files, which are CSV files next to the images.

    The file of version 1 has the columns `filename,typ`. `typ` is `real` or a generator, and names
    the folder below the root. Version 2 has one file per split, with the columns
    `file_name,prompt,label,model,type,release_date`.

    Args:
        file: The CSV. None if the source is the CSV itself. For version 1, the source then needs
            the setting `columns.uri: filename`.
        split: Split of all rows.
    """

    file: str | None = None
    split: str | None = None

    def model_post_init(self, context: object) -> None:
        """Read the label file."""
        if self.file is None:
            return
        root, file = base.resolve_root(self.root, self.file), base.redact(self.file)
        for number, row in base.read_rows(self.file):
            path, where = row.get("file_name") or row.get("filename"), f"{file}, row {number}"
            if not path:
                raise ConfigError(
                    f"{where}: no value in a column 'filename' or 'file_name'",
                    hint=f"give every row a name; the columns are {', '.join(row)}",
                )
            folder = f"{row['typ']}/" if "typ" in row and "/" not in path else ""
            self._add(
                base.join_path(root, folder + path), self._labels_of_row(row, path, where), file
            )

    @property
    def published(self) -> Mapping[str, int]:
        """Number of rows of the label file, by `split`, or by `all` if no split is set.

        Empty if `file` is None.
        """
        return {self.split or "all": len(self._listed)} if self.file else {}

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the labels of an image, or None if the label file does not list it.

        Raise ConfigError if the label is missing or unknown, or if a fake has no model.
        """
        return (
            super().labels(item)
            if self.file
            else self._labels_of_row(item.input, base.get_path(item), base.describe_member(item))
        )

    def _labels_of_row(self, row: Mapping[str, Any], path: str, where: str) -> Labels:
        if "typ" not in row and "label" not in row:
            raise ConfigError(
                f"{where}: the table has neither a column 'typ' nor 'label'",
                hint=f"rename the column that states real or fake to label; its columns are {', '.join(row) or 'none'}",
            )
        if "typ" not in row:
            return _read_labels(row, path, self.split, where)
        if (kind := base.get_name(row, "typ")) is None:
            raise ConfigError(
                f"{where}: the column 'typ' is empty",
                hint="set typ to `real` or a generator's name",
            )
        is_real = kind.lower() == "real"
        return Labels("real" if is_real else "fake", "real" if is_real else kind, split=self.split)


class OpenFakeOod(base.DatasetLayout):
    """Layout of OpenFake's two sets of images by one generator, Imagen 3 or Stable Diffusion 2.1.

    Each set is a folder or a zip with about 1500 images, which are all fake.

    Args:
        generator: Generator of all images.
    """

    generator: str

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the labels of an image. Raise ConfigError if its folder is of real images."""
        if base.is_not_image(base.get_path(item)):
            return None
        if base.FOLDER_LABELS.get(base.get_path(item).split("/")[-2].lower()) == "real":
            raise base.make_contradiction(
                item, "is in a folder of real images, but this set has only fakes"
            )
        return Labels("fake", self.generator)


def _read_labels(row: Mapping[str, Any], path: str, split: str | None, where: str) -> Labels:
    value, model, prompt = row["label"], base.get_name(row, "model"), base.get_text(row, "prompt")
    label: Label = (
        "fake"
        if str(value).strip().lower() in _FAKE_WORDS
        else parse_label(value, f"{where}, label")
    )
    if label == "fake" and (model is None or model.lower() == "real"):
        raise ConfigError(
            f"{where}: labelled {value!r}, but its column 'model' is {model!r}, which names no generator",
            hint="write the name of the generator as model of every fake",
        )
    generator = (
        str(model)
        if label == "fake"
        else "real"
        if _is_doubtful(model, path)
        else name_real_generator(model)
    )
    return Labels(label, generator, None, prompt, split, prompt_group(prompt))


def _is_doubtful(model: str | None, path: str) -> bool:
    stem = path.rpartition("/")[2].partition(".")[0]
    first, last = known_faults()["openfake-v2-pexels"].numbers or (0, -1)
    return (
        model is not None
        and model.lower() == "pexels"
        and stem.isdigit()
        and first <= int(stem) <= last
    )


_MAX_EXAMPLES = 5


class ImdlbencoJson(base.ListedLayout):
    """Layout of IMDLBenCo's JSON list of pairs [image, mask], which are paths below `root`.

    The mask "Negative" means that the image is real.

    Args:
        file: The JSON file.
        generator: The method that altered the fakes. None for the name of the JSON file.
    """

    file: str
    generator: str | None = None

    def model_post_init(self, context: object) -> None:
        """Read the label file."""
        entries, root, file = (
            base.read_json(self.file),
            base.resolve_root(self.root, self.file),
            base.redact(self.file),
        )
        name = file.rpartition("/")[2].partition(".")[0]
        for entry in entries if isinstance(entries, list) else [entries]:
            if not (
                isinstance(entry, list)
                and len(entry) == 2
                and all(isinstance(item, str) and item for item in entry)
            ):
                raise ConfigError(
                    f"{file}: {str(entry)[:100]} is not a pair [image, mask]",
                    hint='write a list of such pairs; the mask "Negative" means a real image',
                )
            image, mask = entry
            altered = Labels("fake", self.generator or name, base.join_path(root, mask))
            self._add(
                base.join_path(root, image),
                Labels("real", f"real:{name}") if mask == "Negative" else altered,
                file,
            )

    @property
    def published(self) -> Mapping[str, int]:
        """Number of images in the JSON list, under the key `all`."""
        return {"all": len(self._listed)}


class ImdlbencoFolder(base.DatasetLayout):
    """Layout of IMDLBenCo's folders: `Tp` has altered images, and `Gt` next to it their masks.

    All images are fakes.

    IMDLBenCo pairs images and masks by their order, so that one extra file shifts every mask after
    it. Here a mask must have its image's name, apart from the ending. If a name has no partner,
    nothing is indexed.

    Args:
        generator: The method that altered the images.
        mask_suffix: End of a mask's name before the ending, such as `_gt`.
    """

    generator: str = "manipulation"
    mask_suffix: str = ""
    _masks: dict[str, str] = PrivateAttr(default_factory=dict)

    def prepare(self, members: Iterable[ListedMember]) -> Self:
        """Return a layout that has the mask of each image, by pairing the file names.

        Raises ConfigError if no image is found, a file has no partner, two files have one name, or
        files are in a zip or tar.
        """
        images: dict[str, str] = {}
        masks: dict[str, str] = {}
        for item in members:
            folder, _, name = base.get_path(item).rpartition("/")
            parent, _, kind = folder.rpartition("/")
            if base.is_not_image(name) or kind not in ("Tp", "Gt"):
                continue
            if item.place is not None:
                raise ConfigError(
                    f"{item.uri}: masks must be files, but these are inside an archive",
                    hint="unpack the archive",
                )
            stem = name.rpartition(".")[0].removesuffix(self.mask_suffix if kind == "Gt" else "")
            path = (images if kind == "Tp" else masks).setdefault(
                f"{parent}/{stem}", base.get_path(item)
            )
            if path != base.get_path(item):
                raise ConfigError(
                    f"{parent}/{kind}: two files have the name {stem}: {path} and {base.get_path(item)}",
                    hint="rename or remove one of them, since images and masks are paired by name",
                )
        if not images:
            raise ConfigError(
                "no images found in a folder named 'Tp', which this layout needs",
                hint="give a folder that contains two folders: Tp (images) and Gt (masks)",
            )
        if unpaired := sorted(images.keys() ^ masks.keys()):
            names = [
                f"{path} {'has no mask' if path in images else 'is a mask of no image'}"
                for path in unpaired[:_MAX_EXAMPLES]
            ]
            raise ConfigError(
                f"Tp and Gt: {len(unpaired)} of {len(images | masks)} names do not pair: {'; '.join(names)}",
                hint="give an image and its mask one name up to the ending, or --set arguments.mask_suffix=_gt",
            )
        layout = self.model_copy()
        layout._masks = {images[key]: masks[key] for key in images}
        return layout

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the label fake, with the mask, for an image in the folder `Tp`, else None."""
        mask = self._masks.get(base.get_path(item))
        return None if mask is None else Labels("fake", self.generator, mask)


_FOLDERS = {
    "systematic": "Systematic",
    "manual": "Manual",
    "commercial": "Commercial",
    "publicEval": "PublicEval",
}


class CommunityForensics(base.DatasetLayout):
    """Layout of the data set Community Forensics as Parquet, on the Hugging Face hub.

    Columns are `image_data`, `label`, `model_name`, `prompt`, `real_source`, `architecture`, and
    others. `label` is 0 for real and 1 for fake, `architecture` is LatDiff, PixDiff, GAN,
    Commercial, other, or real.

    The split of a row is the split on the hub. The folder of the Parquet file names the splits
    `Systematic`, `Manual`, `Commercial`, and `PublicEval`. The file name shows `CompEval`. In
    Community Forensics Small, the column `split` has train or test. `Systematic`, `Manual`, and
    `Commercial` have fakes only.
    """

    @property
    def published(self) -> Mapping[str, int]:
        """Number of rows of each split, as the dataset cards on the hub state it.

        The set Community Forensics Small is left out, because no exact number is published for it.
        """
        return {
            "Systematic": 1_919_493,
            "Manual": 774_023,
            "Commercial": 14_918,
            "PublicEval": 51_836,
            "CompEval": 51_836,
        }

    def labels(self, item: ListedMember) -> Labels:
        """Return the labels of a row. Raise ConfigError for a fake without a model's name."""
        label, model, prompt = (
            base.read_class_label(item, "label"),
            base.get_name(item.input, "model_name"),
            base.get_text(item.input, "prompt"),
        )
        if label == "fake" and (model is None or model.lower() == "real"):
            raise base.make_contradiction(item, f"labelled fake, but its model_name is {model!r}")
        generator = (
            name_real_generator(base.get_name(item.input, "real_source") or model)
            if label == "real"
            else str(model)
        )
        split = (
            _FOLDERS.get(item.uri.split("/")[-2])
            or base.parse_split(item.uri)
            or base.get_name(item.input, "split")
        )
        family = base.get_name(item.input, "architecture") if label == "fake" else None
        return Labels(label, generator, None, prompt, split, prompt_group(prompt), family)


_NAMES: dict[int, Label] = {0: "fake", 1: "real"}


class OpenDeepfakePreview(base.DatasetLayout):
    """Layout of OpenDeepfake-Preview, a table with columns `image` and `label`: 0 Fake, 1 Real.

    Args:
        generator: Name for the generator of all fakes, which is not published.
    """

    generator: str = "open-deepfake-preview"

    @property
    def published(self) -> Mapping[str, int]:
        """Number of images per label, from the card of a detector tested on this data set."""
        return {"fake": 10_000, "real": 9_999}

    def labels(self, item: ListedMember) -> Labels:
        """Return the labels of a row.

        Raises ConfigError if the table's name for a label is not Fake for 0 or Real for 1.
        """
        number, label_name = base.get_column(item, "label"), item.input.get("label_name")
        label = _NAMES.get(number) if type(number) is int else None
        if label is None:
            raise ConfigError(
                f"{base.describe_member(item)}, column 'label': {number!r} is not a label",
                hint="use 0 (Fake) and 1 (Real), as OpenDeepfake-Preview does",
            )
        if label_name is not None and str(label_name).strip().lower() != label:
            raise base.make_contradiction(
                item,
                f"label {number} is {label} in OpenDeepfake-Preview, but '{label_name}' in this table",
            )
        return Labels(
            label, "real" if label == "real" else self.generator, split=base.parse_split(item.uri)
        )

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Return the label as the subset, because `published` has a number for each label."""
        return labels.label


Part = Literal["train", "test", "plus"]

_REPOSITORIES: dict[str, Part] = {
    "OpenSDI_train": "train",
    "tmpdata": "train",
    "OpenSDI_test": "test",
    "tmpdata3": "test",
    "tempplusdata": "plus",
}
_OPENSDI = {
    "train/sd15": 200_824,
    **{f"test/{generator}": 20_000 for generator in ("sd15", "sd2", "sdxl", "sd3", "flux")},
    "plus/sd3": 211_676,
    "plus/sd2": 182_196,
    "plus/sdxl": 200_302,
    "plus/flux": 208_344,
}


class OpenSdi(base.DatasetLayout):
    """Layout of OpenSDI, a table with the columns `key`, `image`, `mask`, and `label`.

    A key is `partial|entire/<generator>/real|fake/<id>.jpg`. The hub's splits are named after
    generators. The mask of a real image is ignored, and a fake without a mask is generated as a
    whole. Images of one id are one group.

    Args:
        part: Part of the data set: `train`, `test`, or `plus`. It is the split of all rows, except
            that the split of `plus` is `train`. None to find the part by the name of the repository
            in the path (`OpenSDI_train`, `OpenSDI_test`, `tempplusdata`, or their old names). If
            the path has no such name, rows have no split.
    """

    part: Part | None = None

    @property
    def published(self) -> Mapping[str, int]:
        """Number of rows by part and split, as the dataset cards on the hub state it."""
        return _OPENSDI

    def labels(self, item: ListedMember) -> Labels:
        """Return the labels of a row.

        Raises ConfigError if the column `label`, or the presence of a mask, contradicts the column
        `key`. A key states the label, the generator, and whether only a part is altered.
        """
        label, key = base.read_class_label(item, "label"), str(base.get_column(item, "key"))
        parts = key.split("/")
        if len(parts) != 4 or parts[2].lower() not in ("real", "fake"):
            raise base.make_contradiction(
                item, f"the key '{key}' is not partial|entire/GENERATOR/real|fake/FILE"
            )
        if parts[2].lower() != label:
            raise base.make_contradiction(item, f"its label is {label}, but its key is '{key}'")
        mask = base.get_name(item.input, "mask_uri") if label == "fake" else None
        if mask is not None and not may_name(item.uri, item.member, mask):
            raise base.make_contradiction(
                item, f"its mask must be in the same table, but is at {mask}"
            )
        if label == "fake" and parts[0] == "partial" and mask is None:
            raise base.make_contradiction(
                item, f"the key '{key}' means that a part is altered, but the row has no mask"
            )
        part = self._part(item)
        split = "train" if part == "plus" else part
        return Labels(
            label,
            "real" if label == "real" else parts[1],
            mask,
            None,
            split,
            f"key:{parts[3].partition('.')[0]}",
        )

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Return the part and the hub's split of a row, such as `train/sd15`.

        The hub's splits are named after generators, and also have real images.
        """
        return f"{self._part(item) or 'unknown'}/{base.parse_split(item.uri) or str(base.get_column(item, 'key')).split('/')[1]}"

    def _part(self, item: ListedMember) -> Part | None:
        parts = (
            _REPOSITORIES[name] for name in re.split(r"[/@]|--", item.uri) if name in _REPOSITORIES
        )
        return self.part or next(parts, None)


# Generators of version 1 by the names of its files. `pd` has thousands of fine-tuned models, and
# each record names its model.
FAMILIES_V1 = {"dalle": "dalle-2", "mj": "midjourney", "sd": "stable-diffusion", "pd": None}
# Families of version 2. The id of a family is its index.
FAMILIES_V2 = (
    "aura_flow", "chroma", "flux.1_d", "flux.1_s", "flux2-dev", "gpt-image-1", "hidream", "hunyuan", "illustrious", "imagen4", "kolors",
    "nano_banana", "nano_banana_pro", "noobai", "pixart", "playground_v2", "pony", "pony_v7", "qwen", "sd_1.5", "sd_2.1", "sd_3.5_large",
    "sd_3.5_medium", "sdxl_1.0", "seedream", "stable_cascade", "z-image",
)  # fmt: skip
_PUBLISHED_V2 = {"fake": 763_318, "real": 641_470}
_PUBLISHED_SHARDS = {"fake": 768_586}
_SHARDS = base.Folders(split_folder=-1)


class Dflip(base.ListedLayout):
    """Layout of DFLIP-3K in version 1 or 2.

    Version 1 is JSON files with a mapping from image id to metadata, and has fakes only. Version 2
    is a JSON list of images with their labels, or WebDataset shards on the Hugging Face hub.

    Args:
        file: The JSON file. None for the shards of version 2, which need none.
        generator: Generator of all images of version 1. None if the file has its published name:
            dalle, mj, or sd names the generator, and pd has it in each image's metadata.
        root: Folder to which the paths of version 2 are relative. None for the folder of the file.
    """

    file: str | None = None
    generator: str | None = None
    _has_ids: bool = PrivateAttr(default=False)

    def model_post_init(self, context: object) -> None:
        """Read the label file."""
        if self.file is None:
            return
        content, file = base.read_json(self.file), base.redact(self.file)
        if isinstance(content, dict):
            self._read_v1(content, file)
        elif isinstance(content, list):
            self._read_v2(content, base.resolve_root(self.root, self.file), file)
        else:
            raise ConfigError(
                f"{file}: must be a mapping from id to record (version 1) or a list of records (version 2)"
            )

    @property
    def published(self) -> Mapping[str, int]:
        """Number of images in each subset: `all` for version 1, else the labels.

        For version 1, it is the number of images in the JSON file. For the JSON list of version 2,
        it is the number in the authors' code. For shards, it is the number on the dataset card.
        """
        if self.file is None:
            return _PUBLISHED_SHARDS
        return {"all": len(self._listed)} if self._has_ids else _PUBLISHED_V2

    def labels(self, item: ListedMember) -> Labels | None:
        """Return the labels of an image. None if it has none, or is not an image.

        They are found by the image's id in version 1 of the data set, by its path in version 2. The
        id is the file's name up to the first dot. Images in shards are labelled by their folders.
        Raises ConfigError if the folders of a shard name no label, or no known family of a fake.
        """
        path = base.get_path(item)
        if base.is_not_image(path):
            return None
        if self.file is None:
            return _labels_in_shard(item)
        return self._listed.get(_parse_id(path) if self._has_ids else path)

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Return the name of the subset: the label in version 2, and `all` in version 1."""
        return "all" if self._has_ids else labels.label

    def _read_v1(self, content: Mapping[str, Any], file: str) -> None:
        self._has_ids = True
        family = _parse_id(file)
        if self.generator is None and family not in FAMILIES_V1:
            raise ConfigError(
                f"{file}: the name of the file does not show the generator",
                hint=f"name it by --set arguments.generator=…; known files: {', '.join(FAMILIES_V1)}",
            )
        for name, record in content.items():
            if not isinstance(record, dict):
                raise ConfigError(
                    f"{file}: the record of '{name}' must be an object, such as {{\"Prompt\": …}}, got {record!r}"
                )
            if _parse_id(name) in self._listed:
                raise ConfigError(
                    f"{file}: '{name}' and another id are both '{_parse_id(name)}' up to the first dot, so their images cannot be told apart",
                    hint="rename or remove one of the two ids",
                )
            prompt = base.get_text(record, "Prompt") or base.get_text(record, "p")
            model = base.get_text(record, "Model") or base.get_text(record, "Model hash") or "sdft"
            generator = self.generator or FAMILIES_V1[family] or model
            self._listed[_parse_id(name)] = Labels(
                "fake", generator, None, prompt, None, prompt_group(prompt)
            )

    def _read_v2(self, content: list[Any], root: str, file: str) -> None:
        for index, record in enumerate(content):
            if not isinstance(record, dict) or not record.get("image_path"):
                raise ConfigError(
                    f"{file}: record {index} must be an object with the key 'image_path'"
                )
            labels = _labels_v2(record, f"{file}: record {index} ({record['image_path']})")
            self._add(base.join_path(root, record["image_path"]), labels, file)


def _labels_v2(record: Mapping[str, Any], where: str) -> Labels:
    label, family = parse_label(record.get("is_fake"), f"{where}, is_fake"), record.get("family_id")
    if (label == "real") != (family is None):
        facts = f"is_fake {record.get('is_fake')!r} contradicts family_id {family!r}"
        raise ConfigError(
            f"{where}: {facts}", hint="give every fake a family_id, and remove it from real images"
        )
    if family is not None and not (isinstance(family, int) and 0 <= family < len(FAMILIES_V2)):
        raise ConfigError(
            f"{where}: unknown family_id {family!r}",
            hint=f"use an id from 0 to {len(FAMILIES_V2) - 1}",
        )
    prompt = base.get_text(record, "prompt")
    return Labels(
        label,
        "real" if family is None else FAMILIES_V2[family],
        None,
        prompt,
        base.get_name(record, "split"),
        prompt_group(prompt),
    )


def _labels_in_shard(item: ListedMember) -> Labels | None:
    labels = _SHARDS.labels(item)
    if labels is None:
        return None
    if labels.label == "fake" and labels.generator not in FAMILIES_V2:
        raise base.make_contradiction(item, f"DFLIP-3K has no family '{labels.generator}'")
    columns = base.add_sidecar_columns(item).input
    prompt = base.get_text(columns, "prompt") or base.get_text(columns, "txt")
    return replace(labels, prompt=prompt, group=prompt_group(prompt))


def _parse_id(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
