"""DFLIP-3K, both versions (`Dflip`): label files in JSON, or shards. Source: specs/localization.md §5.

Version 1: id → record, of fakes alone, one file of metadata per family; its values are texts that may be missing. The files are
`<id>.<ext>`, and an id ends at the first dot. Version 2: a list of {image_path, is_fake, family_id, version_id, split}; or, as the hub has
it, WebDataset shards below {train,test}/{fake/<family>,real}, the prompts in the sidecars.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import PrivateAttr

from ray_app.archives import ListedMember
from ray_app.datasets.labels import Labels, parse_label, prompt_group
from ray_app.datasets.layouts import base
from ray_app.errors import ConfigError

# Version 1, by the names of its files; `pd` are thousands of fine-tuned models, each record naming its own.
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

    Version 1: `generator`, where the file's name is not dalle, mj, sd or pd. Version 2: paths are below `root`.
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
            raise ConfigError(f"{file}: neither id → record (version 1) nor a list of records (version 2)")

    @property
    def published(self) -> Mapping[str, int]:
        """Version 1: as many as the file lists. Version 2: what its authors' code counts, of the shards what the hub's card states."""
        if self.file is None:
            return _PUBLISHED_SHARDS
        return {"all": len(self._listed)} if self._has_ids else _PUBLISHED_V2

    def labels(self, item: ListedMember) -> Labels | None:
        """Version 1 looks for the name up to its first dot, version 2 for the path. Raises ConfigError for a shard in the wrong folders."""
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
                f"{file}: which generator?", hint=f"name it: --set arguments.generator=…; known files: {', '.join(FAMILIES_V1)}"
            )
        for name, record in content.items():
            if not isinstance(record, dict):
                raise ConfigError(f"{file}: '{name}' has no record but {record!r}")
            if _id(name) in self._listed:
                raise ConfigError(f"{file}: two ids are '{_id(name)}' up to the first dot, '{name}' one of them: their files collide")
            prompt = base.text(record, "Prompt") or base.text(record, "p")
            model = base.text(record, "Model") or base.text(record, "Model hash") or "sdft"
            made_by = self.generator or FAMILIES_V1[family] or model
            self._listed[_id(name)] = Labels("fake", made_by, None, prompt, None, prompt_group(prompt))

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
        raise ConfigError(f"{where}: no family has the id {family!r}", hint=f"ids are 0 to {len(FAMILIES_V2) - 1}")
    prompt = base.text(record, "prompt")
    return Labels(label, "real" if family is None else FAMILIES_V2[family], None, prompt, base.text(record, "split"), prompt_group(prompt))


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
