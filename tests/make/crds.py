"""KubeRay's CRDs (../shared/kuberay) as JSON schemas that know no unknown key; what needs them is
skipped where they are not.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[3] / "shared/kuberay"
_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _WORDS,
        "annotations": _WORDS,
    },
    "additionalProperties": False,
}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes in which a key that it does not name is an error."""
    if schema.get("x-kubernetes-int-or-string"):
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            **{key: schema[key] for key in ("pattern",) if key in schema},
        }
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {
            key: _METADATA
            if key == "metadata" and "additionalProperties" not in value
            else strict(value)
            for key, value in schema["properties"].items()
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            result[key] = strict(schema[key])
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        result["type"] = [schema["type"], "null"]
    return result


@cache
def validator(kind: str) -> jsonschema.Draft7Validator:
    """Of a kind of KubeRay's, version v1. Skips the test where the CRDs are not here."""
    path = FOLDER / f"{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's CRDs are not here: {path}")
    crd = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft7Validator(strict(version["schema"]["openAPIV3Schema"]))


def faults(kind: str, manifest: Any, *within: str) -> list[str]:
    """What is wrong with a manifest, or with a part of one that the schema has at `within`
    (properties; `items` is implied).
    """
    schema = validator(kind).schema
    for name in within:
        schema = schema.get("items", schema)["properties"][name]
    return [
        f"{error.json_path}: {error.message}"
        for error in jsonschema.Draft7Validator(schema).iter_errors(manifest)
    ]
