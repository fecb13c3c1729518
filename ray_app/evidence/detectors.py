"""What each detector said of one image, and what was made of it: a row's columns as one entry per detector. Knows rows and cards."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ray_app.ensembles import calibrate, sigmoid
from ray_app.inference import ScoringSpec

_PER_DETECTOR = ("replies", "mask_area", "mask_peak")


def told_of(spec: ScoringSpec, row: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Per detector, in the ensemble's order: its raw score (null = none), calibrated, its probability, and how it was made."""
    names = [member.detector for member in spec.ensemble.members]
    return {
        name: _one(spec, row, name)
        | {
            "asked_as": asked_as,
            "precision": identity.get("precision", {}).get(name),
            "weights": identity["detectors"].get(name, {}).get("weights"),
        }
        for asked_as, name in zip(names, spec.cards, strict=True)
    }


def _one(spec: ScoringSpec, row: Mapping[str, Any], name: str) -> dict[str, Any]:
    score, calibration = (row["scores"] or {}).get(name), spec.calibrations[name]
    at = None if score is None else float(calibrate(np.array([score], np.float64), calibration)[0])
    sized = row["width"] is not None and row["height"] is not None
    return {
        "score": score,
        "calibration": None if calibration is None else str(calibration),
        "calibrated_score": at,
        "probability": None if at is None else float(sigmoid(np.array([at]))[0]),
        "doubt": spec.doubt(name, row["width"], row["height"]) if sized else None,
        **{column: row[column].get(name) for column in _PER_DETECTOR if row.get(column) and name in row[column]},
        **({"views": {view: scores.get(name) for view, scores in row["views"].items() if scores}} if row.get("views") else {}),
    }
