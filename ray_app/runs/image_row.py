"""Find the row of one image in a run, and describe it.

The description includes the digests and versions of the software that scored the image.
"""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError
from ray_app.runs.current import CurrentRows
from ray_app.runs.directory import RunDirectory, fingerprint
from ray_app.storage import canonicalize, strip_secrets

_KEYS = ["image_id", "uri", "member", "occurrence"]
_MAX_NAMED = 3


def find_image_row(
    run: RunDirectory, image: str, member: str | None = None, *, vanished: bool = False
) -> dict[str, Any]:
    """Find the current (newest) row of one image in a run, and return it as a dictionary.

    Args:
        run: The run to search.
        image: The URI or path of the file, or the `image_id` of the row.
        member: The name of the image inside the container `image`. None matches every member.
        vanished: Also search the rows of files that the last listing no longer found.

    Returns:
        The columns of the row and their values.

    Raises:
        ConfigError: If the run is missing, or if no row or more than one row matches.
    """
    matches: list[tuple[str, dict[str, Any]]] = []
    rows = CurrentRows.read(run)
    for path, table in rows.tables_by_file(_KEYS, vanished=vanished):
        matching = table.filter(_matches(table, image, member))
        matches += [(path, keys) for keys in matching.to_pylist()]
    name = strip_secrets(image) if member is None else f"{strip_secrets(image)}, member {member}"
    if not matches:
        hint = f"touchstone results {run.store.url} --json shows the uri, member, and image_id of each row"
        raise ConfigError(f"{run.store.url}: no row of {name}", hint=hint)
    if len(matches) > 1:
        raise ConfigError(
            f"{run.store.url}: {len(matches):,} rows of {name}, but one row is needed",
            hint=_explain_choice([keys for _, keys in matches]),
        )
    path, keys = matches[0]
    tables = (
        table.filter(pc.equal(table["image_id"], keys["image_id"]))
        for table in rows.tables(files=[path], vanished=vanished)
    )
    return next(row for table in tables for row in table.to_pylist())


def describe_image_row(run: RunDirectory, row: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON document with a row and the facts that show how its score was computed.

    The facts are the digests of the cards and weights, the versions of software, and the settings.
    """
    run_info = run.describe()
    identity = run_info["identity"]
    sessions = [run.read_json(f"sessions/{name}") for name in sorted(run.store.names("sessions"))]
    return {
        "row": row,
        "digests": {
            "run": fingerprint(identity),
            "ensemble": fingerprint(run_info["ensemble"]),
            "detectors": {
                name: {
                    "card": fingerprint(
                        {key: value for key, value in facts.items() if key != "weights"}
                    ),
                    "weights": facts["weights"],
                }
                for name, facts in identity["detectors"].items()
            },
        },
        "versions": {
            "touchstone": list(dict.fromkeys(session["version"] for session in sessions)),
            "row_schema": run_info["schema"],
        },
        "run": {
            "url": run.store.url,
            "created_at": run_info["created_at"],
            "ensemble": run_info["ensemble"],
            "identity": identity,
        },
    }


def _matches(table: pa.Table, image: str, member: str | None) -> pa.ChunkedArray:
    uris = pa.array(sorted({strip_secrets(image), strip_secrets(canonicalize(image))}))
    matching = pc.is_in(table["uri"].cast(pa.string()), uris)
    if member is not None:
        return pc.and_(
            matching, pc.fill_null(pc.equal(table["member"].cast(pa.string()), member), False)
        )
    if re.fullmatch(r"-?\d{1,19}", image) and -(2**63) <= int(image) < 2**63:
        return pc.or_(matching, pc.equal(table["image_id"], int(image)))
    return matching


def _explain_choice(rows: list[dict[str, Any]]) -> str:
    members = list(dict.fromkeys(row["member"] for row in rows))
    if len(members) > 1:
        names = ", ".join(str(name) for name in members[:_MAX_NAMED])
        return f"choose one with --member: {names}{', …' if len(members) > _MAX_NAMED else ''}"
    ids = ", ".join(str(row["image_id"]) for row in rows[:_MAX_NAMED])
    return f"choose one by its image_id: --image {ids}{', …' if len(rows) > _MAX_NAMED else ''}"
