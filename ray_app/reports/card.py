"""Format the table of `touchstone detectors list` (`zoo_table`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.detectors import DetectorCard, licences, weights
from ray_app.detectors.card import list_variants
from ray_app.reports import format as wording
from ray_app.reports.text import paragraph, table

# Upper bounds of each class in billions of multiply-adds per image, or per megapixel if the network
# keeps the size of images.
SPEED_CLASSES = {"fast": 5, "medium": 50, "slow": 500}
SLOWEST = "very slow"
SPEED_WORDS = (
    ", ".join(f"{name} < {limit}" for name, limit in SPEED_CLASSES.items())
    + f", {SLOWEST} above; in billions of multiply-adds per image, or per megapixel if the input is native"
)
_MAX_LICENCE_WIDTH = len("CC-BY-NC-SA-4.0")


@dataclass(frozen=True)
class ZooEntry:
    """A line of `touchstone detectors list`: a detector and its state on this machine.

    Attributes:
        card: The card of the detector, the YAML file that describes it.
        accepted: Whether the licence of the detector is accepted.
        has_weights: Whether the weights of the detector are on this machine.
        variants: Entries of the variants of the detector. A variant differs in a few keys of the
            card, and is used as `DETECTOR:VARIANT`.
    """

    card: DetectorCard
    accepted: bool
    has_weights: bool
    variants: Sequence["ZooEntry"] = ()

    def facts(self) -> dict[str, Any]:
        """Return the columns of `touchstone detectors list`, and the card, for `--json`."""
        size = self.card.size
        return {
            "name": self.card.name,
            "title": self.card.title,
            "family": self.card.family,
            "licence": self.card.licence,
            "terms": self.card.terms,
            "accepted": self.accepted,
            "parameters": size.parameters if size else None,
            "gmac": size.gmac if size else None,
            "speed": speed_class(self.card),
            "input": describe_input(self.card),
            "masks": self.card.masks,
            "weights": "here" if self.has_weights else "missing",
            "variants": [entry.facts() for entry in self.variants],
            "card": self.card.model_dump(mode="json"),
        }


def make_zoo_entry(card: DetectorCard) -> ZooEntry:
    """Return the entry of a detector, with its variants, in `touchstone detectors list`.

    The function looks up whether the licence is accepted and the weights are on this machine.
    `card` is the card of the detector, the YAML file that describes it.
    """
    return ZooEntry(
        card,
        licences.is_accepted(card.name, card.licence, card.terms),
        all(weights.find_local_file(part) for part in weights.list_parts(card)),
        tuple(map(make_zoo_entry, list_variants(card))),
    )


def zoo_table(entries: Sequence[ZooEntry], width: int) -> str:
    """Return the text of `touchstone detectors list`: a table, and a legend below it.

    The table has one line per detector and variant. The legend explains signs such as "!", a
    licence that has to be accepted first. If the table would be wider than `width`, the column
    `family` is left out. If it is still too wide, `input` is left out, too.
    """
    rows = [row for entry in entries for row in (_make_row(entry), *map(_make_row, entry.variants))]
    headers = ["name", "family", "licence", "", "size", "input", "speed", "mask", "weights"]
    left_out = []
    for column in ("family", "input"):
        if max(map(wording.columns, table(headers, rows))) > width:
            index = headers.index(column)
            for cells in (headers, *rows):
                del cells[index]
            left_out.append(column)
    lines = table(headers, rows, width, right={headers.index("size")})
    marks = (
        "! the licence has to be accepted first: touchstone detectors fetch NAME --accept-licence NAME. ✓ it was accepted. "
        "size: parameters in millions (M) or billions (G). :NAME is a variant, used as DETECTOR:NAME. "
        f"speed: {SPEED_WORDS}."
    )
    if left_out:
        marks += f" A wider terminal also shows {' and '.join(left_out)}."
    return "\n".join([*lines, "", *paragraph(marks, width)])


def describe_input(card: DetectorCard) -> str:
    """Describe the size of the images that a detector's network sees, such as "224 × 224".

    The result is "sides ≤ 1024" or "short side 256" if images are resized to that limit. It is
    "native", or "native ≤ 4 MP", if the network takes images in their own size.
    """
    shape, resize = card.preprocessing.shape, card.preprocessing.resize
    if shape:
        return f"{shape[1]} × {shape[0]}"
    if resize.mode == "thumbnail":
        return f"sides ≤ {resize.size}"
    if resize.mode == "short_side":
        return f"short side {resize.size}"
    limit = card.valid_range.max_megapixels
    return "native" + (f" ≤ {limit:g} MP" if limit else "")


def speed_class(card: DetectorCard) -> str | None:
    """Return the speed class of a detector: "fast", "medium", "slow", or "very slow".

    The class follows from the multiply-adds per image. The result is None if the card, the YAML
    file that describes the detector, does not state them.
    """
    if card.size is None:
        return None
    return next((name for name, limit in SPEED_CLASSES.items() if card.size.gmac < limit), SLOWEST)


def _make_row(entry: ZooEntry) -> list[str]:
    card = entry.card
    base, colon, variant = card.name.partition(":")
    mark = "" if card.terms == "permissive" else "✓" if entry.accepted else "!"
    return [
        f"  :{variant}" if colon else base,
        card.family,
        _truncate_licence(card.licence),
        mark,
        _format_parameters(card.size.parameters) if card.size else wording.NONE,
        describe_input(card),
        speed_class(card) or wording.NONE,
        "yes" if card.masks else wording.NONE,
        "here" if entry.has_weights else "missing",
    ]


def _truncate_licence(licence: str) -> str:
    """Cut a licence to its start, which is its name; `detectors show` has the full text."""
    return (
        licence
        if len(licence) <= _MAX_LICENCE_WIDTH
        else licence[: _MAX_LICENCE_WIDTH - 1].rstrip(" (,;") + "…"
    )


def _format_parameters(parameters: int) -> str:
    for unit, size in {"G": 1e9, "M": 1e6, "k": 1e3}.items():
        if parameters >= size:
            return f"{parameters / size:.{1 if parameters < 10 * size else 0}f} {unit}"
    return str(parameters)
