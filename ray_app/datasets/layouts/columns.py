"""Labels in columns of any source: Parquet, CSV, JSON lines, or the sidecars of a WebDataset (fields of `.json`, and `cls`, `txt`)."""

from ray_app.archives import Listed
from ray_app.archives.members import Described
from ray_app.datasets.labels import Labels, prompt_group, real_of
from ray_app.datasets.layouts.beside import place_below, shown
from ray_app.datasets.layouts.layout import Layout, class_label, contradiction, text, with_sidecar
from ray_app.datasets.masks import may_lead, may_name
from ray_app.storage import strip_secrets
from ray_app.storage.locations import scheme_of


class LabelColumns(Layout):
    """Which column says what. Only the label must be there; images without a `group` of their own are grouped by their prompts.

    `mask`: images in the table itself, or, in a list or with `root`, their uris; relative ones are below `root`, and so is every local one
    that an archive names. A real's mask is not looked at. Without a column of generators all fakes are of `unknown`, without one of groups
    and prompts every image is for itself.
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
        if place is None:
            return None
        if strip_secrets(place) != place:
            raise contradiction(item, f"its mask {strip_secrets(place)} is named with a key, and secrets are not kept")
        if "://" not in place and not place.startswith("/"):
            if self.root is None:
                raise contradiction(item, f"the mask '{place}' is a relative path; arguments.root says below which folder it lies")
            place = place_below(shown(self.root), place)
        # A root of the user's says that masks lie outside the archive; local ones lie below it.
        root = None if self.root is None else shown(self.root)
        is_told = root is not None and (shown(place).startswith(root + "/") or (scheme_of(place) != "file" and may_lead(root, place)))
        is_of_list = not isinstance(item, Described)  # a file that no list names has its columns from a table beside it
        if not (is_told or (is_of_list and may_name(item.uri, item.member, place))):
            raise contradiction(item, f"an archive may not say that its mask lies at {place}, unless arguments.root does")
        return place
