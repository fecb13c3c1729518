"""Lists of the wild server's URLs, and the outcome that each kind of URL must have."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq

from ray_app.datajobs.download import CollectConfig
from tests.make.servers.wild import RESOLVE, picture

ROOT = Path(__file__).resolve().parents[3]
QUICK = {"attempts": 3, "base_s": 0.01, "cap_s": 0.05, "deadline_s": 300}
GOOD = ("good", "slow", "moved", "busy", "busydate", "flaky", "tornonce", "resetonce", "misnamed")
EXPECTED = dict.fromkeys(GOOD, "ok") | {
    "reset": "source_timeout",
    "gone": "source_missing",
    "denied": "source_denied",
    "html": "unsupported_format",
    "empty": "empty_file",
    "torn": "source_timeout",
    "cut": "truncated_image",
    "huge": "image_too_large",
    "endless": "image_too_large",
    "loop": "source_denied",
    "inside": "unsupported_format",
    "zipped": "source_denied",
}


def config(meta, out, **changes):
    """Quick settings; the server's hosts are on loopback."""
    given = {
        "meta": str(meta), "out": str(out), "resolve": RESOLVE, "allow_private": True, "retry": QUICK, "commit_s": 0.2,
        "limits": {"max_bytes": 2**20, "connect_timeout_s": 60, "read_timeout_s": 60}, "politeness": {"contact": "me@example.org"},
    }  # fmt: skip
    return CollectConfig.model_validate(given | changes)


def write_list(folder, rows):
    """A JSON lines list of (id, url, words…)."""
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_for(web, kinds, host=None):
    """A row of a list for each kind of URL, at one host or spread over all."""
    return [
        {
            "id": f"{number:05d}.{kind}",
            "url": web.url(host or f"h{number % 7}", f"{kind}/{number}.x"),
            "Prompt": f"a {kind} thing",
        }
        for number, kind in enumerate(kinds)
    ]


def outcomes(out):
    """The rows of collected.parquet and of failed.parquet by id."""
    collected, failed = (
        {row["id"]: row for row in pq.read_table(out / f"{name}.parquet").to_pylist()}
        for name in ("collected", "failed")
    )
    assert not collected.keys() & failed.keys()
    return collected, failed


def check(rows, out):
    """Check that each row has its expected outcome, and that each good file exists once."""
    collected, failed = outcomes(out)
    expected_names = set()
    for row in rows:
        kind, number = row["id"].partition(".")[2], int(row["id"][:5])
        status = "ok" if row["id"] in collected else failed[row["id"]]["status"]
        assert status == EXPECTED[kind], (row["id"], failed.get(row["id"]))
        if status == "ok":
            data, subtype = picture(number)
            name, found = f"{row['id']}.{subtype}", collected[row["id"]]
            assert (out / "images" / name).read_bytes() == data
            assert found["uri"] == f"images/{name}"
            assert found["sha256"] == hashlib.sha256(data).hexdigest()
            assert (found["prompt"], found["label"]) == (row["Prompt"], "fake")
            expected_names.add(name)
    names = {path.name for path in (out / "images").iterdir()}
    assert {name for name in names if not name.startswith(".touchstone-")} == expected_names
    assert len(collected) + len(failed) == len(rows)
