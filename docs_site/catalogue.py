"""Generate the pages of everything that is shipped: enter at `pages`."""

from typing import Any

from docs_site.markdown import code, docstring, prose, table
from ray_app.config import load_yaml, named_configs
from ray_app.datasets.known_faults import find_faults
from ray_app.datasets.layouts import LAYOUTS, DatasetLayout
from ray_app.datasets.layouts.rules import PublishedLayout
from ray_app.detectors import DetectorCard, list_cards, list_variants
from ray_app.ensembles import EnsembleCard, load_ensemble_card
from ray_app.evaluation.protocols import Protocol, load_protocol
from ray_app.training.config import TrainConfig
from ray_app.transforms.perturbations import PerturbationList


def pages() -> dict[str, str]:
    """Return the six pages of shipped detectors, ensembles, recipes, and other files, by name."""
    return {
        "detectors": _page(
            "Detectors",
            "This page lists every shipped detector, as its card describes it.",
            map(_detector, list_cards()),
        ),
        "ensembles": _page(
            "Ensembles",
            "This page lists every shipped ensemble.",
            map(_ensemble, map(load_ensemble_card, named_configs("ensembles"))),
        ),
        "recipes": _page(
            "Recipes",
            "This page lists every recipe of `touchstone train`.",
            (_recipe(load_yaml(path, TrainConfig)) for path in named_configs("train").values()),
        ),
        "protocols": _page(
            "Protocols",
            "This page lists every protocol of `touchstone evaluate`.",
            map(_protocol, map(load_protocol, named_configs("evaluate"))),
        ),
        "layouts": _page(
            "Layouts of data sets",
            "This page lists every layout of `touchstone data index` with its `arguments`: first general layouts, then published data sets.",
            [
                *(_layout(name, kind) for name, kind in LAYOUTS.items()),
                *(
                    _published(load_yaml(path, PublishedLayout))
                    for path in named_configs("layouts").values()
                ),
            ],
        ),
        "perturbations": _page(
            "Lists of perturbations",
            "This page lists every list of `--perturb`, with the names of its views.",
            (
                _perturbations(load_yaml(path, PerturbationList))
                for path in named_configs("perturb").values()
            ),
        ),
    }


def _page(title: str, introduction: str, entries: Any) -> str:
    return "\n\n".join([f"# {title}\n\n{introduction}\n", *entries])


def _entry(name: str, facts: dict[str, str], *more: str) -> str:
    head, *rows = [[label, value] for label, value in facts.items() if value]
    return "\n\n".join([f"## {name}", table(head, rows), *filter(None, more)])


def _notes(notes: Any) -> str:
    return "\n".join(f"- {prose(' '.join(note.split()))}" for note in notes) + "\n" if notes else ""


def _detector(card: DetectorCard) -> str:
    metrics = [
        [
            prose(metric.set),
            prose(metric.metric),
            f"{metric.value:g}",
            f"{metric.n:,}" if metric.n else "",
            "yes" if metric.verified else "",
            prose(metric.source),
        ]
        for metric in card.published
    ]
    size = card.size and f"{card.size.parameters:,} parameters, {card.size.gmac:g} GMAC per image"
    return _entry(
        card.name,
        {
            "title": prose(card.title),
            "licence": prose(f"{card.licence} ({card.terms.replace('-', ' ')})"),
            "about the licence": prose(card.licence_note or ""),
            "input": prose(_input(card)),
            "network": prose(
                f"{card.family} {card.architecture.name}" + (f", {size}" if size else "")
            ),
            "weights": code(card.weights.uri)
            + (f", SHA-256 {code(card.weights.sha256)}" if card.weights.sha256 else ""),
            "how to get them": prose(
                card.weights.obtain
                or ("fitted by `touchstone detectors fit`" if card.weights.fitted else "")
            ),
            "trained on": prose(f"{card.training_data.name} ({card.training_data.licence})"),
            "calibrated": "yes" if card.calibration else "no",
            "demonstration": "yes: not for decisions about any image" if card.demonstration else "",
            "cannot see": prose(" ".join(card.blind_to)),
            "source": prose(f"{card.citation} {card.source}"),
            "variants": ", ".join(_variant(card, variant) for variant in list_variants(card)),
        },
        table(["set", "metric", "value", "images", "recomputed here", "source"], metrics)
        if metrics
        else "",
        _notes(card.notes),
    )


def _variant(card: DetectorCard, variant: DetectorCard) -> str:
    """Return the name of a variant, and its weight file if it differs from the card's."""
    weights = variant.weights
    return code(variant.name) + (
        f" ({code(weights.uri)}, SHA-256 {code(weights.sha256 or 'unknown')})"
        if weights.uri != card.weights.uri
        else ""
    )


def _input(card: DetectorCard) -> str:
    """Describe the size of the network's input, and the images that the card is valid for."""
    shape, valid = card.preprocessing.shape, card.valid_range
    size = f"{shape[1]} × {shape[0]} pixels" if shape else "the image's own size"
    bounds = [f"shorter side at least {valid.min_side_px} px"] if valid.min_side_px > 1 else []
    bounds += [f"longer side at most {valid.max_side_px} px"] if valid.max_side_px else []
    bounds += [f"at most {valid.max_megapixels:g} megapixels"] if valid.max_megapixels else []
    return "; ".join([size, *bounds])


def _ensemble(card: EnsembleCard) -> str:
    limits = card.thresholds
    return _entry(
        card.name,
        {
            "title": prose(card.title),
            "detectors": ", ".join(
                f"[{member.detector}](detectors.md#{member.detector.partition(':')[0].replace('.', '')})"
                for member in card.members
            ),
            "rule": code(card.rule),
            "verdicts": f"real below {limits.real_below:g}, fake above {limits.fake_above:g} (log-odds)",
            "calibrated": "yes" if card.calibration else "no",
        },
        docstring(card.notes) if card.notes else "",
    )


def _recipe(recipe: TrainConfig) -> str:
    return _entry(
        recipe.name,
        {
            "title": prose(recipe.title),
            "method": code(recipe.method),
            "detector": code(recipe.detector),
            "source": prose(recipe.source),
            "data": prose(f"{recipe.data.name} ({recipe.data.licence})"),
        },
        _notes(recipe.departures),
    )


def _protocol(protocol: Protocol) -> str:
    faults = find_faults(
        {"layout": protocol.layout, "at": protocol.sources, "arguments": protocol.arguments}
    )
    return _entry(
        protocol.name,
        {
            "title": prose(protocol.title),
            "measures": prose(" ".join(protocol.what.split())),
            "source": prose(protocol.source),
            "layout": code(protocol.layout or ""),
            "averages": prose(" ".join(protocol.averages.split())),
            "commands": " ".join(map(code, protocol.commands)),
        },
        _notes(
            [
                *protocol.notes,
                *(
                    f"A documented fault of the data: {fault.what} ({fault.source})."
                    for fault in faults
                ),
            ]
        ),
    )


def _layout(name: str, kind: type[DatasetLayout]) -> str:
    arguments = [
        f"`{key}` (required)"
        if field.is_required()
        else f"`{key}={'null' if field.default is None else field.default}`"
        for key, field in kind.model_fields.items()
    ]
    return f"## {name}\n\n{docstring(kind.__doc__)}\n{prose('Defaults: ' + ', '.join(arguments)) if arguments else ''}\n"


def _published(layout: PublishedLayout) -> str:
    facts = {
        "title": prose(layout.title),
        "layout": f"[{layout.layout}](#{layout.layout})",
        "source": prose(layout.source),
    }
    return _entry(layout.name, facts, prose(layout.note))


def _perturbations(perturbations: PerturbationList) -> str:
    views = [view.name for view in perturbations.perturbations]
    views += [family.name for family in perturbations.families]
    absent = [f"`{view.name}`: {view.why}" for view in perturbations.absent]
    facts = {
        "source": prose(perturbations.source),
        "views": ", ".join(map(code, views)),
        "not included": prose("; ".join(absent)),
    }
    return _entry(perturbations.name, facts, prose(perturbations.note))
