"""What a run found, counted in one streaming pass over its current rows: the content of `summary.json`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import Status
from ray_app.images import NAMED_LIMIT
from ray_app.inference.batches import OWN_FAILURE
from ray_app.runs.declarations import DeclarationCounter
from ray_app.runs.profiles import COLUMNS as PROFILE
from ray_app.runs.profiles import ProfileCounter
from ray_app.runs.rows import with_reasons
from ray_app.runs.schema import SECOND_LOOK

EDGES = np.linspace(-12.0, 12.0, 49)  # log-odds; scores beyond are counted in the outermost bins
EXAMPLES = 3
_OVER_LIMITS = (Status.IMAGE_TOO_LARGE.value, Status.METADATA_TOO_LARGE.value)
TOP = 24
COLUMNS = [
    "image_id",
    "uri",
    "member",
    "status",
    "detail",
    "format",
    "flags",
    "scores",
    "score",
    "probability",
    "verdict",
    "verdict_reason",
    "provenance",
    "reused",
    SECOND_LOOK,
    *PROFILE,
]


def summarise(tables: Iterable[pa.Table], detectors: list[str]) -> dict[str, Any]:
    """Statuses with examples, verdicts, flags, formats, what files declare, what a profile says, score histograms, the highest scores."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("status", "verdict", "verdict_reason", "format", "flags", SECOND_LOOK)}
    is_cascade = False
    examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    histogram = {name: np.zeros(len(EDGES) - 1, np.int64) for name in ["ensemble", *detectors]}
    top: list[dict[str, Any]] = []
    declarations, profile = DeclarationCounter(), ProfileCounter()
    limits = Counter[str]()
    members = reused = own_failures = 0
    for table in tables:
        members += len(table)
        reused += pc.sum(table["reused"]).as_py() or 0
        is_cascade |= SECOND_LOOK in table.column_names
        table = with_reasons(table)
        for name, counter in counts.items():
            counter.update(_counted(table[name]) if name in table.column_names else {})
        own_failures += _own_failures(table)
        declarations.add(table)
        profile.add(table)
        _collect_examples(table, examples)
        limits.update(_crossed(table))
        for name, column in _score_columns(table, detectors):
            histogram[name] += np.histogram(np.clip(column, EDGES[0], EDGES[-1]), EDGES)[0]
        top = _highest(top, table)
    return {
        "members": members,
        "reused": reused,
        "statuses": _ordered(counts["status"]),
        "own_failures": own_failures,
        "examples": dict(examples),
        "refused_by_limits": _ordered(limits),
        "verdicts": {verdict: counts["verdict"][verdict] for verdict in ("real", "fake", "abstain")},
        "verdict_reasons": _ordered(counts["verdict_reason"]),
        **({"second_look": _second_look(counts)} if is_cascade else {}),
        "flags": _ordered(counts["flags"]),
        "formats": _ordered(counts["format"]),
        "provenance": declarations.counts(),
        **({"profile": told} if (told := profile.counts()) else {}),
        "histogram": {"edges": EDGES.tolist(), "counts": {name: column.tolist() for name, column in histogram.items()}},
        "top": top,
    }


def _second_look(counts: dict[str, Counter[str]]) -> dict[str, Any]:
    """How many images all members of a cascade looked at and why, and the share of those with a score that this is."""
    band, audit, scored = counts[SECOND_LOOK]["band"], counts[SECOND_LOOK]["audit"], counts["status"]["ok"]
    return {"band": band, "audit": audit, "share": (band + audit) / scored if scored else None}


def bottleneck(seconds: dict[str, float]) -> dict[str, Any] | None:
    """The stage that took most of the workers' time, and what to do about it."""
    busy = {stage: spent for stage, spent in seconds.items() if stage != "list"}
    total = sum(busy.values())
    if total <= 0:
        return None
    stage = max(busy, key=lambda name: busy[name])
    return {"stage": stage, "share": busy[stage] / total, "advice": _ADVICE[stage]}


_ADVICE = {
    "fetch": "reading from storage; run nearer to the bucket, or give more workers",
    "decode": "decoding images; add CPU cores: decoding grows with cores, whatever the GPU",
    "prepare": "resizing and cropping; add CPU cores, or allow --set resize=fast",
    "score": "the detectors themselves; add cores or a GPU, or take a lighter ensemble",
    "identify": "naming generators; a head is small, so this is a slow core",
    "describe": "predicting prompts; describe what is flagged alone, take fewer beams or a cheaper describer, or add cores or a GPU",
    "write": "writing results; is the run directory on slow storage?",
}


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return {item["values"]: item["counts"] for item in pc.value_counts(pc.drop_null(values.cast(pa.string()))).to_pylist()}


def _own_failures(table: pa.Table) -> int:
    """Rows on which Touchstone's own code failed: no child process, and so no file, can give that status."""
    crashed = pc.equal(table["status"].cast(pa.string()), Status.DECODER_CRASHED.value)
    return pc.sum(pc.and_(crashed, pc.starts_with(pc.fill_null(table["detail"], ""), OWN_FAILURE))).as_py() or 0


def _collect_examples(table: pa.Table, examples: dict[str, list[dict[str, Any]]]) -> None:
    failed = table.filter(pc.not_equal(table["status"].cast(pa.string()), "ok")).select(["status", "uri", "member", "detail"])
    for row in failed.slice(0, 2_000).to_pylist():
        status = row.pop("status")
        if len(examples[status]) < EXAMPLES:
            examples[status].append(row)


def _crossed(table: pa.Table) -> dict[str, int]:
    """How many rows each limit refused."""
    refused = table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(_OVER_LIMITS)))
    named = pc.extract_regex(refused["detail"].cast(pa.string()), NAMED_LIMIT)
    return _counted(pc.struct_field(named, "limit"))


def _score_columns(table: pa.Table, detectors: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    yield "ensemble", pc.drop_null(table["score"]).to_numpy()
    for name in detectors:
        yield name, pc.drop_null(pc.struct_field(table["scores"], name)).to_numpy()


def _highest(top: list[dict[str, Any]], table: pa.Table) -> list[dict[str, Any]]:
    scored = table.filter(pc.is_valid(table["score"])).select(["image_id", "uri", "member", "score", "probability", "verdict"])
    best = scored.take(pc.select_k_unstable(scored, TOP, sort_keys=[("score", "descending")])) if len(scored) > TOP else scored
    return sorted([*top, *best.to_pylist()], key=lambda row: -row["score"])[:TOP]


def _ordered(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())
