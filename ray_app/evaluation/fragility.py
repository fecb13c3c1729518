"""What perturbations leave of each detector, as the section `fragility` of its card
(`fragility_yaml`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.detectors.card_sections import Fragility, FragilityFigure
from ray_app.detectors.card_writer import card_text
from ray_app.errors import ConfigError
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import EvaluationMeta, EvaluationResult, SystemResult

_DIGITS = 4


def fragility_yaml(result: EvaluationResult) -> str:
    """Return the section `fragility` of each detector of the evaluated run: YAML, by its name.

    A person puts it into the card; bounds beyond which verdicts abstain (`abstains`) are theirs to
    draw from it.

    Raises:
        ConfigError: The run has no perturbation.
    """
    meta = result.meta
    detectors = [one for one in result.systems if one.info.name in meta.run.detectors]
    if not any(one.info.views for one in detectors):
        raise ConfigError(
            "--fragility: this run has no perturbed images",
            hint="evaluate a source with --perturb standard, or jpeg:75",
        )
    sections = {}
    for one in detectors:
        measured = tuple(_fragility_rows(meta, one))
        sections[one.info.name] = {
            "fragility": Fragility(measured=measured).model_dump(
                mode="json", exclude_none=True, exclude_defaults=True
            )
        }
    head = (
        "# Put a detector's `fragility` into its card. Under `abstains` beside `measured` a card says where a verdict means nothing, for\n"
        "# example {jpeg_quality: {below: 50}, graphics: {above: 0.55, what: a drawing or a screenshot}}.\n"
    )
    return head + card_text(sections)


def _fragility_rows(meta: EvaluationMeta, system: SystemResult) -> Iterator[FragilityFigure]:
    info, perturbed = system.info, meta.run.identity.get("perturb", {})
    source = f"touchstone evaluate {meta.version}, {meta.title}, {meta.made_at[:10]}"
    given: dict[str, Any] = {"threshold": _rounded(info.threshold), "source": source}
    yield FragilityFigure(
        **_measured(system.figures()), n_real=info.n_real, n_fake=info.n_fake, **given
    )
    for view in info.views:
        yield FragilityFigure(
            perturbation=view.name,
            steps=_in_words(perturbed.get(view.name, ())),
            **_measured(system.figures(view=view.name)),
            n_real=view.n_real,
            n_fake=view.n_fake,
            **given,
        )


def _measured(figures: Mapping[str, MetricValue]) -> dict[str, Any]:
    auc, tpr, tnr = (
        figures[name].value if name in figures else None for name in ("auc", "tpr", "tnr")
    )
    return {
        "auc": _rounded(auc),
        "fpr": None if tnr is None else _rounded(1 - tnr),
        "tpr": _rounded(tpr),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _in_words(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """The steps of a perturbation with their strengths: `resize scale 0.5 filter lanczos, then jpeg
    quality 75`.
    """
    words = [" ".join(str(part) for key, value in step.items() if value is not None for part in ((value,) if key == "op" else (key, value)))
             for step in steps]  # fmt: skip
    return ", then ".join(words) or None
