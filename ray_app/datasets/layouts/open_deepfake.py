"""OpenDeepfake-Preview, the training set of the SigLIP2 detector (`OpenDeepfakePreview`): 0 is fake. Source: specs/detectors.md §6."""

from collections.abc import Mapping

from ray_app.archives import ListedMember
from ray_app.datasets.labels import Label, Labels
from ray_app.datasets.layouts.base import DatasetLayout, column, contradiction, split_of, where
from ray_app.errors import ConfigError

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
