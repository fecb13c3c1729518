"""The reference, made of the code: `pages` gives every page's Markdown by its place on the site."""

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
    ExitCode.BUG: "a bug of Touchstone",
    ExitCode.USAGE: "a command, a file or a setting that has to be changed",
    ExitCode.TOO_MANY_BAD: "finished, and more files could not be scored than `max_bad_fraction` allows, or no file at all could be read",
    ExitCode.DETECTOR: "a detector, its weights or its licence",
    ExitCode.CLUSTER: "storage or the cluster is out of reach, or nothing moves any more",
    ExitCode.INTERRUPTED: "interrupted; what is committed is kept, and the same command continues",
}


def pages() -> dict[str, str]:
    """Markdown by place, for example `reference/statuses.md`."""
    made = (
        {f"commands-{name}": text for name, text in command_pages().items()}
        | settings.pages()
        | catalogue.pages()
    )
    made |= {
        "columns": columns_page(),
        "statuses": statuses_page(),
        "http": http_page(),
    }
    return {f"reference/{name}.md": text for name, text in made.items()}


def command_pages() -> dict[str, str]:
    """Return the page of the core commands and the page of each group, for mkdocs-click."""
    groups = [name for name, one in touchstone.commands.items() if isinstance(one, click.Group)]
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
    """What a row of a run may have."""
    every = row_schema(["DETECTOR"], pa.struct([]), ["DETECTOR"], ["DETECTOR"], views=["VIEW"], second_look=True,
                       identified=True, described=True, measured=["texture", "graphics"])  # fmt: skip
    columns = [
        [code(field.name), _type(field.type), prose(COLUMN_MEANING[field.name])] for field in every
    ]
    flags = [[code(name), prose(meaning)] for name, meaning in FLAG_MEANING.items()]
    return (
        "# Columns of a result row\n\nEach file of a run is one row of `RUN/scores/`, in Parquet. Columns are added and never renamed; "
        "those of what was not asked for, such as masks, are left out.\n\n"
        f"{table(['column', 'type', 'meaning'], columns)}\n## Words of the column `flags`\n\n{table(['flag', 'meaning'], flags)}"
    )


def _type(given: pa.DataType) -> str:
    """A column's type in words; texts that repeat are stored as dictionaries, which readers of
    Parquet see as texts.
    """
    if pa.types.is_dictionary(given):
        return "string"
    if pa.types.is_list(given):
        return f"list of {_type(given.value_type)}"
    if pa.types.is_struct(given):
        return (
            f"struct with {_type(given.field(0).type)} by {given.field(0).name}"
            if given.num_fields
            else "struct"
        )
    return prose(str(given))


def statuses_page() -> str:
    """Statuses, reasons, exit codes: all closed lists."""
    statuses = [[code(one), prose(one.meaning)] for one in Status]
    reasons = [[code(one), prose(one.meaning)] for one in Reason]
    codes = [[str(int(one)), prose(meaning)] for one, meaning in EXIT_MEANING.items()]
    return (
        "# Statuses and exit codes\n\nThe words that say why a file has no score, why it has no verdict, and how a command ended. The "
        f"lists are closed; details stand beside them.\n\n## Statuses of a file\n\n{table(['status', 'meaning'], statuses)}\n"
        f"## Reasons of an abstention\n\n{table(['verdict_reason', 'meaning'], reasons)}\n"
        f"## Exit codes of a command\n\n{table(['code', 'meaning'], codes)}"
    )


def http_page() -> str:
    """The endpoint, from its own OpenAPI document."""
    document = create_app(ServeConfig(), None, None).openapi()  # type: ignore[arg-type]  # nobody asks it anything
    parts = [
        "# HTTP API\n\nWhat `touchstone serve` answers, from the document that it serves at `/openapi.json`. How to run it: "
        f"[serving](../serving.md).\n\n{docstring(document['info']['description'])}"
    ]
    for path, operations in document["paths"].items():
        parts += [_operation(method, path, one) for method, one in operations.items()]
    codes = [
        [code(name), str(status), prose(message)] for name, (status, message) in MESSAGES.items()
    ]
    parts.append(
        "## Error codes\n\nEvery refusal has the same shape (`Error`, below). An image that cannot be scored has a "
        f"[status](statuses.md) as its code.\n\n{table(['code', 'HTTP status', 'meaning'], codes)}"
    )
    parts.append("## Bodies")
    for name, schema in document["components"]["schemas"].items():
        fields = [
            [code(field), _shape(one), prose(one.get("description", ""))]
            for field, one in schema.get("properties", {}).items()
        ]
        words = (
            f"One of {', '.join(code(word) for word in schema['enum'])}.\n"
            if "enum" in schema
            else ""
        )
        parts.append(
            f"### {name}\n\n{docstring(schema.get('description'))}\n{words}{table(['field', 'type', 'meaning'], fields) if fields else ''}"
        )
    return "\n\n".join(parts)


def _operation(method: str, path: str, one: dict[str, Any]) -> str:
    asked = [
        [
            code(given["name"]),
            given["in"],
            _shape(given["schema"]),
            prose(given.get("description", "")),
        ]
        for given in one.get("parameters", ())
    ]
    body = [
        [code(kind), _shape(content.get("schema", {}))]
        for kind, content in one.get("requestBody", {}).get("content", {}).items()
    ]
    answers = [
        [
            status,
            ", ".join(
                _shape(content.get("schema", {})) for content in answer.get("content", {}).values()
            ),
            prose(answer["description"]),
        ]
        for status, answer in one["responses"].items()
    ]
    parts = [f"## {method.upper()} {path}", docstring(one.get("description"))]
    parts += [table(["parameter", "in", "type", "meaning"], asked)] if asked else []
    parts += [table(["request body", "type"], body)] if body else []
    return "\n\n".join([*parts, table(["answer", "body", "meaning"], answers)])


def _shape(schema: dict[str, Any]) -> str:
    """The type of a JSON value in words; a body that is described on the page is a link to it."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_shape(one) for one in schema[several])
    if "enum" in schema:
        return " or ".join(code(str(word)) for word in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_shape(schema.get('items', {})) or 'anything'}"
    more = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(more, dict):
        return f"object of {_shape(more)}"
    return f"{schema.get('type', '')}{', binary' if schema.get('format') == 'binary' else ''}"
