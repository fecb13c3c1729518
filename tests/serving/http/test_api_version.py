"""What docs/versioning.md promises of /v1: what a program may rely on stays, and whatever is added
has a new number.

`python -m tests.serving.http.test_api_version` writes down today's, after API_VERSION was counted
up.
"""

import json
from pathlib import Path

from ray_app.serving.config import ServeConfig
from ray_app.serving.http import schemas
from ray_app.serving.http.app import create_app

KEPT = Path(__file__).with_name("api_v1.json")


def outline():
    """The OpenAPI document as lines of what a program relies on: operations, parameters, answers,
    and fields with their types.
    """
    document = create_app(ServeConfig(), None, None).openapi()
    assert document["info"]["version"] == schemas.API_VERSION
    return {
        "version": schemas.API_VERSION,
        "lines": sorted({*_operations(document), *_fields(document)}),
    }


def _operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            yield name
            for parameter in operation.get("parameters", []):
                must = " required" if parameter.get("required") else ""
                yield f"{name} takes {parameter['name']} in {parameter['in']}{must}"
            for code, answer in operation["responses"].items():
                for content in answer.get("content", {}).values():
                    yield f"{name} answers {code} {_kind(content.get('schema', {}))}"


def _fields(document):
    for name, model in document["components"]["schemas"].items():
        for field, schema in model.get("properties", {}).items():
            yield f"{name}.{field}: {_kind(schema)}"
        for word in model.get("enum", []):
            yield f"{name} may be {word}"


def _kind(schema):
    if "anyOf" in schema:
        return " or ".join(sorted(map(_kind, schema["anyOf"])))
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    inner = schema.get("items") or schema.get("additionalProperties")
    words = [str(schema.get("type", "anything")), *sorted(map(str, schema.get("enum", [])))]
    return " ".join(words) + (f" of {_kind(inner)}" if isinstance(inner, dict) else "")


def is_later(version, than):
    major, minor, patch = map(int, version.split("."))
    return (major, minor, patch) > tuple(map(int, than.split(".")))


def test_nothing_that_programs_use_is_removed():
    kept, today = json.loads(KEPT.read_text()), outline()
    gone = set(kept["lines"]) - set(today["lines"])
    assert gone == set(), "that wants /v2, beside /v1 for as long as docs/versioning.md says"


def test_addition_has_a_new_version():
    kept, today = json.loads(KEPT.read_text()), outline()
    added = sorted(set(today["lines"]) - set(kept["lines"]))
    command = "python -m tests.serving.http.test_api_version"
    assert added == [], f"raise API_VERSION from {kept['version']}, then run: {command}"
    assert today["version"] == kept["version"]


if __name__ == "__main__":
    if KEPT.exists() and not is_later(schemas.API_VERSION, json.loads(KEPT.read_text())["version"]):
        raise SystemExit(
            f"count API_VERSION up first: it is {schemas.API_VERSION}, and so is what is written down"
        )
    KEPT.write_text(json.dumps(outline(), indent=1, ensure_ascii=False) + "\n")
