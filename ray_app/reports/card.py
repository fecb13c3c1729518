"""The detectors side by side, one line each (`zoo_table`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.detectors import DetectorCard, licences, weights
from ray_app.detectors.card import variants_of
from ray_app.reports import format as wording
from ray_app.reports.text import paragraph, table

# Billions of multiply-adds per image, or per megapixel where images keep their size, below which a
# detector is of that class.
SPEED_CLASSES = {"fast": 5, "medium": 50, "slow": 500}
SLOWEST = "very slow"
SPEED_WORDS = (
    ", ".join(f"{name} < {most}" for name, most in SPEED_CLASSES.items())
    + f", {SLOWEST} from there on; in billions of multiply-adds per image, per megapixel where the input is native"
)
_LONGEST_LICENCE = len("CC-BY-NC-SA-4.0")


@dataclass(frozen=True)
class ZooEntry:
    """A detector as it stands on this machine: whether its terms are accepted and its weights are
    here; its variants likewise.
    """

    card: DetectorCard
    accepted: bool
    here: bool
    variants: Sequence["ZooEntry"] = ()

    def facts(self) -> dict[str, Any]:
        """All of it for machines: the columns of the table under their names, and the whole card."""
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
            "input": input_words(self.card),
            "masks": self.card.masks,
            "weights": "here" if self.here else "missing",
            "variants": [entry.facts() for entry in self.variants],
            "card": self.card.model_dump(mode="json"),
        }


def make_zoo_entry(card: DetectorCard) -> ZooEntry:
    """Return the entry of a card on this machine, with its variants."""
    return ZooEntry(
        card,
        licences.is_accepted(card.name, card.licence, card.terms),
        all(weights.located(part) for part in weights.parts_of(card)),
        tuple(map(make_zoo_entry, variants_of(card))),
    )


def zoo_table(entries: Sequence[ZooEntry], width: int) -> str:
    """Return one line per detector, its variants below it, and the meaning of the marks at the end.

    If the table is too wide, it leaves out the family and then the input.
    """
    rows = [row for entry in entries for row in (_row(entry), *map(_row, entry.variants))]
    heads = ["name", "family", "licence", "", "size", "input", "speed", "mask", "weights"]
    left_out = []
    for column in ("family", "input"):
        if max(map(wording.columns, table(heads, rows))) > width:
            at = heads.index(column)
            for cells in (heads, *rows):
                del cells[at]
            left_out.append(column)
    lines = table(heads, rows, width, right={heads.index("size")})
    marks = (
        "! the licence has to be accepted first: touchstone detectors fetch NAME --accept-licence NAME. ✓ it was accepted. "
        "size: parameters in millions (M) or billions (G). :NAME is a variant, used as DETECTOR:NAME. "
        f"speed: {SPEED_WORDS}."
    )
    if left_out:
        marks += f" A wider terminal also shows {' and '.join(left_out)}."
    return "\n".join([*lines, "", *paragraph(marks, width)])


def input_words(card: DetectorCard) -> str:
    """The pixels that the network sees: a fixed size, or the image's own up to a limit."""
    shape, resize = card.preprocessing.shape, card.preprocessing.resize
    if shape:
        return f"{shape[1]} × {shape[0]}"
    if resize.mode == "thumbnail":
        return f"sides ≤ {resize.size}"
    if resize.mode == "short_side":
        return f"short side {resize.size}"
    most = card.valid_range.max_megapixels
    return "native" + (f" ≤ {most:g} MP" if most else "")


def speed_class(card: DetectorCard) -> str | None:
    """How fast, by the multiply-adds that its card states; None where it states none."""
    if card.size is None:
        return None
    return next((name for name, most in SPEED_CLASSES.items() if card.size.gmac < most), SLOWEST)


def _row(entry: ZooEntry) -> list[str]:
    card = entry.card
    base, colon, variant = card.name.partition(":")
    mark = "" if card.terms == "permissive" else "✓" if entry.accepted else "!"
    return [
        f"  :{variant}" if colon else base,
        card.family,
        _beginning(card.licence),
        mark,
        _millions(card.size.parameters) if card.size else wording.NONE,
        input_words(card),
        speed_class(card) or wording.NONE,
        "yes" if card.masks else wording.NONE,
        "here" if entry.here else "missing",
    ]


def _beginning(licence: str) -> str:
    """A licence begins with its name; `show` has the rest."""
    return (
        licence
        if len(licence) <= _LONGEST_LICENCE
        else licence[: _LONGEST_LICENCE - 1].rstrip(" (,;") + "…"
    )


def _millions(parameters: int) -> str:
    for unit, size in {"G": 1e9, "M": 1e6, "k": 1e3}.items():
        if parameters >= size:
            return f"{parameters / size:.{1 if parameters < 10 * size else 0}f} {unit}"
    return str(parameters)
