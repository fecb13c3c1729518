"""Parts of an evaluation that need masks, an identifier, or pictures, with made-up metrics."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ray_app.metrics.intervals import proportion
from ray_app.metrics.table import MetricRow, MetricsTable, rows_of
from ray_app.metrics.values import MetricValue, undefined
from ray_app.reports.evaluation.result import (
    PROMPTS,
    EvaluationResult,
    GroupInfo,
    LocalizationInfo,
    MaskInfo,
    MaskPartInfo,
    Overlay,
    PromptInfo,
)
from tests.reports.training_example import picture

GROUPS = (
    ("generators of the training", "in", ("flux-1-dev", "ideogram-3.0", "sd-3.5"), 1240),
    ("other generators of their families", "out", ("flux-1.1-pro",), 310),
    ("other families", "out", ("nano-banana-pro", "midjourney-7"), 170),
)


def with_further(result: EvaluationResult) -> EvaluationResult:
    """The result with masks, prompts, groups of generators, and overlays."""
    rng = np.random.default_rng(11)
    f1 = rng.beta(3, 2, 120)
    masks = {
        "pixel_f1": _mean(f1),
        "pixel_iou": _mean(f1 / (2 - f1)),
        "pixel_auc": undefined("a mask without an unaltered pixel has no AUC", 120),
        "pixel_accuracy": _mean(0.9 + f1 / 12),
    }
    edits = MaskPartInfo("flux-1-fill, edits", 120)
    rules = ("masks by OpenSDI", "masks by IMDLBenCo, origin", "masks by IMDLBenCo, reverse")
    drawn = MaskInfo("maskclip", "network", generators=(edits,), rules=rules)
    scopes = [drawn.scope, drawn.scope_of(edits.name), *rules]
    rows = [row for scope in scopes for row in rows_of(masks, "maskclip", scope=scope)]
    prompts = {
        "clip_image": _mean(rng.beta(6, 2, 200)),
        "clip_image_chance": undefined(
            "needs images made from the predicted prompts: --regenerated"
        ),
    }
    rows += rows_of(prompts, scope=PROMPTS)
    groups = [GroupInfo(name, side, False, makers, n) for name, side, makers, n in GROUPS]
    for one in groups:
        rows += _rows_of_group(rng, one)
    overlays = tuple(
        Overlay(
            index,
            f"s3://desk/edits/{index:04d}.png",
            f1=float(f1[index]),
            iou=float(f1[index] / (2 - f1[index])),
            picture=base64.b64encode(overlay(index)).decode(),
        )
        for index in range(6)
    )
    policy = {"empty": "skip", "threshold": 0.5, "name": "opensdi"}
    meta = replace(
        result.meta,
        localization=LocalizationInfo(policy, systems=(drawn,)),
        prompts=PromptInfo({"with_both": 200}, ("LPIPS is not computed.",)),
        groups=tuple(groups),
        groups_by="identifier",
    )
    metrics = MetricsTable((*result.metrics.rows, *rows))
    return replace(result, meta=meta, metrics=metrics, overlays=overlays)


def _rows_of_group(rng: Any, group: GroupInfo) -> list[MetricRow]:
    """Metrics of a group of fakes; those that nobody could name have no accuracy."""
    n = group.n
    named = (
        _share(n - n // 4, n)
        if group.distribution == "in"
        else undefined("no image of a known generator")
    )
    figures = {
        "accuracy": named,
        "top_3": named,
        "family_accuracy": _share(n // 2, n),
        "abstained": _share(n // 9, n),
        "clip_image": _mean(rng.beta(2, 6, 60)),
    }
    detection = {"tpr": _share(n - n // 8, n), "auc": _mean(rng.beta(9, 1, 30))}
    return [
        *rows_of(detection, "ensemble", scope=group.scope),
        *rows_of(figures, scope=group.scope),
    ]


def _share(right: int, n: int) -> MetricValue:
    return proportion(right, n, "")


def _mean(values: Any) -> MetricValue:
    half = 1.96 * float(np.std(values)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return MetricValue(middle, middle - half, middle + half, len(values), "jackknife")


def overlay(seed: int) -> bytes:
    """A soft picture with what is altered outlined by light and what was marked by red."""
    rng = np.random.default_rng(seed)
    pixels = np.array(Image.open(io.BytesIO(picture(seed, 192))).convert("RGB"))
    top, left = rng.integers(20, 90, 2)
    pixels[top : top + 70, left : left + 70] = pixels[top : top + 70, left : left + 70] // 2 + 120
    pixels[top + 12 : top + 78, left + 9 : left + 74, 0] = 235
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()
