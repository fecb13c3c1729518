"""What an evaluation says of a detector under perturbations, as the section `fragility` of its card (`fragility_yaml`).

A person puts it into the card; bounds beyond which verdicts abstain (`abstains`) are theirs to draw from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ray_app.detectors.card_sections import Fragility, FragilityFigure
from ray_app.errors import ConfigError
from ray_app.metrics.arrays import FigureFacts
from ray_app.reports.evaluation.model import EvaluationDocument
from ray_app.reports.evaluation.system_model import SystemFacts

_DIGITS = 4


def fragility_yaml(document: EvaluationDocument) -> str:
    """YAML with one section per detector of the evaluated run, by the detector's name. Raises ConfigError where it has no perturbation."""
    detectors = [one for one in document.systems if one.name in document.run.detectors]
    perturbed = document.run.identity.get("perturb", {})
    if not any(one.views for one in detectors):
        raise ConfigError("--fragility: this run has no perturbed images", hint="evaluate a source with --perturb standard, or jpeg:75")
    sections = {}
    for one in detectors:
        measured = tuple(_rows(document, one, perturbed))
        sections[one.name] = {"fragility": Fragility(measured=measured).model_dump(mode="json", exclude_none=True, exclude_defaults=True)}
    head = (
        "# Put a detector's `fragility` into its card. Under `abstains` beside `measured` a card says where a verdict means nothing, for\n"
        "# example {jpeg_quality: {below: 50}, graphics: {above: 0.55, what: a drawing or a screenshot}}.\n"
    )
    return head + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=140)


def _rows(document: EvaluationDocument, system: SystemFacts, perturbed: Mapping[str, Any]) -> Iterator[FragilityFigure]:
    source = f"touchstone evaluate {document.version}, {document.title}, {document.made_at[:10]}"
    given: dict[str, Any] = {"threshold": _rounded(system.threshold), "source": source}
    yield FragilityFigure(**_figures(system.figures), n_real=system.n_real, n_fake=system.n_fake, **given)
    for view in system.views:
        steps = _in_words(perturbed.get(view.name, ()))
        yield FragilityFigure(
            perturbation=view.name, steps=steps, **_figures(view.figures), n_real=view.n_real, n_fake=view.n_fake, **given
        )


def _figures(figures: Mapping[str, FigureFacts]) -> dict[str, Any]:
    auc, tpr, tnr = (figures[name].number if name in figures else None for name in ("auc", "tpr", "tnr"))
    return {"auc": _rounded(auc), "fpr": None if tnr is None else _rounded(1 - tnr), "tpr": _rounded(tpr)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _in_words(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The steps of a perturbation with their strengths: `resize scale 0.5 filter lanczos, then jpeg quality 75`."""
    words = [" ".join(str(part) for key, value in step.items() if value is not None for part in ((value,) if key == "op" else (key, value)))
             for step in steps]  # fmt: skip
    return ", then ".join(words) or None
