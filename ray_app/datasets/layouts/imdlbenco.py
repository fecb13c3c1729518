"""Altered images and their masks as IMDLBenCo keeps them (`ImdlbencoJson`, `ImdlbencoFolder`). Source: specs/localization.md §3.2."""

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import PrivateAttr

from ray_app.archives import ListedMember
from ray_app.datasets.labels import Labels
from ray_app.datasets.layouts.base import DatasetLayout, ListedLayout, is_no_image, place_below, place_of, read_json, root_of, shown
from ray_app.errors import ConfigError

_SHOWN = 5


class ImdlbencoJson(ListedLayout):
    """`file`: a list of [image, mask], the mask "Negative" for a real, both below `root`.

    `generator` names what altered the fakes; null = the JSON's own name.
    """

    file: str
    generator: str | None = None

    def model_post_init(self, context: object) -> None:
        """Reads the file."""
        entries, root, file = read_json(self.file), root_of(self.root, self.file), shown(self.file)
        name = file.rpartition("/")[2].partition(".")[0]
        for entry in entries if isinstance(entries, list) else [entries]:
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(one, str) and one for one in entry)):
                raise ConfigError(f"{file}: {str(entry)[:100]} is not [image, mask]", hint='a list of such pairs; "Negative" is no mask')
            image, mask = entry
            altered = Labels("fake", self.generator or name, place_below(root, mask))
            self._enter(place_below(root, image), Labels("real", f"real:{name}") if mask == "Negative" else altered, file)

    @property
    def published(self) -> Mapping[str, int]:
        """As many as the file lists."""
        return {"all": len(self._listed)}


class ImdlbencoFolder(DatasetLayout):
    """Folders `Tp` of altered images and `Gt` of their masks, side by side; all are fakes.

    IMDLBenCo pairs the two by their order, so that one stray file shifts every mask behind it. Here a mask has its image's name up to the
    ending, and `mask_suffix` behind it (`_gt`); where the names do not pair so, nothing is indexed. `generator` names what altered them.
    """

    generator: str = "manipulation"
    mask_suffix: str = ""
    _masks: dict[str, str] = PrivateAttr(default_factory=dict)

    def prepared(self, members: Iterable[ListedMember]) -> Self:
        """Pairs all images and masks. Raises ConfigError naming those without the other, and for masks in an archive."""
        images: dict[str, str] = {}
        masks: dict[str, str] = {}
        for item in members:
            folder, _, name = place_of(item).rpartition("/")
            parent, _, kind = folder.rpartition("/")
            if is_no_image(name) or kind not in ("Tp", "Gt"):
                continue
            if item.place is not None:
                raise ConfigError(f"{item.uri}: masks inside an archive cannot be referred to", hint="unpack it")
            stem = name.rpartition(".")[0].removesuffix(self.mask_suffix if kind == "Gt" else "")
            place = (images if kind == "Tp" else masks).setdefault(f"{parent}/{stem}", place_of(item))
            if place != place_of(item):
                raise ConfigError(f"{parent}/{kind}: {parent}/{stem} is there twice, as [{place}] and as [{place_of(item)}]")
        if not images:
            raise ConfigError("no image lies in a folder Tp", hint="the source holds folders Tp (images) and Gt (masks), side by side")
        if alone := sorted(images.keys() ^ masks.keys()):
            names = [f"{place} {'has no mask' if place in images else 'is a mask of no image'}" for place in alone[:_SHOWN]]
            raise ConfigError(
                f"Tp and Gt: {len(alone)} of {len(images | masks)} names do not pair: {'; '.join(names)}",
                hint="an image and its mask have one name up to the ending; --set arguments.mask_suffix=_gt",
            )
        prepared = self.model_copy()
        prepared._masks = {images[key]: masks[key] for key in images}
        return prepared

    def labels(self, item: ListedMember) -> Labels | None:
        """Images in Tp, as they were paired."""
        mask = self._masks.get(place_of(item))
        return None if mask is None else Labels("fake", self.generator, mask)
