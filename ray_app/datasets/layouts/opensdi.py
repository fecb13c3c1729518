"""OpenSDI (OpenSDID): generated and locally altered images with masks, Parquet on the hub (`OpenSdi`). Source: specs/localization.md §2."""

import re
from collections.abc import Mapping
from typing import Literal

from ray_app.archives import ListedMember
from ray_app.datasets.labels import Labels
from ray_app.datasets.layouts.base import DatasetLayout, class_label, column, contradiction, split_of, text
from ray_app.datasets.masks import may_name

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
