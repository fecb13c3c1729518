"""A detector's card as plain text (`card_page`), and the detectors side by side, one line each (`zoo_table`)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ray_app.detectors import DetectorCard, Preprocessing, licences
from ray_app.detectors.card import Architecture, Output, ValidRange, Weights
from ray_app.detectors.card_sections import FACTS, FormulaScore, Fragility, GoldenScore, TrainingData
from ray_app.reports import format as wording
from ray_app.reports.text import paragraph, table

# Billions of multiply-adds per image, or per megapixel where images keep their size, below which a detector is of that class.
SPEED_CLASSES = {"fast": 5, "medium": 50, "slow": 500}
SLOWEST = "very slow"
SPEED_WORDS = (
    ", ".join(f"{name} < {most}" for name, most in SPEED_CLASSES.items())
    + f", {SLOWEST} from there on; in billions of multiply-adds per image, per megapixel where the input is native"
)
_LONGEST_LICENCE = len("CC-BY-NC-SA-4.0")
_TIED = "\u00a0"  # a space at which no line is broken
Line = tuple[str, str]
_LABEL = 14
_RESIZE_WORDS = {
    "none": "the image's own size is kept",
    "squash": "squash to {size} × {size} px, whatever the aspect",
    "short_side": "short side to {size} px, aspect kept",
    "thumbnail": "thumbnail: shrunk to sides of at most {size} px, never enlarged",
}
_RESAMPLERS = {"pillow": "Pillow's", "torch": "torchvision's on uint8, with antialias", "opencv": "OpenCV's, without antialias"}
_PADS = {"black": "black", "mirror": "its own mirror image", "corner": "black, itself in the upper left corner"}


@dataclass(frozen=True)
class ZooEntry:
    """A detector as it stands on this machine: whether its terms are accepted and its weights are here; its variants likewise."""

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


@dataclass(frozen=True)
class Here:
    """What holds on this machine: whether the terms were accepted, and where each file of weights lies (None = missing), by uri."""

    accepted: bool
    files: Mapping[str, Path | None]


def zoo_table(entries: Sequence[ZooEntry], width: int) -> str:
    """One line per detector, its variants below it, and what the marks mean at the end."""
    rows = [row for entry in entries for row in (_row(entry), *map(_row, entry.variants))]
    heads = ["name", "family", "licence", "size", "input", "speed", "mask", "weights"]
    lines = table(heads, rows, width, right={3}, wrap={1, 2})
    marks = (
        "! the licence has to be accepted first: touchstone detectors fetch NAME --accept-licence NAME. ✓ it was accepted. "
        "size: parameters in millions (M) or billions (G). :NAME is a variant, used as DETECTOR:NAME. "
        f"speed: {SPEED_WORDS}."
    )
    return "\n".join([*lines, "", *paragraph(marks, width)]).replace(_TIED, " ")


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


def card_page(card: DetectorCard, here: Here, width: int) -> str:
    """The card as sections of labelled lines and a table of figures, in at most `width` columns but for words that are longer."""
    sections: list[tuple[str, list[str]]] = [
        ("\n".join(paragraph(card.title, width)), labelled(_summary(card), width)),
        ("Licence", labelled(_licence(card, here), width)),
        ("Network", labelled(_network(card), width)),
        ("Preprocessing", labelled(preprocessing_lines(card.preprocessing), width)),
        ("Weights", labelled(_weights(card.weights, card, here), width)),
        ("Backbone", labelled(_backbone(card, here), width)),
        ("What the output means", labelled(_output(card), width)),
        ("Valid range", labelled(_valid_range(card.valid_range), width)),
        ("Fragility", _fragility(card.fragility, width)),
        ("Blind to", [line for said in card.blind_to for line in _hung("- ", said, width)]),
        ("Training data", labelled(_training(card.training_data), width)),
        ("Published figures", _figures(card, width)),
        ("Golden scores", _golden(card, width)),
        ("Variants", _variants(card, width)),
        ("Notes", [line for note in card.notes for line in _hung("- ", note, width)]),
    ]
    blocks = [[heading, *(f"  {line}".rstrip() for line in lines)] for heading, lines in sections if lines]
    return "\n\n".join([card.name, *("\n".join(block) for block in blocks)])


def speed_class(card: DetectorCard) -> str | None:
    """How fast, by the multiply-adds that its card states; None where it states none."""
    if card.size is None:
        return None
    return next((name for name, most in SPEED_CLASSES.items() if card.size.gmac < most), SLOWEST)


def preprocessing_lines(preprocessing: Preprocessing) -> list[Line]:
    """What happens to an image before the network sees it, step by step."""
    resize = preprocessing.resize
    first = f"first a thumbnail of at most {resize.thumbnail_first} px; then " if resize.thumbnail_first else ""
    lines = [("resize", first + _RESIZE_WORDS[resize.mode].format(size=resize.size))]
    if resize.mode != "none":
        lines.append(("filter", f"{preprocessing.filter}, {_RESAMPLERS[preprocessing.resampler]}"))
    if preprocessing.center_crop:
        side = preprocessing.center_crop
        lines.append(("crop", f"the centre {side} × {side} px; a smaller image is filled up with {_PADS[preprocessing.pad]}"))
        if preprocessing.crop_rounding == "down":
            lines.append(("crop's corner", "rounded down, as albumentations does"))
    mean, std = (", ".join(map(repr, values)) for values in (preprocessing.mean, preprocessing.std))
    lines.append(("normalised", f"(value / 255 − mean) / std; mean {mean}, std {std}"))
    return lines


def _row(entry: ZooEntry) -> list[str]:
    card = entry.card
    base, colon, variant = card.name.partition(":")
    mark = "" if card.terms == "permissive" else f"{_TIED}✓" if entry.accepted else f"{_TIED}!"
    return [
        f"  :{variant}" if colon else base,
        card.family,
        _beginning(card.licence) + mark,
        _millions(card.size.parameters) if card.size else wording.NONE,
        input_words(card),
        speed_class(card) or wording.NONE,
        "yes" if card.masks else wording.NONE,
        "here" if entry.here else "missing",
    ]


def _beginning(licence: str) -> str:
    """A licence begins with its name; `show` has the rest."""
    return licence if len(licence) <= _LONGEST_LICENCE else licence[: _LONGEST_LICENCE - 1].rstrip(" (,;") + "…"


def _millions(parameters: int) -> str:
    for unit, size in {"G": 1e9, "M": 1e6, "k": 1e3}.items():
        if parameters >= size:
            return f"{parameters / size:.{1 if parameters < 10 * size else 0}f} {unit}"
    return str(parameters)


def _summary(card: DetectorCard) -> list[Line]:
    lines = [("source", card.source), ("citation", card.citation)]
    if card.demonstration:
        lines.append(("demonstration", "it shows that the machinery works; do not act on its verdicts"))
    return lines


def _licence(card: DetectorCard, here: Here) -> list[Line]:
    lines = [("licence", card.licence), ("terms", f"{card.terms} ({licences.TERMS_IN_WORDS[card.terms]})")]
    if card.terms != "permissive":
        command = f"touchstone detectors fetch {card.name} --accept-licence {card.name.partition(':')[0]}"
        lines.append(("accepted", "yes" if here.accepted else f"no: {command}"))
    return [*lines, ("note", card.licence_note or "")]


def _network(card: DetectorCard) -> list[Line]:
    lines = [("family", card.family), *_architecture(card.architecture)]
    if card.size:
        per = "image" if card.preprocessing.shape else "megapixel"
        lines.append(("size", f"{card.size.parameters:,} parameters in {card.size.tensors:,} tensors"))
        lines.append(("speed", f"{speed_class(card)}: {card.size.gmac:g} billion multiply-adds per {per}"))
    if card.masks:
        lines.append(("masks", "it also says where: one probability per pixel that it was altered"))
    if card.own_pool:
        lines.append(("own pool", "too large to share a process with other detectors"))
    if process := card.process:
        lines += [("runs in", f"a process of its own: {process.python}, in {process.folder}")]
        lines += [("time limits", f"{process.limit_s:g} s for a batch, {process.start_limit_s:g} s to start")]
        measured = [
            f"{process.peak_bytes:,} bytes" if process.peak_bytes else "",
            f"{process.seconds:g} s a megapixel" if process.seconds else "",
        ]
        lines += [("measured", ", ".join(filter(None, measured)))]
    precision = "fp32 always" if card.precision == "fp32" else "auto: bf16 where the device has it, else fp32"
    return [*lines, ("precision", precision), ("", card.precision_note or "")]


def _backbone(card: DetectorCard, here: Here) -> list[Line]:
    backbone = card.backbone
    if backbone is None:
        return []
    about = [("name", f"{backbone.name}: {backbone.title}"), ("", "runs once for all detectors that name it with the same preprocessing")]
    terms = [("licence", backbone.licence), ("note", backbone.licence_note or ""), ("source", backbone.source)]
    return [*about, *_architecture(backbone.architecture), *_weights(backbone.weights, card, here), *terms]


def _architecture(architecture: Architecture) -> list[Line]:
    given = architecture.model_dump(mode="json")["arguments"]
    arguments = yaml.safe_dump(given, default_flow_style=True, sort_keys=False, allow_unicode=True, width=2**20).strip() if given else ""
    return [("architecture", architecture.name), ("arguments", arguments)]


def _weights(weights: Weights, card: DetectorCard, here: Here) -> list[Line]:
    path = here.files.get(weights.uri)
    lines = [
        ("uri", weights.uri),
        ("here", str(path) if path else "missing"),
        ("sha256", weights.sha256 or f"not known: {weights.unverified}"),
        ("format", weights.format),
        ("keys", _keys(weights)),
        ("config", f"{weights.config} beside it must not contradict this card" if weights.config else ""),
    ]
    if weights.fitted:
        lines.append(("to fit", f"nobody publishes them: touchstone detectors fit {card.name} LABELS --install"))
    lines += [("beside it", f"{name}, sha256 {digest or 'not known'}") for name, digest in weights.beside.items()]
    return [*lines, ("to obtain", f"{weights.obtain} touchstone detectors fetch {card.name}" if weights.obtain else "")]


def _keys(weights: Weights) -> str:
    steps = []
    if weights.unwrap:
        steps.append(f"the state dict may lie under {', '.join([*weights.unwrap, *(f'beside {name}' for name in weights.keep)])}")
    if weights.select:
        steps.append(f"only keys that begin with {weights.select}")
    if weights.strip_prefixes:
        steps.append(f"prefixes taken off: {', '.join(weights.strip_prefixes)}")
    if weights.prefix:
        steps.append(f"put before each: {weights.prefix}")
    return "; ".join(steps)


def _output(card: DetectorCard) -> list[Line]:
    lines = [("score", _direction(card.output)), ("labels", ", ".join(card.output.labels))]
    if card.calibration is None:
        return [*lines, ("calibration", "none: the probability is the plain sigmoid of the score")]
    return [*lines, ("calibration", f"calibrated {card.calibration}")]


def _direction(output: Output) -> str:
    if output.sign is not None:
        towards = "positive is fake" if output.sign == 1 else "positive is real, so the score is its negative"
        return f"log-odds of fake, from a single logit (sign {output.sign}): {towards}; its sigmoid is P(fake)"
    fake = f"label {output.fake_label}" if output.fake_label is not None else f"index {output.fake_index}"
    return f"log-odds of fake, from two logits: the one of {fake} less the other; its sigmoid is P(fake)"


def _valid_range(allowed: ValidRange) -> list[Line]:
    lines = [("short side", f"at least {allowed.min_side_px} px")]
    if allowed.max_side_px is not None:
        lines.append(("long side", f"at most {allowed.max_side_px} px"))
    if allowed.max_megapixels is not None:
        lines.append(("area", f"at most {allowed.max_megapixels:g} megapixels; beyond that no score"))
    return [*lines, ("outside", "the verdict is abstain"), ("note", allowed.note or "")]


def _fragility(known: Fragility, width: int) -> list[str]:
    """Beyond which facts of an image the verdict abstains, and what perturbations leave of the detector."""
    lines = []
    for name, bound in known.abstains.items():
        ends = [f"{word} {value:g}" for word, value in bound.facts.items()]
        lines.append(("abstains", f"where {FACTS[name][1]} is {' or '.join(ends)}" + (f" ({bound.what})" if bound.what else "")))
    shown = labelled(lines, width)
    if not known.measured:
        return shown
    marks = _marks(figure.note for figure in known.measured)
    rows = []
    for figure in known.measured:
        images = " + ".join(f"{count:,}" for count in (figure.n_real, figure.n_fake) if count is not None)
        at = wording.NONE if figure.threshold is None else f"{figure.threshold:g}"
        figures = [wording.NONE if value is None else f"{value:.3f}" for value in (figure.auc, figure.fpr, figure.tpr)]
        steps = f" ({figure.steps})" if figure.steps else ""
        what = (figure.perturbation or "as they are") + steps + marks.get(figure.note or "", "")
        rows.append([what, *figures, at, images, figure.source])
    heads = ["perturbed", "AUC", "FPR", "TPR", "at", "real + fake", "source"]
    shown += table(heads, rows, width - 2, right={1, 2, 3, 4, 5}, wrap={0, 6})
    return shown + _footnotes(marks, width)


def _training(data: TrainingData) -> list[Line]:
    named = ", ".join(data.generators)
    rest = "no other" if data.complete else "others may have been" if named else "not listed: whether a generator was seen is unknown"
    generators = ("generators", f"{named}; {rest}" if named else rest)
    sources = ("real images of", ", ".join(data.sources))
    return [
        ("name", data.name),
        ("images", data.images or ""),
        generators,
        sources,
        ("licence", data.licence),
        ("source", data.source or ""),
    ]


def _figures(card: DetectorCard, width: int) -> list[str]:
    if not card.published:
        return []
    marks = _marks(figure.note for figure in card.published)
    rows, above = [], ""
    for figure in card.published:
        count = f"{figure.n:,}" if figure.n is not None else ""
        shown = figure.set if figure.set != above else "″"
        value = f"{figure.value:g}{marks.get(figure.note or '', '')}"
        rows.append([shown, figure.metric, value, count, "yes" if figure.verified else "no", figure.source])
        above = figure.set
    lines = table(["set", "metric", "value", "n", "verified", "source"], rows, width - 2, right={3}, wrap={0, 1, 5})
    lines += _footnotes(marks, width)
    return [*lines, *_hung("", "″: the set above. verified: recomputed by us; the others are what their source says.", width)]


def _golden(card: DetectorCard, width: int) -> list[str]:
    if not card.golden:
        return []
    published = [golden for golden in card.golden if isinstance(golden, GoldenScore)]
    rows = [[golden.name, f"{golden.probability:g}", f"± {golden.tolerance:g}", golden.sha256] for golden in published]
    lines = table(["image", "P(fake)", "within", "sha256"], rows, width - 2) if rows else []
    for golden in card.golden:
        if isinstance(golden, FormulaScore):
            made = f"made by formula, {golden.width} × {golden.height}: log-odds {golden.logit:g} ± {golden.tolerance:g} in fp32"
            lines += _hung("- ", made, width)
    for source in dict.fromkeys(golden.source for golden in card.golden):
        lines += _hung("source: ", source, width)
    return [*lines, *_hung("", f"to compare: touchstone detectors verify {card.name}{' --images FOLDER' * bool(rows)}", width)]


def _variants(card: DetectorCard, width: int) -> list[str]:
    from ray_app.reports.html import settings  # Jinja is not needed to list detectors

    lines = []
    for name, change in card.variants.items():
        lines.append(f"{card.name}:{name} differs in")
        lines += [line for key, value in settings(change) for line in _hung(f"  {key}: ", value, width)]
    return lines


def _marks(notes: Iterable[str | None]) -> dict[str, str]:
    """The mark of each note, in order."""
    return {note: f" [{place}]" for place, note in enumerate(dict.fromkeys(filter(None, notes)), 1)}


def _footnotes(marks: Mapping[str, str], width: int) -> list[str]:
    return [line for note, mark in marks.items() for line in _hung(f"{mark.strip()} ", note, width)]


def labelled(lines: Iterable[Line], width: int) -> list[str]:
    """The lines that have a text, the texts in a column of their own."""
    return [line for label, text in lines if text for line in _hung(f"{label:{_LABEL}}" + " " * (len(label) >= _LABEL), text, width)]


def _hung(lead: str, text: str, width: int) -> list[str]:
    indent = min(len(lead), _LABEL + 1)
    first, *rest = paragraph(text, width - 2 - len(lead))
    return [lead + first, *(" " * indent + line for line in rest)]
