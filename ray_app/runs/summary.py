"""Count the rows of a run for `summary.json`.

`summarise` counts all rows in one pass. `count_changes` updates earlier counts by the rows that
changed since. `bottleneck` returns the stage that limits the speed of a run.
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
from ray_app.images.provenance.statement import describe_signer
from ray_app.inference.batch import OWN_FAILURE
from ray_app.runs import document, schema
from ray_app.runs.current import ChangedRows

S = TypeVar("S", bound=Section)

PROFILE_COLUMNS = ("predicted_generator", *schema.IDENTIFIED, "predicted_prompt", *schema.DESCRIBED)
MAX_PROFILE_EXAMPLES = 8  # Flagged images whose profile a summary repeats.
_PROFILE_EXAMPLE_COLUMNS = ("image_id", "uri", "member", "score", *PROFILE_COLUMNS)
C2PA_STATES = ("trusted", "intact", "invalid", "unreadable")
NO_VERDICT = "none"
EDGES = np.linspace(-12.0, 12.0, 49)  # Log-odds. The outermost bins include scores beyond them.
EXAMPLES = 3
# The maximum number of distinct findings that are counted: signers may choose any name.
MAX_FINDINGS = 200
_OVER_LIMITS = (Status.IMAGE_TOO_LARGE.value, Status.METADATA_TOO_LARGE.value)
TOP = 24
# The maximum of rows with the highest scores, by field of a summary.
_MAX_ROWS = {"top": TOP, "told": MAX_PROFILE_EXAMPLES}
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
    """Count rows of a run by status, verdict, format, score, and other columns.

    The result also has examples of statuses, the rows with the highest scores, and counts of the
    predicted generators and prompts.

    Args:
        tables: Tables of rows with the columns `COLUMNS`.
        detectors: The names of the run's detectors.

    Returns:
        The counts of all rows together.
    """
    zeros = {name: [0] * (len(EDGES) - 1) for name in ["ensemble", *detectors]}
    empty = document.RunCounts(
        verdicts=dict.fromkeys(("real", "fake", "abstain"), 0),
        histogram=document.Histogram(edges=EDGES.tolist(), counts=zeros),
    )
    return reduce(
        merge_counts,
        (_count_table(table, detectors) for table in tables),
        merge_counts(empty, empty),
    )


def _count_table(table: pa.Table, detectors: list[str]) -> document.RunCounts:
    """Count the rows of one table."""
    second_stage_counts = (
        _count_values(table[schema.SECOND_LOOK])
        if schema.SECOND_LOOK in table.column_names
        else None
    )
    crashed = pc.equal(table["status"].cast(pa.string()), Status.DECODER_CRASHED.value)
    # Rows on which Touchstone's own code failed. No child process, so no file, can cause this detail.
    n_own_failures = (
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
    histogram = {name: np.histogram(clipped, EDGES)[0].tolist() for name, clipped in values.items()}
    return document.RunCounts(
        members=len(table),
        statuses=_count_values(table["status"]),
        own_failures=n_own_failures,
        examples=_examples(table),
        refused_by_limits=_count_limits(table),
        findings=_count_values(table[schema.FINDING]),
        verdicts=_count_values(table["verdict"]),
        verdict_reasons=_count_values(table["verdict_reason"]),
        second_look=None
        if second_stage_counts is None
        else document.SecondLookSummary(
            band=second_stage_counts.get("band", 0),
            audit=second_stage_counts.get("audit", 0),
        ),
        flags=_count_values(table["flags"]),
        formats=_count_values(table["format"]),
        provenance=declarations(table),
        profile=_profile(table),
        histogram=document.Histogram(edges=EDGES.tolist(), counts=histogram),
        days=_days(table),
        top=_highest(table),
    )


def _days(table: pa.Table) -> dict[str, dict[str, int]]:
    """Count statuses and verdicts by the day on which rows were scored."""
    days = table["scored_at"].cast(pa.date32()).cast(pa.string())
    columns = pa.table(
        [days, *(table[name].cast(pa.string()) for name in ("status", "verdict"))],
        names=["day", "status", "verdict"],
    )
    counts_by_day = defaultdict[str, Counter[str]](Counter)
    for group in (
        columns.filter(pc.is_valid(days))
        .group_by(columns.column_names)
        .aggregate([([], "count_all")])
        .to_pylist()
    ):
        counts_by_day[group["day"]].update(
            {
                name: group["count_all"]
                for name in ("files", group["status"], group["verdict"])
                if name
            }
        )
    return {day: dict(counts) for day, counts in sorted(counts_by_day.items())}


def merge_counts(earlier: document.RunCounts, later: document.RunCounts) -> document.RunCounts:
    """Return the sum of the counts of two sets of rows.

    The rows of `later` must follow those of `earlier` in the run. The result is then the same as
    that of `summarise` for all these rows together.
    """
    both = _add_sections(earlier, later)
    if both.second_look is None:
        return both
    second_stage, scored = both.second_look.band + both.second_look.audit, both.scored
    return both.model_copy(
        update={
            "second_look": both.second_look.model_copy(
                update={"share": second_stage / scored if scored else None}
            )
        }
    )


def count_changes(
    before: document.RunCounts, changed: ChangedRows, detectors: list[str]
) -> document.RunCounts | None:
    """Update earlier counts of a run by the rows that changed since.

    Args:
        before: The earlier counts.
        changed: The rows that were added and removed since.
        detectors: The detectors of the run.

    Returns:
        The current counts. None if a removed row is among the examples or the highest scores: then
        all rows have to be counted, to find the row that replaces it.
    """
    removed = summarise((), detectors)
    for table in changed.removed(COLUMNS):
        if _has_listed(table, before):
            return None
        removed = merge_counts(removed, _count_table(table, detectors))
    added = summarise(changed.added(COLUMNS), detectors)
    return merge_counts(_subtract_sections(before, removed), added)


def _has_listed(table: pa.Table, counts: document.RunCounts) -> bool:
    """Return whether a list in the counts names one of these rows."""
    profile_examples = counts.profile.told if counts.profile else ()
    ids = pa.array(
        [row.image_id for row in counts.top] + [row.image_id for row in profile_examples],
        pa.int64(),
    )
    uris = pa.array(
        [example.uri for examples in counts.examples.values() for example in examples], pa.string()
    )
    is_listed = pc.or_(
        pc.is_in(table["image_id"], ids), pc.is_in(table["uri"].cast(pa.string()), uris)
    )
    return bool(pc.any(is_listed).as_py())


def _subtract_sections(total: S, part: S) -> S:
    """Return the counts of rows without some of them, which no list in the counts names."""
    return type(total)(
        **{
            name: _subtract(name, getattr(total, name), getattr(part, name))
            for name in type(total).model_fields
        }
    )


def _subtract(name: str, total: Any, part: Any) -> Any:
    if total is None or part is None or isinstance(total, bool):
        return total
    if isinstance(total, Section):
        return _subtract_sections(total, part)
    if name == "counts":  # Of a histogram.
        return {
            detector: [count - less for count, less in zip(counts, part[detector], strict=True)]
            if detector in part
            else counts
            for detector, counts in total.items()
        }
    if name == "days":
        days = {day: _subtract("day", counts, part.get(day, {})) for day, counts in total.items()}
        return {day: counts for day, counts in days.items() if counts}
    if name == "generators":
        flagged = Counter({(item.family, item.generator): item.flagged for item in total})
        flagged.subtract({(item.family, item.generator): item.flagged for item in part})
        return _generators(+flagged)
    if name in ("examples", *_MAX_ROWS) or not isinstance(total, Mapping | int):
        return total
    if isinstance(total, int):
        return total - part
    remaining = {key: count - part.get(key, 0) for key, count in total.items()}
    return {key: count for key, count in remaining.items() if count or name == "verdicts"}


def _add_sections(first: S, second: S) -> S:
    return type(first)(
        **{
            name: _add(name, getattr(first, name), getattr(second, name))
            for name in type(first).model_fields
        }
    )


def _add(name: str, first: Any, second: Any) -> Any:
    """Merge the values of a field of two sections.

    Numbers are added. Lists keep their first rows, or those with the highest scores.
    """
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, Section):
        return _add_sections(first, second)
    if name == "counts":  # Of a histogram.
        return {
            detector: [
                left + right
                for left, right in zip(first.get(detector, [0] * len(counts)), counts, strict=True)
            ]
            for detector, counts in second.items()
        }
    if name == "examples":
        return {
            status: [*first.get(status, ()), *second.get(status, ())][:EXAMPLES]
            for status in {**first, **second}
        }
    if name == "generators":
        flagged = Counter[tuple[str, str]]()
        for item in (*first, *second):
            flagged[item.family, item.generator] += item.flagged
        return _generators(flagged)
    if name in _MAX_ROWS:
        return sorted([*first, *second], key=lambda row: -row.score)[: _MAX_ROWS[name]]
    if name == "days":
        return {
            day: dict(Counter(first.get(day, {})) + Counter(second.get(day, {})))
            for day in sorted({**first, **second})
        }
    if isinstance(first, Mapping):
        counts = Counter(first)
        counts.update(second)
        return dict(
            counts.most_common(MAX_FINDINGS) if name == "findings" else counts.most_common()
        )
    return (
        first + second
        if isinstance(first, int) and not isinstance(first, bool)
        else first or second
    )


def bottleneck(seconds: Mapping[str, float]) -> document.Bottleneck | None:
    """Find the stage that took most of the workers' time, and how to make it faster.

    Args:
        seconds: The seconds of each stage, such as `decode`, summed over the workers. The stage
            `list` does not count.

    Returns:
        The stage, its fraction of the time, and the advice. None if no time was measured.
    """
    busy = {stage: time_s for stage, time_s in seconds.items() if stage != "list"}
    total = sum(busy.values())
    if total <= 0:
        return None
    stage = max(busy, key=lambda name: busy[name])
    return document.Bottleneck(stage=stage, share=busy[stage] / total, advice=_ADVICE[stage])


_ADVICE = {
    "fetch": "reading from storage; run closer to the bucket, or use more workers",
    "decode": "decoding images; add CPU cores: decoding scales with cores, with or without a GPU",
    "prepare": "resizing and cropping; add CPU cores, or, if images are resized exactly, --set resize=fast",
    "wait": "waiting for memory for large images; raise cluster.decode_bytes, or use nodes with more memory",
    "load": "loading detectors that do not fit together; raise cluster.worker_bytes, or use fewer detectors",
    "score": "the detectors themselves; add cores or a GPU, or use a lighter ensemble",
    "identify": "naming generators; a head is small, so this is a slow core",
    "describe": "predicting prompts; describe only flagged images, use fewer beams or a cheaper describer, or add cores or a GPU",
    "write": "writing results; check whether the run directory is on slow storage",
}


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return {
        item["values"]: item["counts"]
        for item in pc.value_counts(pc.drop_null(values.cast(pa.string()))).to_pylist()
    }


def _examples(table: pa.Table) -> dict[str, list[document.Example]]:
    """Return a few members of each status except `ok`."""
    examples: defaultdict[str, list[document.Example]] = defaultdict(list)
    failed = table.filter(pc.not_equal(table["status"].cast(pa.string()), "ok")).select(
        ["status", "uri", "member", "detail"]
    )
    for row in failed.slice(0, 2_000).to_pylist():
        status = row.pop("status")
        if len(examples[status]) < EXAMPLES:
            examples[status].append(document.Example(**row))
    return dict(examples)


def _count_limits(table: pa.Table) -> dict[str, int]:
    """Count the rows that each limit refused."""
    over_limits = table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(_OVER_LIMITS)))
    limits = pc.extract_regex(over_limits["detail"].cast(pa.string()), NAMED_LIMIT)
    return _count_values(pc.struct_field(limits, "limit"))


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
    """Count what image files declare about their own origin, such as "generated by a model".

    The JSON in `provenance` is searched as text, without parsing it. Text from an image file cannot
    imitate a key, because every quote in a value is escaped (`Provenance.row`). A file declares
    itself generated if the JSON ends with the key `ai_declared` and the value true.

    Args:
        table: Result rows with the columns `provenance` and `verdict`.

    Returns:
        The counts.
    """
    provenance = table["provenance"]
    declared = pc.fill_null(pc.ends_with(provenance, '"ai_declared":true}'), False)
    verdicts = pc.fill_null(table["verdict"].cast(pa.string()), NO_VERDICT)
    states = {
        state: pc.sum(pc.match_substring(provenance, f'"c2pa":{{"state":"{state}"')).as_py() or 0
        for state in C2PA_STATES
    }
    # The text is a JSON object of two fields: the state, and lists if any were checked.
    signed = pc.struct_field(
        pc.extract_regex(
            provenance,
            r'"c2pa":(?P<signed>\{"state":"(?:trusted|intact)"(?:,"trust_lists":\[[^\]]*\])?)',
        ),
        "signed",
    )
    signed = pc.binary_join_element_wise(signed, "}", "")
    return document.Declarations(
        stated=len(provenance) - provenance.null_count,
        declared=_count_values(verdicts.filter(declared)),
        undeclared=_count_values(verdicts.filter(pc.invert(declared))),
        c2pa={state: count for state, count in states.items() if count},
        signers={
            describe_signer(**json.loads(text)): count
            for text, count in _count_values(signed).items()
        },
    )


def _profile(table: pa.Table) -> document.ProfileSummary | None:
    """Summarise the profiles of flagged images.

    Other images do not count: an identifier names a generator for real images, too, which means
    nothing.

    Returns:
        None for rows of runs without a profile. `generators` are ordered by the number of flagged
        images. `unlike` counts images that are unlike any known generator, `silent` those without
        a result, and `described` those with a prompt. `told` has the images with the highest scores;
        of equal scores, the first in the archive.
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
    rows = flagged.select(
        [name for name in _PROFILE_EXAMPLE_COLUMNS if name in flagged.column_names]
    )
    best = rows.take(
        pc.sort_indices(rows, sort_keys=[("score", "descending")])[:MAX_PROFILE_EXAMPLES]
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
    """Return counts by family and name, most frequent first."""
    ranked = sorted(flagged.items(), key=lambda item: (-item[1], item[0]))
    return [
        document.GeneratorCount(family=family, generator=name, flagged=count)
        for (family, name), count in ranked
    ]
