"""Community Forensics as Parquet on the hub: thousands of generators (`CommunityForensics`). Source: specs/detectors.md §7a."""

from collections.abc import Mapping

from ray_app.archives import ListedMember
from ray_app.datasets.labels import Labels, prompt_group, real_of
from ray_app.datasets.layouts.base import DatasetLayout, class_label, contradiction, split_of, text


class CommunityForensics(DatasetLayout):
    """Columns `image_data`, `label` (0 real, 1 fake), `model_name`; in the evaluation set also `prompt`, `real_source` and others.

    Splits are the hub's: `Systematic+Manual`, `PublicEval`, `train` (Small), `CompEval`.
    """

    @property
    def published(self) -> Mapping[str, int]:
        """Only the evaluation set is published with an exact number; the others are 2.7 million and twice 278,000."""
        return {"CompEval": 51_836}

    def labels(self, item: ListedMember) -> Labels:
        """Raises ConfigError for a fake without a model's name."""
        label, model, prompt = class_label(item, "label"), text(item.input, "model_name"), text(item.input, "prompt")
        if label == "fake" and (model is None or model.lower() == "real"):
            raise contradiction(item, f"labelled fake, but its model_name is {model!r}")
        generator = real_of(text(item.input, "real_source") or model) if label == "real" else str(model)
        return Labels(label, generator, None, prompt, split_of(item.uri) or text(item.input, "split"), prompt_group(prompt))
