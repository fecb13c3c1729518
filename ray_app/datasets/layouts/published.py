"""Published data sets whose labels take code to read: OpenFake (specs/detectors.md §1b, §1c, §12),
IMDLBenCo's (specs/localization.md §3.2), Community Forensics as Parquet (specs/detectors.md §7a),
OpenDeepfake-Preview (§6), OpenSDI (specs/localization.md §2), DFLIP-3K (§5).

DFLIP-3K, version 1: id → record, of fakes alone, one file of metadata per family; its values are
texts that may be missing. The files are `<id>.<ext>`, and an id ends at the first dot. Version 2: a
list of {image_path, is_fake, family_id, version_id, split}; or, as the hub has it, WebDataset
shards below {train,test}/{fake/<family>,real}, the prompts in the sidecars.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import PrivateAttr

from ray_app.archives import ListedMember
from ray_app.datasets.known_faults import known_faults
from ray_app.datasets.labels import Label, Labels, parse_label, prompt_group, real_of
from ray_app.datasets.layouts import base
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError

# Version 1 takes every label but "real" for a fake, version 2 every one but a few words for a real.
# Here both have the words that they are documented with, and no default. These are of version 2;
# `tampered` images are altered in part and come without masks: they are fit for detection, not for
# training masks.
_FAKE_WORDS = ("synthetic", "full_synthetic", "tampered")
_PUBLISHED: dict[str, dict[str, int]] = {
    "v1-2025-05": {"default/train": 635_138, "default/test": 30_000},
    "v1": {"default/train": 1_870_684, "default/test": 59_658},
    "v2": {"core/validation": 59_000, "core/test": 91_398, "reddit/test": 36_240},
}


class OpenFake(base.DatasetLayout):
    """Columns `image`, `prompt`, `label`, `model`, in version 2 also `type` and `release_date`.
    Images of one prompt are one group.

    `version`: which published numbers it should have, since the set has changed again and again;
    null = none to compare with. What names no model in the configuration `reddit` is of `reddit`,
    as for its authors (experiments/data/splits.py at af44d6d).
    """

    version: Literal["v1-2025-05", "v1", "v2"] | None = None

    @property
    def published(self) -> Mapping[str, int]:
        """By configuration and split."""
        return _PUBLISHED[self.version] if self.version else {}

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError for a label that no version has, and for a fake without a model."""
        base.column(item, "label")
        is_wild = base.text(item.input, "model") is None and base.config_of(item.uri) == "reddit"
        row = {**item.input, "model": "reddit"} if is_wild else item.input
        return _labels(
            row,
            base.place_of(item),
            base.split_of(item.uri) or base.text(item.input, "split"),
            base.where(item),
        )

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Configuration and split, as the shard's path names them."""
        return f"{base.config_of(item.uri) or 'default'}/{labels.split}"


class OpenFakeCsv(base.ListedLayout):
    """Label files: `filename,typ` (version 1; typ is the folder below the root, `real` or a
    generator), or version 2's split files `file_name,prompt,label,model,type,release_date`.

    `file`: the CSV; null where the CSV itself is the source (of version 1 with columns.uri:
    filename). `split`: what its rows are for.
    """

    file: str | None = None
    split: str | None = None

    def model_post_init(self, context: object) -> None:
        """Reads the file."""
        if self.file is None:
            return
        root, file = base.root_of(self.root, self.file), base.shown(self.file)
        for number, row in base.read_rows(self.file):
            path, where = row.get("file_name") or row.get("filename"), f"{file}, row {number}"
            if not path:
                raise ConfigError(
                    f"{where}: no filename or file_name", hint=f"its columns: {', '.join(row)}"
                )
            folder = f"{row['typ']}/" if "typ" in row and "/" not in path else ""
            self._enter(
                base.place_below(root, folder + path), self._labels_of_row(row, path, where), file
            )

    @property
    def published(self) -> Mapping[str, int]:
        """As many as the file has rows."""
        return {self.split or "all": len(self._listed)} if self.file else {}

    def labels(self, item: ListedMember) -> Labels | None:
        """Raises ConfigError as OpenFake."""
        return (
            super().labels(item)
            if self.file
            else self._labels_of_row(item.input, base.place_of(item), base.where(item))
        )

    def _labels_of_row(self, row: Mapping[str, Any], path: str, where: str) -> Labels:
        if "typ" not in row and "label" not in row:
            raise ConfigError(
                f"{where}: neither a column 'typ' nor 'label'",
                hint=f"its columns: {', '.join(row) or 'none'}",
            )
        if "typ" not in row:
            return _labels(row, path, self.split, where)
        if (kind := base.text(row, "typ")) is None:
            raise ConfigError(f"{where}: no typ", hint="typ is `real` or a generator's name")
        is_real = kind.lower() == "real"
        return Labels("real" if is_real else "fake", "real" if is_real else kind, split=self.split)


class OpenFakeOod(base.DatasetLayout):
    """The sets of Imagen 3 and Stable Diffusion 2.1, a folder or zip each: all fake, all of one
    `generator`. About 1500 images each.
    """

    generator: str

    def labels(self, item: ListedMember) -> Labels | None:
        """Raises ConfigError for an image in a folder of reals: it is not of such a set."""
        if base.is_no_image(base.place_of(item)):
            return None
        if base.FOLDER_LABELS.get(base.place_of(item).split("/")[-2].lower()) == "real":
            raise base.contradiction(item, "in a folder of reals, and all of this set is fake")
        return Labels("fake", self.generator)


def _labels(row: Mapping[str, Any], path: str, split: str | None, where: str) -> Labels:
    value, model, prompt = row["label"], base.text(row, "model"), base.text(row, "prompt")
    label: Label = (
        "fake"
        if str(value).strip().lower() in _FAKE_WORDS
        else parse_label(value, f"{where}, label")
    )
    if label == "fake" and (model is None or model.lower() == "real"):
        raise ConfigError(
            f"{where}: labelled {value!r}, but its model is {model!r}",
            hint="every fake names its model",
        )
    generator = (
        str(model) if label == "fake" else "real" if _is_doubtful(model, path) else real_of(model)
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


_SHOWN = 5


class ImdlbencoJson(base.ListedLayout):
    """`file`: a list of [image, mask], the mask "Negative" for a real, both below `root`.

    `generator` names what altered the fakes; null = the JSON's own name.
    """

    file: str
    generator: str | None = None

    def model_post_init(self, context: object) -> None:
        """Reads the file."""
        entries, root, file = (
            base.read_json(self.file),
            base.root_of(self.root, self.file),
            base.shown(self.file),
        )
        name = file.rpartition("/")[2].partition(".")[0]
        for entry in entries if isinstance(entries, list) else [entries]:
            if not (
                isinstance(entry, list)
                and len(entry) == 2
                and all(isinstance(one, str) and one for one in entry)
            ):
                raise ConfigError(
                    f"{file}: {str(entry)[:100]} is not [image, mask]",
                    hint='a list of such pairs; "Negative" is no mask',
                )
            image, mask = entry
            altered = Labels("fake", self.generator or name, base.place_below(root, mask))
            self._enter(
                base.place_below(root, image),
                Labels("real", f"real:{name}") if mask == "Negative" else altered,
                file,
            )

    @property
    def published(self) -> Mapping[str, int]:
        """As many as the file lists."""
        return {"all": len(self._listed)}


class ImdlbencoFolder(base.DatasetLayout):
    """Folders `Tp` of altered images and `Gt` of their masks, side by side; all are fakes.

    IMDLBenCo pairs the two by their order, so that one stray file shifts every mask behind it. Here
    a mask has its image's name up to the ending, and `mask_suffix` behind it (`_gt`); where the
    names do not pair so, nothing is indexed. `generator` names what altered them.
    """

    generator: str = "manipulation"
    mask_suffix: str = ""
    _masks: dict[str, str] = PrivateAttr(default_factory=dict)

    def prepared(self, members: Iterable[ListedMember]) -> Self:
        """Pairs all images and masks. Raises ConfigError naming those without the other, and for
        masks in an archive.
        """
        images: dict[str, str] = {}
        masks: dict[str, str] = {}
        for item in members:
            folder, _, name = base.place_of(item).rpartition("/")
            parent, _, kind = folder.rpartition("/")
            if base.is_no_image(name) or kind not in ("Tp", "Gt"):
                continue
            if item.place is not None:
                raise ConfigError(
                    f"{item.uri}: masks inside an archive cannot be referred to", hint="unpack it"
                )
            stem = name.rpartition(".")[0].removesuffix(self.mask_suffix if kind == "Gt" else "")
            place = (images if kind == "Tp" else masks).setdefault(
                f"{parent}/{stem}", base.place_of(item)
            )
            if place != base.place_of(item):
                raise ConfigError(
                    f"{parent}/{kind}: {parent}/{stem} is there twice, as [{place}] and as [{base.place_of(item)}]"
                )
        if not images:
            raise ConfigError(
                "no image lies in a folder Tp",
                hint="the source holds folders Tp (images) and Gt (masks), side by side",
            )
        if alone := sorted(images.keys() ^ masks.keys()):
            names = [
                f"{place} {'has no mask' if place in images else 'is a mask of no image'}"
                for place in alone[:_SHOWN]
            ]
            raise ConfigError(
                f"Tp and Gt: {len(alone)} of {len(images | masks)} names do not pair: {'; '.join(names)}",
                hint="an image and its mask have one name up to the ending; --set arguments.mask_suffix=_gt",
            )
        prepared = self.model_copy()
        prepared._masks = {images[key]: masks[key] for key in images}
        return prepared

    def labels(self, item: ListedMember) -> Labels | None:
        """Images in Tp, as they were paired."""
        mask = self._masks.get(base.place_of(item))
        return None if mask is None else Labels("fake", self.generator, mask)


_FOLDERS = {
    "systematic": "Systematic",
    "manual": "Manual",
    "commercial": "Commercial",
    "publicEval": "PublicEval",
}


class CommunityForensics(base.DatasetLayout):
    """Columns `image_data`, `label` (0 real, 1 fake), `model_name`, `prompt`, `real_source`,
    `architecture` (LatDiff, PixDiff, GAN, Commercial, other; real) and others.

    Splits are the hub's: by the folder of a shard (`Systematic`, `Manual`, `Commercial`,
    `PublicEval`), its name (`CompEval`), else the column, which says train or test (Small).
    `Systematic`, `Manual` and `Commercial` are fakes alone.
    """

    @property
    def published(self) -> Mapping[str, int]:
        """What the cards of the full and of the evaluation set state; Small is published as twice
        278,000.
        """
        return {
            "Systematic": 1_919_493,
            "Manual": 774_023,
            "Commercial": 14_918,
            "PublicEval": 51_836,
            "CompEval": 51_836,
        }

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError for a fake without a model's name."""
        label, model, prompt = (
            base.class_label(item, "label"),
            base.text(item.input, "model_name"),
            base.text(item.input, "prompt"),
        )
        if label == "fake" and (model is None or model.lower() == "real"):
            raise base.contradiction(item, f"labelled fake, but its model_name is {model!r}")
        generator = (
            real_of(base.text(item.input, "real_source") or model)
            if label == "real"
            else str(model)
        )
        split = (
            _FOLDERS.get(item.uri.split("/")[-2])
            or base.split_of(item.uri)
            or base.text(item.input, "split")
        )
        family = base.text(item.input, "architecture") if label == "fake" else None
        return Labels(label, generator, None, prompt, split, prompt_group(prompt), family)


_NAMES: dict[int, Label] = {0: "fake", 1: "real"}


class OpenDeepfakePreview(base.DatasetLayout):
    """Columns `image` and `label`, a ClassLabel: 0 is Fake, 1 is Real. `generator` names all fakes:
    nothing says who made them.
    """

    generator: str = "open-deepfake-preview"

    @property
    def published(self) -> Mapping[str, int]:
        """The counts on the detector's card."""
        return {"fake": 10_000, "real": 9_999}

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError where the table's own names of the numbers are not the documented
        ones.
        """
        number, named = base.column(item, "label"), item.input.get("label_name")
        label = _NAMES.get(number) if type(number) is int else None
        if label is None:
            raise ConfigError(
                f"{base.where(item)}, column 'label': {number!r} is not a label",
                hint="OpenDeepfake-Preview has 0 (Fake) and 1 (Real)",
            )
        if named is not None and str(named).strip().lower() != label:
            raise base.contradiction(
                item,
                f"label {number} is {label} in OpenDeepfake-Preview, and this table calls it '{named}'",
            )
        return Labels(
            label, "real" if label == "real" else self.generator, split=base.split_of(item.uri)
        )

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """By label."""
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
    """Columns `key`, `image`, `mask`, `label`; a key is
    `partial|entire/<generator>/real|fake/<id>.jpg`.

    The hub's splits are named after generators. `part` decides what is for training; null = as the
    repository in the path is called (`OpenSDI_train`, `OpenSDI_test`, `tempplusdata` or their old
    names), else nothing. The mask of a real is ignored; a fake without one is generated as a whole.
    Images of one id are one group.
    """

    part: Part | None = None

    @property
    def published(self) -> Mapping[str, int]:
        """The rows that the hub's cards state, by part and split."""
        return _OPENSDI

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError where key, label and mask contradict one another."""
        label, key = base.class_label(item, "label"), str(base.column(item, "key"))
        parts = key.split("/")
        if len(parts) != 4 or parts[2].lower() not in ("real", "fake"):
            raise base.contradiction(
                item, f"the key '{key}' is not partial|entire/GENERATOR/real|fake/FILE"
            )
        if parts[2].lower() != label:
            raise base.contradiction(item, f"its label is {label}, its key '{key}'")
        mask = base.text(item.input, "mask_uri") if label == "fake" else None
        if mask is not None and not may_name(item.uri, item.member, mask):
            raise base.contradiction(item, f"its mask lies elsewhere, at {mask}")
        if label == "fake" and parts[0] == "partial" and mask is None:
            raise base.contradiction(
                item, f"the key '{key}' tells of a part, and there is no mask of it"
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
        """Part and the hub's split, which is also in each key."""
        return f"{self._part(item) or 'unknown'}/{base.split_of(item.uri) or str(base.column(item, 'key')).split('/')[1]}"

    def _part(self, item: ListedMember) -> Part | None:
        named = (
            _REPOSITORIES[word] for word in re.split(r"[/@]|--", item.uri) if word in _REPOSITORIES
        )
        return self.part or next(named, None)


# Version 1, by the names of its files; `pd` are thousands of fine-tuned models, each record naming
# its own.
FAMILIES_V1 = {"dalle": "dalle-2", "mj": "midjourney", "sd": "stable-diffusion", "pd": None}
# Version 2: a family's id is its place in this list.
FAMILIES_V2 = (
    "aura_flow", "chroma", "flux.1_d", "flux.1_s", "flux2-dev", "gpt-image-1", "hidream", "hunyuan", "illustrious", "imagen4", "kolors",
    "nano_banana", "nano_banana_pro", "noobai", "pixart", "playground_v2", "pony", "pony_v7", "qwen", "sd_1.5", "sd_2.1", "sd_3.5_large",
    "sd_3.5_medium", "sdxl_1.0", "seedream", "stable_cascade", "z-image",
)  # fmt: skip
_PUBLISHED_V2 = {"fake": 763_318, "real": 641_470}
_PUBLISHED_SHARDS = {"fake": 768_586}
_SHARDS = base.Folders(split_folder=-1)


class Dflip(base.ListedLayout):
    """`file`: the JSON; null: the shards of version 2, which need none.

    Version 1: `generator`, where the file's name is not dalle, mj, sd or pd. Version 2: paths are
    below `root`.
    """

    file: str | None = None
    generator: str | None = None
    _has_ids: bool = PrivateAttr(default=False)

    def model_post_init(self, context: object) -> None:
        """Reads the file."""
        if self.file is None:
            return
        content, file = base.read_json(self.file), base.shown(self.file)
        if isinstance(content, dict):
            self._read_v1(content, file)
        elif isinstance(content, list):
            self._read_v2(content, base.root_of(self.root, self.file), file)
        else:
            raise ConfigError(
                f"{file}: neither id → record (version 1) nor a list of records (version 2)"
            )

    @property
    def published(self) -> Mapping[str, int]:
        """Version 1: as many as the file lists. Version 2: what its authors' code counts, of the
        shards what the hub's card states.
        """
        if self.file is None:
            return _PUBLISHED_SHARDS
        return {"all": len(self._listed)} if self._has_ids else _PUBLISHED_V2

    def labels(self, item: ListedMember) -> Labels | None:
        """Version 1 looks for the name up to its first dot, version 2 for the path. Raises
        ConfigError for a shard in the wrong folders.
        """
        place = base.place_of(item)
        if base.is_no_image(place):
            return None
        if self.file is None:
            return _labels_in_shard(item)
        return self._listed.get(_id(place) if self._has_ids else place)

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Version 2 is counted by labels."""
        return "all" if self._has_ids else labels.label

    def _read_v1(self, content: Mapping[str, Any], file: str) -> None:
        self._has_ids = True
        family = _id(file)
        if self.generator is None and family not in FAMILIES_V1:
            raise ConfigError(
                f"{file}: which generator?",
                hint=f"name it: --set arguments.generator=…; known files: {', '.join(FAMILIES_V1)}",
            )
        for name, record in content.items():
            if not isinstance(record, dict):
                raise ConfigError(f"{file}: '{name}' has no record but {record!r}")
            if _id(name) in self._listed:
                raise ConfigError(
                    f"{file}: two ids are '{_id(name)}' up to the first dot, '{name}' one of them: their files collide"
                )
            prompt = base.text(record, "Prompt") or base.text(record, "p")
            model = base.text(record, "Model") or base.text(record, "Model hash") or "sdft"
            made_by = self.generator or FAMILIES_V1[family] or model
            self._listed[_id(name)] = Labels(
                "fake", made_by, None, prompt, None, prompt_group(prompt)
            )

    def _read_v2(self, content: list[Any], root: str, file: str) -> None:
        for number, record in enumerate(content):
            if not isinstance(record, dict) or not record.get("image_path"):
                raise ConfigError(f"{file}: record {number} has no image_path")
            labels = _labels_v2(record, f"{file}: record {number} ({record['image_path']})")
            self._enter(base.place_below(root, record["image_path"]), labels, file)


def _labels_v2(record: Mapping[str, Any], where: str) -> Labels:
    label, family = parse_label(record.get("is_fake"), f"{where}, is_fake"), record.get("family_id")
    if (label == "real") != (family is None):
        found = f"is_fake is {record.get('is_fake')!r} and family_id {family!r}"
        raise ConfigError(f"{where}: {found}", hint="reals, and reals alone, have none")
    if family is not None and not (isinstance(family, int) and 0 <= family < len(FAMILIES_V2)):
        raise ConfigError(
            f"{where}: no family has the id {family!r}", hint=f"ids are 0 to {len(FAMILIES_V2) - 1}"
        )
    prompt = base.text(record, "prompt")
    return Labels(
        label,
        "real" if family is None else FAMILIES_V2[family],
        None,
        prompt,
        base.text(record, "split"),
        prompt_group(prompt),
    )


def _labels_in_shard(item: ListedMember) -> Labels | None:
    labels = _SHARDS.labels(item)
    if labels is None:
        return None
    if labels.label == "fake" and labels.generator not in FAMILIES_V2:
        raise base.contradiction(item, f"DFLIP-3K has no family '{labels.generator}'")
    columns = base.with_sidecar(item).input
    prompt = base.text(columns, "prompt") or base.text(columns, "txt")
    return replace(labels, prompt=prompt, group=prompt_group(prompt))


def _id(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
