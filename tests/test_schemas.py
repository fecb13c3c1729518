"""JSON schemas of the documents that commands write, as the documentation site publishes them, and
documents of other versions.
"""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import TypeAdapter

from docs_site import schemas
from docs_site.schemas import DOCUMENTS
from ray_app.reports.training import TrainingFacts
from ray_app.runs.document import RunSummary
from tests.reports.evaluation_example import example_result
from tests.reports.example import example_summary
from tests.reports.training_example import example_facts

PLAN = Path(__file__).parent / "reports/documents/plan.yaml"


def example_training():
    facts = example_facts()
    del facts["mistakes"]  # thumbnails, which are on the page only
    return facts


EXAMPLES = {
    "run_summary": example_summary,
    "evaluation_meta": lambda: example_result().to_json()["meta"],
    "training": example_training,
    "plan": lambda: yaml.safe_load(PLAN.read_text(encoding="utf-8")),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_document_matches_its_published_schema(name):
    schema = json.loads(schemas.files()[f"schemas/{name}.json"])
    read = TypeAdapter(DOCUMENTS[name]).validate_python(EXAMPLES[name]())
    written = TypeAdapter(DOCUMENTS[name]).dump_python(read, mode="json", by_alias=True)
    written = json.loads(json.dumps(written))
    jsonschema.validate(written, schema)
    broken = {key: [object] for key in written}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_a_document_without_any_key_is_read_and_so_is_one_with_keys_of_another_version():
    assert RunSummary.model_validate({"a_key_of_tomorrow": 1}).to_dict() == {}
    assert TrainingFacts.from_dict({"a_key_of_tomorrow": 1}) == TrainingFacts()


def test_a_null_is_kept_where_it_means_something_and_else_is_an_absent_key():
    read = RunSummary.model_validate(
        {"schema": 1, "members": None, "bottleneck": None, "profile": None}
    )
    assert read.members == 0
    assert read.to_dict() == {"schema": 1, "bottleneck": None}
