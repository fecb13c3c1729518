"""What is shipped by name: detectors, ensembles, recipes, protocols, layouts, perturbations
(`pages`).
"""

from typing import Any

from docs_site.markdown import code, docstring, prose, table
from ray_app.config import load_yaml, named_configs
from ray_app.datasets.known_faults import faults_of
from ray_app.datasets.layouts import LAYOUTS, DatasetLayout
from ray_app.datasets.layouts.rules import PublishedLayout
from ray_app.detectors import DetectorCard, list_cards, variants_of
from ray_app.ensembles import EnsembleCard, load_ensemble_card
from ray_app.evaluation.protocols import Protocol, load_protocol
from ray_app.training.config import TrainConfig
from ray_app.transforms.perturbations import PerturbationList


def pages() -> dict[str, str]:
    """Six pages, by name."""
    return {
        "detectors": _page(
            "Detectors",
            "Every detector that is shipped, as its card states it.",
            map(_detector, list_cards()),
        ),
        "ensembles": _page(
            "Ensembles",
            "Every ensemble that is shipped.",
            map(_ensemble, map(load_ensemble_card, named_configs("ensembles"))),
        ),
        "recipes": _page(
            "Recipes",
            "Every recipe of `touchstone train`.",
            (_recipe(load_yaml(path, TrainConfig)) for path in named_configs("train").values()),
        ),
        "protocols": _page(
            "Protocols",
            "Every protocol of `touchstone evaluate`.",
            map(_protocol, map(load_protocol, named_configs("evaluate"))),
        ),
        "layouts": _page(
            "Layouts of data sets",
            "Every layout of `touchstone data index`, with its `arguments`: those of code, then published sets.",
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
            "Every list of `--perturb`, with the names of its views.",
            (
                _perturbations(load_yaml(path, PerturbationList))
                for path in named_configs("perturb").values()
            ),
        ),
    }


def _page(title: str, first: str, entries: Any) -> str:
    return "\n\n".join([f"# {title}\n\n{first}\n", *entries])


def _entry(name: str, facts: dict[str, str], *more: str) -> str:
    head, *rows = [[what, said] for what, said in facts.items() if said]
    return "\n\n".join([f"## {name}", table(head, rows), *(one for one in more if one)])


def _notes(notes: Any) -> str:
    return "\n".join(f"- {prose(' '.join(note.split()))}" for note in notes) + "\n" if notes else ""


def _detector(card: DetectorCard) -> str:
    figures = [
        [
            prose(one.set),
            prose(one.metric),
            f"{one.value:g}",
            f"{one.n:,}" if one.n else "",
            "yes" if one.verified else "",
            prose(one.source),
        ]
        for one in card.published
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
            "variants": ", ".join(_variant(card, one) for one in variants_of(card)),
        },
        table(["set", "figure", "value", "images", "recomputed by us", "source"], figures)
        if figures
        else "",
        _notes(card.notes),
    )


def _variant(card: DetectorCard, variant: DetectorCard) -> str:
    """Its name, and which file it loads if that is another."""
    own = variant.weights
    return code(variant.name) + (
        f" ({code(own.uri)}, SHA-256 {code(own.sha256 or 'unknown')})"
        if own.uri != card.weights.uri
        else ""
    )


def _input(card: DetectorCard) -> str:
    """How large the network's input is, and which images a score means something for."""
    given, valid = card.preprocessing, card.valid_range
    size = f"{given.shape[1]} × {given.shape[0]} pixels" if given.shape else "the image's own size"
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
                f"[{one.detector}](detectors.md#{one.detector.partition(':')[0].replace('.', '')})"
                for one in card.members
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
            "after": prose(recipe.source),
            "data": prose(f"{recipe.data.name} ({recipe.data.licence})"),
        },
        _notes(recipe.departures),
    )


def _protocol(protocol: Protocol) -> str:
    faults = faults_of(
        {"layout": protocol.layout, "at": protocol.sources, "arguments": protocol.arguments}
    )
    return _entry(
        protocol.name,
        {
            "title": prose(protocol.title),
            "what": prose(" ".join(protocol.what.split())),
            "source": prose(protocol.source),
            "layout": code(protocol.layout or ""),
            "averages": prose(" ".join(protocol.averages.split())),
            "commands": " ".join(code(one) for one in protocol.commands),
        },
        _notes(
            [
                *protocol.notes,
                *(f"A documented fault of the data: {one.what} ({one.source})." for one in faults),
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
    return f"## {name}\n\n{docstring(kind.__doc__)}\n{prose('Arguments: ' + ', '.join(arguments)) if arguments else ''}\n"


def _published(layout: PublishedLayout) -> str:
    facts = {
        "title": prose(layout.title),
        "layout": f"[{layout.layout}](#{layout.layout})",
        "source": prose(layout.source),
    }
    return _entry(layout.name, facts, prose(layout.note))


def _perturbations(listed: PerturbationList) -> str:
    views = [*(one.name for one in listed.perturbations), *(one.name for one in listed.families)]
    absent = [f"`{one.name}`: {one.why}" for one in listed.absent]
    facts = {
        "source": prose(listed.source),
        "views": ", ".join(map(code, views)),
        "not done": prose("; ".join(absent)),
    }
    return _entry(listed.name, facts, prose(listed.note))
