"""OpenFake: its Parquet on the hub (`OpenFake`), its label files (`OpenFakeCsv`), its sets out of distribution (`OpenFakeOod`).

Source: specs/detectors.md §1b, §1c, §12.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ray_app.archives import ListedMember
from ray_app.datasets.known_faults import known_faults
from ray_app.datasets.labels import Label, Labels, parse_label, prompt_group, real_of
from ray_app.datasets.layouts import base
from ray_app.errors import ConfigError

# Version 1 takes every label but "real" for a fake, version 2 every one but a few words for a real. Here both have the words that they are
# documented with, and no default. These are of version 2; `tampered` images are altered in part and come without masks: they are fit for
# detection, not for training masks.
_FAKE_WORDS = ("synthetic", "full_synthetic", "tampered")
_PUBLISHED: dict[str, dict[str, int]] = {
    "v1-2025-05": {"default/train": 635_138, "default/test": 30_000},
    "v1": {"default/train": 1_870_684, "default/test": 59_658},
    "v2": {"core/validation": 59_000, "core/test": 91_398, "reddit/test": 36_240},
}


class OpenFake(base.DatasetLayout):
    """Columns `image`, `prompt`, `label`, `model`, in version 2 also `type` and `release_date`. Images of one prompt are one group.

    `version`: which published numbers it should have, since the set has changed again and again; null = none to compare with. What
    names no model in the configuration `reddit` is of `reddit`, as for its authors (experiments/data/splits.py at af44d6d).
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
        return _labels(row, base.place_of(item), base.split_of(item.uri) or base.text(item.input, "split"), base.where(item))

    def subset(self, item: ListedMember, labels: Labels) -> str:
        """Configuration and split, as the shard's path names them."""
        return f"{base.config_of(item.uri) or 'default'}/{labels.split}"


class OpenFakeCsv(base.ListedLayout):
    """Label files: `filename,typ` (version 1; typ is the folder below the root, `real` or a generator), or version 2's split files
    `file_name,prompt,label,model,type,release_date`.

    `file`: the CSV; null where the CSV itself is the source (of version 1 with columns.uri: filename). `split`: what its rows are for.
    """

    file: str | None = None
    split: str | None = None

    def model_post_init(self, context: object) -> None:
        """Reads the file."""
        if self.file is None:
            return
        root, file = base.root_of(self.root, self.file), base.shown(self.file)
        for line, row in base.read_csv(self.file):
            path, where = row.get("file_name") or row.get("filename"), f"{file}, line {line}"
            if not path:
                raise ConfigError(f"{where}: no filename or file_name", hint=f"its columns: {', '.join(row)}")
            folder = f"{row['typ']}/" if "typ" in row and "/" not in path else ""
            self._enter(base.place_below(root, folder + path), self._labels_of_row(row, path, where), file)

    @property
    def published(self) -> Mapping[str, int]:
        """As many as the file has rows."""
        return {self.split or "all": len(self._listed)} if self.file else {}

    def labels(self, item: ListedMember) -> Labels | None:
        """Raises ConfigError as OpenFake."""
        return super().labels(item) if self.file else self._labels_of_row(item.input, base.place_of(item), base.where(item))

    def _labels_of_row(self, row: Mapping[str, Any], path: str, where: str) -> Labels:
        if "typ" not in row and "label" not in row:
            raise ConfigError(f"{where}: neither a column 'typ' nor 'label'", hint=f"its columns: {', '.join(row) or 'none'}")
        if "typ" not in row:
            return _labels(row, path, self.split, where)
        if (kind := base.text(row, "typ")) is None:
            raise ConfigError(f"{where}: no typ", hint="typ is `real` or a generator's name")
        is_real = kind.lower() == "real"
        return Labels("real" if is_real else "fake", "real" if is_real else kind, split=self.split)


class OpenFakeOod(base.DatasetLayout):
    """The sets of Imagen 3 and Stable Diffusion 2.1, a folder or zip each: all fake, all of one `generator`. About 1500 images each."""

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
    label: Label = "fake" if str(value).strip().lower() in _FAKE_WORDS else parse_label(value, f"{where}, label")
    if label == "fake" and (model is None or model.lower() == "real"):
        raise ConfigError(f"{where}: labelled {value!r}, but its model is {model!r}", hint="every fake names its model")
    generator = str(model) if label == "fake" else "real" if _is_doubtful(model, path) else real_of(model)
    return Labels(label, generator, None, prompt, split, prompt_group(prompt))


def _is_doubtful(model: str | None, path: str) -> bool:
    stem = path.rpartition("/")[2].partition(".")[0]
    first, last = known_faults()["openfake-v2-pexels"].numbers or (0, -1)
    return model is not None and model.lower() == "pexels" and stem.isdigit() and first <= int(stem) <= last
