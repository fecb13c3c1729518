"""What a run found: the counts in `summary.json`.

`summarise` counts rows in one pass, and `count_changes` adds the rows of the last manifests to the
counts before. `bottleneck` names the stage that limits a run.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.config import Section
from ray_app.errors import Status
from ray_app.images import NAMED_LIMIT
from ray_app.images.provenance.statement import standing
from ray_app.inference.batch import OWN_FAILURE
from ray_app.runs import document, schema
from ray_app.runs.current import ChangedRows

S = TypeVar("S", bound=Section)

PROFILE_COLUMNS = ("predicted_generator", *schema.IDENTIFIED, "predicted_prompt", *schema.DESCRIBED)
MOST_EXAMPLES = 8  # flagged images whose profile a summary repeats
_TOLD = ("image_id", "uri", "member", "score", *PROFILE_COLUMNS)
C2PA_STATES = ("trusted", "intact", "invalid", "unreadable")
NO_VERDICT = "none"
EDGES = np.linspace(-12.0, 12.0, 49)  # log-odds; scores beyond are counted in the outermost bins
EXAMPLES = 3
# distinct ones of a run that are counted: signers may call themselves whatever they like
MOST_FINDINGS = 200
_OVER_LIMITS = (Status.IMAGE_TOO_LARGE.value, Status.METADATA_TOO_LARGE.value)
TOP = 24
# rows with the highest scores, by the field of a summary
_MOST = {"top": TOP, "told": MOST_EXAMPLES}
COLUMNS = [
    "image_id",
    "uri",
    "member",
    "sha256",
    "status",
    "detail",
    "format",
    "flags",
    "scores",
    "score",
    "probability",
    schema.FINDING,
    "verdict",
    "verdict_reason",
    "provenance",
    "scored_at",
    schema.SECOND_LOOK,
    *PROFILE_COLUMNS,
]


def summarise(tables: Iterable[pa.Table], detectors: list[str]) -> document.RunCounts:
    """Statuses with examples, verdicts, flags, formats, what files declare, what a profile says,
    score histograms, the highest scores.
    """
    nothing = {name: [0] * (len(EDGES) - 1) for name in ["ensemble", *detectors]}
    empty = document.RunCounts(
        verdicts=dict.fromkeys(("real", "fake", "abstain"), 0),
        histogram=document.Histogram(edges=EDGES.tolist(), counts=nothing),
    )
    return reduce(joined, (_counts(table, detectors) for table in tables), joined(empty, empty))


def _counts(table: pa.Table, detectors: list[str]) -> document.RunCounts:
    """Those of one table."""
    looks = (
        _counted(table[schema.SECOND_LOOK]) if schema.SECOND_LOOK in table.column_names else None
    )
    crashed = pc.equal(table["status"].cast(pa.string()), Status.DECODER_CRASHED.value)
    # Rows on which Touchstone's own code failed: no child process, and so no file, can give that
    # status.
    own = (
        pc.sum(
            pc.and_(crashed, pc.starts_with(pc.fill_null(table["detail"], ""), OWN_FAILURE))
        ).as_py()
        or 0
    )
    scores = {
        "ensemble": table["score"],
        **{name: pc.struct_field(table["scores"], name) for name in detectors},
    }
    values = {
        name: np.clip(pc.drop_null(column).to_numpy(), EDGES[0], EDGES[-1])
        for name, column in scores.items()
    }
    histogram = {name: np.histogram(found, EDGES)[0].tolist() for name, found in values.items()}
    return document.RunCounts(
        members=len(table),
        statuses=_counted(table["status"]),
        own_failures=own,
        examples=_examples(table),
        refused_by_limits=_crossed(table),
        findings=_counted(table[schema.FINDING]),
        verdicts=_counted(table["verdict"]),
        verdict_reasons=_counted(table["verdict_reason"]),
        second_look=None
        if looks is None
        else document.SecondLookSummary(band=looks.get("band", 0), audit=looks.get("audit", 0)),
        flags=_counted(table["flags"]),
        formats=_counted(table["format"]),
        provenance=declarations(table),
        profile=_profile(table),
        histogram=document.Histogram(edges=EDGES.tolist(), counts=histogram),
        days=_days(table),
        top=_highest(table),
    )


def _days(table: pa.Table) -> dict[str, dict[str, int]]:
    """Statuses and verdicts by the day on which rows were made."""
    days = table["scored_at"].cast(pa.date32()).cast(pa.string())
    seen = pa.table(
        [days, *(table[name].cast(pa.string()) for name in ("status", "verdict"))],
        names=["day", "status", "verdict"],
    )
    found = defaultdict[str, Counter[str]](Counter)
    for one in (
        seen.filter(pc.is_valid(days))
        .group_by(seen.column_names)
        .aggregate([([], "count_all")])
        .to_pylist()
    ):
        found[one["day"]].update(
            {name: one["count_all"] for name in ("files", one["status"], one["verdict"]) if name}
        )
    return {day: dict(counts) for day, counts in sorted(found.items())}


def joined(earlier: document.RunCounts, later: document.RunCounts) -> document.RunCounts:
    """The counts of some rows and of those that follow them, as `summarise` counts them together."""
    both = _added_sections(earlier, later)
    if both.second_look is None:
        return both
    looked, scored = both.second_look.band + both.second_look.audit, both.scored
    return both.model_copy(
        update={
            "second_look": both.second_look.model_copy(
                update={"share": looked / scored if scored else None}
            )
        }
    )


def count_changes(
    before: document.RunCounts, changed: ChangedRows, detectors: list[str]
) -> document.RunCounts | None:
    """Return the counts of a run, by the counts before and the rows that changed since.

    Args:
        before: The counts of the rows before.
        changed: The rows that were added and removed since.
        detectors: The detectors of the run.

    Returns:
        The counts; None if a removed row is among the examples or the highest scores, so that only
        all rows together tell which row takes its position.
    """
    removed = summarise((), detectors)
    for table in changed.removed(COLUMNS):
        if _has_shown(table, before):
            return None
        removed = joined(removed, _counts(table, detectors))
    added = summarise(changed.added(COLUMNS), detectors)
    return joined(_less(before, removed), added)


def _has_shown(table: pa.Table, counts: document.RunCounts) -> bool:
    """Return whether counts name one of these rows."""
    told = counts.profile.told if counts.profile else ()
    ids = pa.array(
        [row.image_id for row in counts.top] + [row.image_id for row in told], pa.int64()
    )
    uris = pa.array([one.uri for some in counts.examples.values() for one in some], pa.string())
    is_shown = pc.or_(
        pc.is_in(table["image_id"], ids), pc.is_in(table["uri"].cast(pa.string()), uris)
    )
    return bool(pc.any(is_shown).as_py())


def _less(whole: S, part: S) -> S:
    """Return counts of rows without those of some of them, which no list names."""
    return type(whole)(
        **{
            name: _difference(name, getattr(whole, name), getattr(part, name))
            for name in type(whole).model_fields
        }
    )


def _difference(name: str, whole: Any, part: Any) -> Any:
    if whole is None or part is None or isinstance(whole, bool):
        return whole
    if isinstance(whole, Section):
        return _less(whole, part)
    if name == "counts":  # of a histogram
        return {
            detector: [count - less for count, less in zip(counts, part[detector], strict=True)]
            if detector in part
            else counts
            for detector, counts in whole.items()
        }
    if name == "days":
        days = {day: _difference("day", counts, part.get(day, {})) for day, counts in whole.items()}
        return {day: counts for day, counts in days.items() if counts}
    if name == "generators":
        flagged = Counter({(one.family, one.generator): one.flagged for one in whole})
        flagged.subtract({(one.family, one.generator): one.flagged for one in part})
        return _generators(+flagged)
    if name in ("examples", *_MOST) or not isinstance(whole, Mapping | int):
        return whole
    if isinstance(whole, int):
        return whole - part
    left = {key: count - part.get(key, 0) for key, count in whole.items()}
    return {key: count for key, count in left.items() if count or name == "verdicts"}


def _added_sections(one: S, other: S) -> S:
    return type(one)(
        **{
            name: _added(name, getattr(one, name), getattr(other, name))
            for name in type(one).model_fields
        }
    )


def _added(name: str, one: Any, other: Any) -> Any:
    """What two sections have in a field, together: numbers are added, of lists the first or the
    highest stay.
    """
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, Section):
        return _added_sections(one, other)
    if name == "counts":  # of a histogram
        return {
            detector: [
                left + right
                for left, right in zip(one.get(detector, [0] * len(counts)), counts, strict=True)
            ]
            for detector, counts in other.items()
        }
    if name == "examples":
        return {
            status: [*one.get(status, ()), *other.get(status, ())][:EXAMPLES]
            for status in {**one, **other}
        }
    if name == "generators":
        flagged = Counter[tuple[str, str]]()
        for item in (*one, *other):
            flagged[item.family, item.generator] += item.flagged
        return _generators(flagged)
    if name in _MOST:
        return sorted([*one, *other], key=lambda row: -row.score)[: _MOST[name]]
    if name == "days":
        return {
            day: dict(Counter(one.get(day, {})) + Counter(other.get(day, {})))
            for day in sorted({**one, **other})
        }
    if isinstance(one, Mapping):
        counts = Counter(one)
        counts.update(other)
        return dict(
            counts.most_common(MOST_FINDINGS) if name == "findings" else counts.most_common()
        )
    return one + other if isinstance(one, int) and not isinstance(one, bool) else one or other


def bottleneck(seconds: Mapping[str, float]) -> document.Bottleneck | None:
    """The stage that took most of the workers' time, and what to do about it."""
    busy = {stage: spent for stage, spent in seconds.items() if stage != "list"}
    total = sum(busy.values())
    if total <= 0:
        return None
    stage = max(busy, key=lambda name: busy[name])
    return document.Bottleneck(stage=stage, share=busy[stage] / total, advice=_ADVICE[stage])


_ADVICE = {
    "fetch": "reading from storage; run nearer to the bucket, or give more workers",
    "decode": "decoding images; add CPU cores: decoding grows with cores, whatever the GPU",
    "prepare": "resizing and cropping; add CPU cores, or allow --set resize=fast",
    "wait": "waiting for memory for large images; raise cluster.decode_bytes, or use nodes with more memory",
    "load": "loading detectors that do not fit together; raise cluster.worker_bytes, or use fewer detectors",
    "score": "the detectors themselves; add cores or a GPU, or take a lighter ensemble",
    "identify": "naming generators; a head is small, so this is a slow core",
    "describe": "predicting prompts; describe only what is flagged, take fewer beams or a cheaper describer, or add cores or a GPU",
    "write": "writing results; is the run directory on slow storage?",
}


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return {
        item["values"]: item["counts"]
        for item in pc.value_counts(pc.drop_null(values.cast(pa.string()))).to_pylist()
    }


def _examples(table: pa.Table) -> dict[str, list[document.Example]]:
    """A few members of each status but `ok`."""
    found: defaultdict[str, list[document.Example]] = defaultdict(list)
    failed = table.filter(pc.not_equal(table["status"].cast(pa.string()), "ok")).select(
        ["status", "uri", "member", "detail"]
    )
    for row in failed.slice(0, 2_000).to_pylist():
        status = row.pop("status")
        if len(found[status]) < EXAMPLES:
            found[status].append(document.Example(**row))
    return dict(found)


def _crossed(table: pa.Table) -> dict[str, int]:
    """How many rows each limit refused."""
    refused = table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(_OVER_LIMITS)))
    named = pc.extract_regex(refused["detail"].cast(pa.string()), NAMED_LIMIT)
    return _counted(pc.struct_field(named, "limit"))


def _highest(table: pa.Table) -> list[document.TopRow]:
    scored = table.filter(pc.is_valid(table["score"])).select(
        ["image_id", "uri", "member", "score", "probability", "verdict", "sha256"]
    )
    best = (
        scored.take(pc.select_k_unstable(scored, TOP, sort_keys=[("score", "descending")]))
        if len(scored) > TOP
        else scored
    )
    return sorted((document.TopRow(**row) for row in best.to_pylist()), key=lambda row: -row.score)


def declarations(table: pa.Table) -> document.Declarations:
    """What files state of their own origin, by the columns `provenance` and `verdict`: `stated`:
    rows with any statement; `declared` and `undeclared`: rows per verdict; `c2pa`: rows per state
    of a manifest; `signers`: rows with a sound one by where its signer stands.

    No JSON is parsed: a row's is this package's own (`Provenance.row`), and every quote inside a
    value is escaped, so that what stands between bare quotes is a key or a closed word, and
    `ai_declared` comes last.
    """
    said = table["provenance"]
    declared = pc.fill_null(pc.ends_with(said, '"ai_declared":true}'), False)
    verdicts = pc.fill_null(table["verdict"].cast(pa.string()), NO_VERDICT)
    states = {
        state: pc.sum(pc.match_substring(said, f'"c2pa":{{"state":"{state}"')).as_py() or 0
        for state in C2PA_STATES
    }
    # As a JSON object of two fields: state, and lists where any were asked.
    signed = pc.struct_field(
        pc.extract_regex(
            said, r'"c2pa":(?P<signed>\{"state":"(?:trusted|intact)"(?:,"trust_lists":\[[^\]]*\])?)'
        ),
        "signed",
    )
    signed = pc.binary_join_element_wise(signed, "}", "")
    return document.Declarations(
        stated=len(said) - said.null_count,
        declared=_counted(verdicts.filter(declared)),
        undeclared=_counted(verdicts.filter(pc.invert(declared))),
        c2pa={state: count for state, count in states.items() if count},
        signers={standing(**json.loads(found)): count for found, count in _counted(signed).items()},
    )


def _profile(table: pa.Table) -> document.ProfileSummary | None:
    """What a profile says of flagged images alone: an identifier names a generator for real images
    too, and means nothing by it. None for rows of runs without a profile.

    `generators` by how many are flagged, those `unlike` any known one, those `silent`: with no say;
    `described`: with words; `told`: the highest scores with what was said of them, of equal ones
    the first of the archive.
    """
    identifies, describes = (
        ("generator_confidence" in table.column_names),
        ("prompt_likelihood" in table.column_names),
    )
    if not (identifies or describes):
        return None
    flagged = table.filter(
        pc.fill_null(pc.equal(table["verdict"].cast(pa.string()), "fake"), False)
    )
    silent = flagged["generator_confidence"].null_count if identifies else 0
    pairs = (
        zip(
            flagged["generator_family"].to_pylist(),
            flagged["predicted_generator"].to_pylist(),
            strict=True,
        )
        if identifies
        else ()
    )
    rows = flagged.select([name for name in _TOLD if name in flagged.column_names])
    best = rows.take(
        pc.sort_indices(rows, sort_keys=[("score", "descending")])[:MOST_EXAMPLES]
    ).to_pylist()
    return document.ProfileSummary(
        flagged=len(flagged),
        identified=identifies,
        generators=_generators(Counter(pair for pair in pairs if pair[1] is not None)),
        unlike=flagged["predicted_generator"].null_count - silent if identifies else 0,
        silent=silent,
        describes=describes,
        described=len(flagged) - flagged["predicted_prompt"].null_count if describes else 0,
        told=[document.ProfileExample(**row) for row in best],
    )


def _generators(flagged: Mapping[tuple[str, str], int]) -> list[document.GeneratorCount]:
    """Counts by family and name, most frequent first."""
    ranked = sorted(flagged.items(), key=lambda item: (-item[1], item[0]))
    return [
        document.GeneratorCount(family=family, generator=name, flagged=count)
        for (family, name), count in ranked
    ]
