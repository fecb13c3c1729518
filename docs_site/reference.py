"""Generate the reference pages from the code: enter at `pages`."""

from typing import Any

import click
import pyarrow as pa

from docs_site import catalogue, settings
from docs_site.columns import COLUMN_MEANING
from docs_site.markdown import code, docstring, prose, table
from ray_app.cli.main import PERMANENT, touchstone
from ray_app.errors import ExitCode, Reason, Status
from ray_app.images.facts import FLAG_MEANING
from ray_app.runs.schema import row_schema
from ray_app.serving.config import ServeConfig
from ray_app.serving.http.app import create_app
from ray_app.serving.refusal import MESSAGES

EXIT_MEANING: dict[ExitCode, str] = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "a bug in Touchstone",
    ExitCode.USAGE: "a command, a file, or a setting must be changed",
    ExitCode.TOO_MANY_BAD: "finished, but more files could not be scored than `max_bad_fraction` allows, no file could be read, "
    "or a check failed (`runs verify`, `data split --check`, `data index --complete`)",
    ExitCode.DETECTOR: "a detector, its weights, or its licence is missing or refused",
    ExitCode.CLUSTER: "storage or the cluster is unreachable, or the run makes no progress",
    ExitCode.INTERRUPTED: "interrupted; committed results are kept, and the same command resumes",
}


def pages() -> dict[str, str]:
    """Return the Markdown of each page by its path, such as `reference/statuses.md`."""
    texts = (
        {f"commands-{name}": text for name, text in command_pages().items()}
        | settings.pages()
        | catalogue.pages()
    )
    texts |= {
        "columns": columns_page(),
        "statuses": statuses_page(),
        "http": http_page(),
    }
    return {f"reference/{name}.md": text for name, text in texts.items()}


def command_pages() -> dict[str, str]:
    """Return the page of the core commands and the page of each group, for mkdocs-click."""
    groups = [
        name for name, command in touchstone.commands.items() if isinstance(command, click.Group)
    ]
    core = [
        _command_block(name, depth=1)
        for name, command in touchstone.commands.items()
        if name not in groups and not command.hidden
    ]
    aliases = [
        [code(f"touchstone {name}"), code(f"touchstone {group} {name}")]
        for name, group in sorted(PERMANENT.items())
    ]
    start = "# Core commands\n\nFind every command of `touchstone` that is not in a group, with its options."
    note = "These names from before 0.15 still work. `--help` does not list them."
    former = f"## Short names\n\n{note}\n\n{table(['short', 'full'], aliases)}"
    return {
        "core": "\n\n".join([start, *core, former]),
        **{name: _command_block(name, depth=0) for name in groups},
    }


def _command_block(name: str, depth: int) -> str:
    return (
        "::: mkdocs-click\n    :module: docs_site.commands\n"
        f"    :command: {name}\n    :prog_name: touchstone {name}\n    :depth: {depth}\n"
    )


def columns_page() -> str:
    """Return the page of the columns that a result row may have."""
    schema = row_schema(["DETECTOR"], pa.struct([]), ["DETECTOR"], ["DETECTOR"], views=["VIEW"], second_look=True,
                       identified=True, described=True, measured=["texture", "graphics"])  # fmt: skip
    columns = [
        [code(field.name), _type(field.type), prose(COLUMN_MEANING[field.name])] for field in schema
    ]
    flags = [[code(name), prose(meaning)] for name, meaning in FLAG_MEANING.items()]
    return (
        "# Columns of a result row\n\nEach file of a run is one row of `RUN/scores/`, in Parquet. Columns are added and never renamed. "
        "A run has no columns for features that were not requested, such as masks.\n\n"
        f"{table(['column', 'type', 'meaning'], columns)}\n## Values of the column `flags`\n\n{table(['flag', 'meaning'], flags)}"
    )


def _type(data_type: pa.DataType) -> str:
    """Describe the type of a column; readers of Parquet see dictionaries of strings as strings."""
    if pa.types.is_dictionary(data_type):
        return "string"
    if pa.types.is_list(data_type):
        return f"list of {_type(data_type.value_type)}"
    if pa.types.is_struct(data_type):
        return (
            f"struct with {_type(data_type.field(0).type)} by {data_type.field(0).name}"
            if data_type.num_fields
            else "struct"
        )
    return prose(str(data_type))


def statuses_page() -> str:
    """Return the page of statuses, abstain reasons, and exit codes."""
    statuses = [[code(status), prose(status.meaning)] for status in Status]
    reasons = [[code(reason), prose(reason.meaning)] for reason in Reason]
    codes = [[str(int(exit_code)), prose(text)] for exit_code, text in EXIT_MEANING.items()]
    return (
        "# Statuses and exit codes\n\nThis page lists why a file has no score, why it has no verdict, and how a command ended. The "
        f"lists are closed: a version of Touchstone uses no other values.\n\n## Statuses of a file\n\n{table(['status', 'meaning'], statuses)}\n"
        f"## Reasons of an abstention\n\n{table(['verdict_reason', 'meaning'], reasons)}\n"
        f"## Exit codes of a command\n\n{table(['code', 'meaning'], codes)}"
    )


def http_page() -> str:
    """Return the page of the HTTP API, from the endpoint's OpenAPI document."""
    document = create_app(ServeConfig(), None, None).openapi()  # type: ignore[arg-type]  # It serves no requests here.
    parts = [
        "# HTTP API\n\nThis page describes the requests and responses of `touchstone serve`, "
        "from its OpenAPI document at `/openapi.json`. To run it, see "
        f"[serving](../serving.md).\n\n{docstring(document['info']['description'])}"
    ]
    for path, operations in document["paths"].items():
        parts += [_operation(method, path, operation) for method, operation in operations.items()]
    codes = [
        [code(name), str(status), prose(message)] for name, (status, message) in MESSAGES.items()
    ]
    parts.append(
        "## Error codes\n\nEvery error response has the same shape (`Error`, below). If an image cannot be scored, the code is its "
        f"[status](statuses.md).\n\n{table(['code', 'HTTP status', 'meaning'], codes)}"
    )
    parts.append("## Bodies")
    for name, schema in document["components"]["schemas"].items():
        fields = [
            [code(field), _shape(value), prose(value.get("description", ""))]
            for field, value in schema.get("properties", {}).items()
        ]
        values = (
            f"One of {', '.join(code(value) for value in schema['enum'])}.\n"
            if "enum" in schema
            else ""
        )
        parts.append(
            f"### {name}\n\n{docstring(schema.get('description'))}\n{values}{table(['field', 'type', 'meaning'], fields) if fields else ''}"
        )
    return "\n\n".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        [
            code(parameter["name"]),
            parameter["in"],
            _shape(parameter["schema"]),
            prose(parameter.get("description", "")),
        ]
        for parameter in operation.get("parameters", ())
    ]
    body = [
        [code(kind), _shape(content.get("schema", {}))]
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    ]
    responses = [
        [
            status,
            ", ".join(
                _shape(content.get("schema", {}))
                for content in response.get("content", {}).values()
            ),
            prose(response["description"]),
        ]
        for status, response in operation["responses"].items()
    ]
    parts = [f"## {method.upper()} {path}", docstring(operation.get("description"))]
    parts += [table(["parameter", "in", "type", "meaning"], parameters)] if parameters else []
    parts += [table(["request body", "type"], body)] if body else []
    return "\n\n".join([*parts, table(["response", "body", "meaning"], responses)])


def _shape(schema: dict[str, Any]) -> str:
    """Describe the type of a JSON value; a body that the page describes becomes a link."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_shape(option) for option in schema[several])
    if "enum" in schema:
        return " or ".join(code(str(value)) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_shape(schema.get('items', {})) or 'anything'}"
    more = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(more, dict):
        return f"object of {_shape(more)}"
    return f"{schema.get('type', '')}{', binary' if schema.get('format') == 'binary' else ''}"
