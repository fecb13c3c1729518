"""Describe how perturbations of images weaken a detector, for its card (`fragility_yaml`).

A detector's card is a YAML file. Its section `fragility` has the metrics of the detector on images
that were, for example, compressed or resized.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.detectors.card_sections import Fragility, FragilityMetric
from ray_app.detectors.card_writer import card_text
from ray_app.errors import ConfigError
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.result import EvaluationMeta, EvaluationResult, SystemResult

_DIGITS = 4


def fragility_yaml(result: EvaluationResult) -> str:
    """Return the section `fragility` for the card of each evaluated detector, as YAML text.

    The section has the metrics of the detector on unchanged and on perturbed images. A person puts
    it into the detector's card, a YAML file. There, the key `abstains` may also set bounds of
    properties, such as the JPEG quality, beyond which the verdict is `abstain`.

    Args:
        result: The result of an evaluation of a run with perturbations.

    Returns:
        The text, in which the names of the detectors are the top-level keys.

    Raises:
        ConfigError: The run has no perturbation.
    """
    meta = result.meta
    detectors = [system for system in result.systems if system.info.name in meta.run.detectors]
    if not any(system.info.views for system in detectors):
        raise ConfigError(
            "--fragility needs perturbed images, and this run has none",
            hint="evaluate a source with --perturb standard or --perturb jpeg:75",
        )
    sections = {}
    for system in detectors:
        measured = tuple(_fragility_rows(meta, system))
        sections[system.info.name] = {
            "fragility": Fragility(measured=measured).model_dump(
                mode="json", exclude_none=True, exclude_defaults=True
            )
        }
    head = (
        "# Put a detector's `fragility` into its card. The key `abstains` next to `measured` sets where verdicts abstain, for\n"
        "# example {jpeg_quality: {below: 50}, graphics: {above: 0.55, what: a drawing or a screenshot}}.\n"
    )
    return head + card_text(sections)


def _fragility_rows(meta: EvaluationMeta, system: SystemResult) -> Iterator[FragilityMetric]:
    info, perturbed = system.info, meta.run.identity.get("perturb", {})
    source = f"touchstone evaluate {meta.version}, {meta.title}, {meta.made_at[:10]}"
    common_fields: dict[str, Any] = {"threshold": _round(info.threshold), "source": source}
    yield FragilityMetric(
        **_metric_fields(system.figures()), n_real=info.n_real, n_fake=info.n_fake, **common_fields
    )
    for view in info.views:
        yield FragilityMetric(
            perturbation=view.name,
            steps=_describe_steps(perturbed.get(view.name, ())),
            **_metric_fields(system.figures(view=view.name)),
            n_real=view.n_real,
            n_fake=view.n_fake,
            **common_fields,
        )


def _metric_fields(metrics: Mapping[str, MetricValue]) -> dict[str, Any]:
    auc, tpr, tnr = (
        metrics[name].value if name in metrics else None for name in ("auc", "tpr", "tnr")
    )
    return {
        "auc": _round(auc),
        "fpr": None if tnr is None else _round(1 - tnr),
        "tpr": _round(tpr),
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _describe_steps(steps: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the steps of a perturbation with their parameters.

    For example `resize scale 0.5 filter lanczos, then jpeg quality 75`.
    """
    phrases = [" ".join(str(part) for key, value in step.items() if value is not None for part in ((value,) if key == "op" else (key, value)))
             for step in steps]  # fmt: skip
    return ", then ".join(phrases) or None
