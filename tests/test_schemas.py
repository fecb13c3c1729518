"""The published JSON schemas of the documents that commands write, and documents of other versions.

`python -m tests.test_schemas` writes the schemas anew.
"""

import json
from pathlib import Path

import pytest

from ray_app.reports.calibration import CalibrationReport
from ray_app.reports.evaluation.model import EvaluationDocument
from ray_app.reports.plan_model import Plan
from ray_app.reports.training import TrainingFacts
from ray_app.runs.document import RunSummary

FOLDER = Path(__file__).resolve().parents[1] / "docs/schemas"
DOCUMENTS = {
    "run_summary": RunSummary,
    "evaluation": EvaluationDocument,
    "training": TrainingFacts,
    "plan": Plan,
    "calibration": CalibrationReport,
}


def schema_of(name):
    return json.dumps(DOCUMENTS[name].model_json_schema(), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_published_schema_is_that_of_the_document(name):
    assert schema_of(name) == (FOLDER / f"{name}.json").read_text(), f"docs/schemas/{name}.json is of another version of the document"


def test_every_schema_is_of_a_document():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(DOCUMENTS)


@pytest.mark.parametrize("name", ["run_summary", "evaluation", "training", "plan"])
def test_a_document_without_any_key_is_read_and_so_is_one_with_keys_of_another_version(name):
    document = DOCUMENTS[name].model_validate({"a_key_of_tomorrow": 1})
    assert document.written() == {}


def test_a_null_is_kept_where_it_means_something_and_else_is_an_absent_key():
    read = RunSummary.model_validate({"schema": 1, "members": None, "bottleneck": None, "profile": None})
    assert read.members == 0
    assert read.written() == {"schema": 1, "bottleneck": None}


if __name__ == "__main__":
    for document in DOCUMENTS:
        (FOLDER / f"{document}.json").write_text(schema_of(document))
