"""Runs made without a detector: real manifests, rows and masks, with outcomes and scores that the
test says.
"""

import functools
import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from ray_app.archives import BlockPlan, list_members, open_source, read_block, read_blocks
from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, judge, make_spec
from ray_app.inference.decision import MASKS, SCORES, OutputKey
from ray_app.runs import (
    CurrentRows,
    RunDirectory,
    begin_retry,
    current_rows,
    mask_rows,
    parts,
    result_rows,
)
from ray_app.scoring.report import write_summary
from ray_app.scoring.session import ScoringSession

SPEC = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32")
NAME = next(iter(SPEC.cards))
PLAN = BlockPlan(batch_slots=4, max_block_members=8)
START = datetime(2026, 1, 1, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs" / "results.md"
FACTS = {"backbone": "tower", "sha256": "0" * 64, "width": 3}  # of the embeddings of `vectors_for`


def new_run(folder):
    run = RunDirectory.open(str(folder))
    run.claim({"detectors": {NAME: {}}}, [NAME], {})
    return run


def write_files(folder, names, content="first"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{name} {content}")


def begun(folder, names, **options):
    """A run of these files, all of them listed and scored and none published; `options` as those of
    `score_blocks`.
    """
    run = new_run(folder / "run")
    write_files(folder / "archive", names)
    relist(run, folder / "archive")
    score_blocks(run, 0, **options)
    return run


def finish(run):
    """Publish all rows and write the summary, which finishes all manifests; returns the summary."""
    run.publish_all()
    return write_summary(run, SPEC, ScoringSession(run, {}, 0.0))


def retried(run, attempt, *statuses, **options):
    """Score the members with these statuses once more, to the end. Returns how many there were."""
    begun = begin_retry(CurrentRows.read(run), [str(status) for status in statuses], PLAN)
    score_blocks(run, begun.info.manifest, attempt=attempt, **options)
    finish(run)
    return begun.info.members


def rows_of(run):
    """The current rows by the names of their files."""
    return {row["uri"].rpartition("/")[2]: row for row in current_rows(run)}


def in_small_files(monkeypatch):
    """Every published file holds a block or so."""
    monkeypatch.setattr(parts, "PUBLISHED_BYTES", 1)
    monkeypatch.setattr(parts, "ROW_GROUP", 4)


def digest(name, content="first"):
    return hashlib.sha256(f"{name} {content}".encode()).hexdigest()


def relist(run, folder, **patterns):
    return list_members(run.store, open_source([str(folder)], **patterns), PLAN)


def score_blocks(
    run, number, *, fails=lambda name: None, attempt=1, blocks=None, masks=False, hashed=False, views=()
):  # fmt: skip
    """Commit blocks: a member has the status that `fails` says of its file's name, or a score made
    of its bytes; in the views, one, two … more than that.
    """
    for ref in read_blocks(run.store, number):
        if blocks is not None and ref.block not in blocks:
            continue
        members = read_block(run.store, ref)
        paths = [Path(uri) for uri in members["uri"].to_pylist()]
        digests = [hashlib.sha256(path.read_bytes()) for path in paths]
        facts = [ImageFileFacts(digest.hexdigest(), "JPEG", 300, 200) for digest in digests]
        statuses = [fails(path.name) or Status.OK for path in paths]
        outcomes, values, drawn = [], np.full(len(paths), np.nan, np.float32), [None] * len(paths)
        for place, status in enumerate(statuses):
            if status is not Status.OK:
                outcomes.append(DecodeResult(status, f"attempt {attempt}", None))
                continue
            outcomes.append(DecodeResult(status, None, facts[place]))
            values[place] = digests[place].digest()[0] / 8
            drawn[place] = np.full((4, 4), int(values[place]), np.uint8) if masks else None
        drawn_by = {NAME: drawn} if masks else {}
        found = [DetectorOutputs.clean(scores={NAME: values}, masks=drawn_by)]
        for more, view in enumerate(views, start=1):
            found.append(DetectorOutputs({OutputKey(view, NAME, SCORES): values + more}))
        for view in views[:1] if masks else ():
            found.append(DetectorOutputs({OutputKey(view, NAME, MASKS): drawn}))
        scored = judge(SPEC, outcomes, functools.reduce(DetectorOutputs.merge, found))
        if masks:
            run.write_sidecar("masks", number, ref.block, mask_rows(members["image_id"], scored))
        when = START + timedelta(hours=attempt)
        rows = result_rows(members, scored, attempt=attempt, scored_at=when)
        if hashed:  # As Touchstone 0.23 wrote it.
            hashes = ["f" * 16 if status is Status.OK else None for status in statuses]
            rows = rows.append_column("phash", pa.array(hashes, pa.string()))
        run.write_part(number, ref.block, rows)


def vectors_for(ids, attempt):
    """Embeddings that show the member and the attempt, exact in float32."""
    return np.stack([ids % 1000, ids % 777, np.full(len(ids), attempt)], axis=1).astype(np.float32)


def read_by_sql(run, *more):
    """The rows by the statement of docs/results.md, with more columns."""
    [statement] = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
    columns = ", ".join(["SELECT image_id", *more, "uri"])
    statement = statement.replace("SELECT image_id, uri", columns)
    return duckdb.sql(statement.replace("'run/", f"'{run.store.url}/")).to_arrow_table().to_pylist()
