"""Labels in columns of any source: Parquet, CSV, JSON lines, or the sidecars of a WebDataset (fields of `.json`, and `cls`, `txt`)."""

from ray_app.archives import Listed
from ray_app.datasets.labels import Labels, prompt_group, real_of
from ray_app.datasets.layouts.beside import place_below, shown
from ray_app.datasets.layouts.layout import Layout, class_label, contradiction, text, with_sidecar
from ray_app.storage import strip_secrets


class LabelColumns(Layout):
    """Which column says what. Only the label must be there; images without a `group` of their own are grouped by their prompts.

    `mask`: images in the table itself, or their uris; relative ones are below `root`. A real's mask is not looked at. Without a column
    of generators all fakes are of `unknown`, without one of groups and prompts every image is for itself.
    """

    label: str = "label"
    generator: str = "generator"
    mask: str = "mask"
    prompt: str = "prompt"
    split: str = "split"
    group: str = "group"
    root: str | None = None

    def labels(self, item: Listed) -> Labels:
        """From the columns; a ClassLabel's number by its name."""
        item = with_sidecar(item)
        label = class_label(item, self.label)
        generator, prompt = text(item.input, self.generator), text(item.input, self.prompt)
        if label == "fake" and generator is not None and (generator == "real" or generator.startswith("real:")):
            raise contradiction(item, f"labelled fake, but its {self.generator} is '{generator}'")
        return Labels(
            label,
            real_of(generator) if label == "real" else generator or "unknown",
            self._mask(item) if label == "fake" else None,
            prompt,
            text(item.input, self.split),
            text(item.input, self.group) or prompt_group(prompt),
        )

    def _mask(self, item: Listed) -> str | None:
        place = text(item.input, f"{self.mask}_uri") or text(item.input, self.mask)
        if place is None or place.startswith("/"):
            return place
        if strip_secrets(place) != place:
            raise contradiction(item, f"its mask {strip_secrets(place)} is named with a key, and secrets are not kept")
        if "://" in place:
            return place
        if self.root is None:
            raise contradiction(item, f"the mask '{place}' is a relative path; arguments.root says below which folder it lies")
        return place_below(shown(self.root), place)
