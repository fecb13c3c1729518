"""JSON schemas of the documents that commands write, one file per document on the site."""

import json
from typing import Any

from pydantic import TypeAdapter

from ray_app.reports.evaluation.result import EvaluationMeta
from ray_app.reports.plan_model import Plan
from ray_app.reports.training import TrainingFacts
from ray_app.runs.document import RunSummary

DOCUMENTS: dict[str, Any] = {
    "run_summary": RunSummary,
    "evaluation_meta": EvaluationMeta,
    "training": TrainingFacts,
    "plan": Plan,
}


def files() -> dict[str, str]:
    """Return the text of each schema by its path on the site, such as `schemas/plan.json`."""
    return {f"schemas/{name}.json": _schema(document) for name, document in DOCUMENTS.items()}


def _schema(document: Any) -> str:
    return (
        json.dumps(
            TypeAdapter(document).json_schema(mode="serialization"), indent=1, ensure_ascii=False
        )
        + "\n"
    )
