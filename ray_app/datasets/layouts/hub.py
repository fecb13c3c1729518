"""Community Forensics as Parquet on the hub: thousands of generators (`CommunityForensics`). Source: specs/detectors.md §7a.

OpenDeepfake-Preview, the training set of the SigLIP2 detector (`OpenDeepfakePreview`): 0 is fake. Source: specs/detectors.md §6.

OpenSDI (OpenSDID): generated and locally altered images with masks, Parquet on the hub (`OpenSdi`). Source: specs/localization.md §2.
"""

import re
from collections.abc import Mapping
from typing import Literal

from ray_app.archives import ListedMember
from ray_app.datasets.labels import Label, Labels, prompt_group, real_of
from ray_app.datasets.layouts.base import DatasetLayout, class_label, column, contradiction, split_of, text, where
from ray_app.datasets.masks import may_name
from ray_app.errors import ConfigError

_FOLDERS = {"systematic": "Systematic", "manual": "Manual", "commercial": "Commercial", "publicEval": "PublicEval"}


class CommunityForensics(DatasetLayout):
    """Columns `image_data`, `label` (0 real, 1 fake), `model_name`, `prompt`, `real_source`, `architecture` (LatDiff, PixDiff, GAN,
    Commercial, other; real) and others.

    Splits are the hub's: by the folder of a shard (`Systematic`, `Manual`, `Commercial`, `PublicEval`), its name (`CompEval`), else the
    column, which says train or test (Small). `Systematic`, `Manual` and `Commercial` are fakes alone.
    """

    @property
    def published(self) -> Mapping[str, int]:
        """What the cards of the full and of the evaluation set state; Small is published as twice 278,000."""
        return {"Systematic": 1_919_493, "Manual": 774_023, "Commercial": 14_918, "PublicEval": 51_836, "CompEval": 51_836}

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError for a fake without a model's name."""
        label, model, prompt = class_label(item, "label"), text(item.input, "model_name"), text(item.input, "prompt")
        if label == "fake" and (model is None or model.lower() == "real"):
            raise contradiction(item, f"labelled fake, but its model_name is {model!r}")
        generator = real_of(text(item.input, "real_source") or model) if label == "real" else str(model)
        split = _FOLDERS.get(item.uri.split("/")[-2]) or split_of(item.uri) or text(item.input, "split")
        family = text(item.input, "architecture") if label == "fake" else None
        return Labels(label, generator, None, prompt, split, prompt_group(prompt), family)


_NAMES: dict[int, Label] = {0: "fake", 1: "real"}


class OpenDeepfakePreview(DatasetLayout):
    """Columns `image` and `label`, a ClassLabel: 0 is Fake, 1 is Real. `generator` names all fakes: nothing says who made them."""

    generator: str = "open-deepfake-preview"

    @property
    def published(self) -> Mapping[str, int]:
        """The counts on the detector's card."""
        return {"fake": 10_000, "real": 9_999}

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError where the table's own names of the numbers are not the documented ones."""
        number, named = column(item, "label"), item.input.get("label_name")
        label = _NAMES.get(number) if type(number) is int else None
        if label is None:
            raise ConfigError(
                f"{where(item)}, column 'label': {number!r} is no label", hint="OpenDeepfake-Preview has 0 (Fake) and 1 (Real)"
            )
        if named is not None and str(named).strip().lower() != label:
            raise contradiction(item, f"label {number} is {label} in OpenDeepfake-Preview, and this table calls it '{named}'")
        return Labels(label, "real" if label == "real" else self.generator, split=split_of(item.uri))

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
_PUBLISHED = {
    "train/sd15": 200_824,
    **{f"test/{generator}": 20_000 for generator in ("sd15", "sd2", "sdxl", "sd3", "flux")},
    "plus/sd3": 211_676,
    "plus/sd2": 182_196,
    "plus/sdxl": 200_302,
    "plus/flux": 208_344,
}


class OpenSdi(DatasetLayout):
    """Columns `key`, `image`, `mask`, `label`; a key is `partial|entire/<generator>/real|fake/<id>.jpg`.

    The hub's splits are named after generators. `part` decides what is for training; null = as the repository in the path is called
    (`OpenSDI_train`, `OpenSDI_test`, `tempplusdata` or their old names), else nothing. The mask of a real is ignored; a fake
    without one is generated as a whole. Images of one id are one group.
    """

    part: Part | None = None

    @property
    def published(self) -> Mapping[str, int]:
        """The rows that the hub's cards state, by part and split."""
        return _PUBLISHED

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError where key, label and mask contradict one another."""
        label, key = class_label(item, "label"), str(column(item, "key"))
        parts = key.split("/")
        if len(parts) != 4 or parts[2].lower() not in ("real", "fake"):
            raise contradiction(item, f"the key '{key}' is not partial|entire/GENERATOR/real|fake/FILE")
        if parts[2].lower() != label:
            raise contradiction(item, f"its label is {label}, its key '{key}'")
        mask = text(item.input, "mask_uri") if label == "fake" else None
        if mask is not None and not may_name(item.uri, item.member, mask):
            raise contradiction(item, f"its mask lies elsewhere, at {mask}")
        if label == "fake" and parts[0] == "partial" and mask is None:
            raise contradiction(item, f"the key '{key}' tells of a part, and there is no mask of it")
        part = self._part(item)
        split = "train" if part == "plus" else part
        return Labels(label, "real" if label == "real" else parts[1], mask, None, split, f"key:{parts[3].partition('.')[0]}")

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Part and the hub's split, which is also in each key."""
        return f"{self._part(item) or 'unknown'}/{split_of(item.uri) or str(column(item, 'key')).split('/')[1]}"

    def _part(self, item: ListedMember) -> Part | None:
        named = (_REPOSITORIES[word] for word in re.split(r"[/@]|--", item.uri) if word in _REPOSITORIES)
        return self.part or next(named, None)
