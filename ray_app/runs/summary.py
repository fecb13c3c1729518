"""What a run found (`summarise`), counted in one streaming pass over its current rows: the content of `summary.json`.

`ProfileCounter` counts predicted generators and prompts, `DeclarationCounter` the files that declare a generative model in their metadata,
`bottleneck` names the stage that limits a run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import Status
from ray_app.images import NAMED_LIMIT
from ray_app.inference.batch import OWN_FAILURE
from ray_app.runs import document, schema
from ray_app.runs.rows import with_reasons

PROFILE_COLUMNS = ("predicted_generator", *schema.IDENTIFIED, "predicted_prompt", *schema.DESCRIBED)
MOST_EXAMPLES = 8  # flagged images whose profile a summary repeats
_TOLD = ("image_id", "uri", "member", "score", *PROFILE_COLUMNS)


class ProfileCounter:
    """Counts table after table, of flagged images alone: an identifier names a generator for real images too, and means nothing by it."""

    def __init__(self) -> None:
        self._flagged = self._unlike = self._silent = self._described = 0
        self._is_identified = self._is_described = False
        self._named: Counter[tuple[str, str]] = Counter()
        self._told: list[document.ProfileExample] = []

    def add(self, table: pa.Table) -> None:
        """Count the columns of result rows; tables of runs without a profile count as nothing."""
        names = table.column_names
        self._is_identified |= "generator_confidence" in names
        self._is_described |= "prompt_likelihood" in names
        if not (self._is_identified or self._is_described):
            return
        flagged = table.filter(pc.fill_null(pc.equal(table["verdict"].cast(pa.string()), "fake"), False))
        self._flagged += len(flagged)
        if "generator_confidence" in names:
            self._count_names(flagged)
        if "prompt_likelihood" in names:
            self._described += len(flagged) - flagged["predicted_prompt"].null_count
        self._told = _profiles_highest(self._told, flagged)

    def _count_names(self, flagged: pa.Table) -> None:
        self._silent += flagged["generator_confidence"].null_count
        self._unlike += flagged["predicted_generator"].null_count - flagged["generator_confidence"].null_count
        named = flagged.filter(pc.is_valid(flagged["predicted_generator"]))
        pairs = zip(named["generator_family"].to_pylist(), named["predicted_generator"].to_pylist(), strict=True)
        self._named.update(pairs)

    def counts(self) -> document.ProfileSummary | None:
        """None without a profile. `flagged` images; of them `generators` (family, generator, flagged), most frequent first, those `unlike`
        any known one, those `silent`: with no say; `described`: with words; `told`: the highest scores with what was said of them.
        """
        if not (self._is_identified or self._is_described):
            return None
        ranked = sorted(self._named.items(), key=lambda item: (-item[1], item[0]))
        return document.ProfileSummary(
            flagged=self._flagged,
            identified=self._is_identified,
            generators=[document.GeneratorCount(family=family, generator=name, flagged=count) for (family, name), count in ranked],
            unlike=self._unlike,
            silent=self._silent,
            describes=self._is_described,
            described=self._described,
            told=self._told,
        )


def _profiles_highest(told: Sequence[document.ProfileExample], flagged: pa.Table) -> list[document.ProfileExample]:
    """The highest scores so far with what was said of them; of equal ones the first of the archive."""
    rows = flagged.select([name for name in _TOLD if name in flagged.column_names])
    best = rows.take(pc.sort_indices(rows, sort_keys=[("score", "descending")])[:MOST_EXAMPLES]).to_pylist()
    return sorted([*told, *(document.ProfileExample(**row) for row in best)], key=lambda row: -row.score)[:MOST_EXAMPLES]


C2PA_STATES = ("trusted", "intact", "invalid", "unreadable")
# Declarations are counted on columns, no JSON is parsed: a row's JSON is this package's own (`Provenance.row`), and every quote inside a
# value is escaped, so that what stands between bare quotes is a key or a closed word, and `ai_declared` comes last.
NO_VERDICT = "none"


class DeclarationCounter:
    """Counts table after table."""

    def __init__(self) -> None:
        self._stated = 0
        self._verdicts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._states: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Count the columns `provenance` and `verdict` of result rows."""
        said = table["provenance"]
        self._stated += len(said) - said.null_count
        declared = pc.fill_null(pc.ends_with(said, '"ai_declared":true}'), False)
        verdicts = pc.fill_null(table["verdict"].cast(pa.string()), NO_VERDICT)
        for is_declared, counter in self._verdicts.items():
            some = verdicts.filter(declared if is_declared else pc.invert(declared))
            counter.update({item["values"]: item["counts"] for item in pc.value_counts(some).to_pylist()})
        for state in C2PA_STATES:
            self._states[state] += pc.sum(pc.match_substring(said, f'"c2pa":{{"state":"{state}"')).as_py() or 0

    def counts(self) -> document.Declarations:
        """`stated`: rows with any statement; `declared` and `undeclared`: rows per verdict; `c2pa`: rows per state of a manifest."""
        return document.Declarations(
            stated=self._stated,
            declared=dict(self._verdicts[True]),
            undeclared=dict(self._verdicts[False]),
            c2pa={state: count for state, count in self._states.items() if count},
        )


EDGES = np.linspace(-12.0, 12.0, 49)  # log-odds; scores beyond are counted in the outermost bins
EXAMPLES = 3
_OVER_LIMITS = (Status.IMAGE_TOO_LARGE.value, Status.METADATA_TOO_LARGE.value)
TOP = 24
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
    "verdict",
    "verdict_reason",
    "provenance",
    "reused",
    schema.SECOND_LOOK,
    *PROFILE_COLUMNS,
]


def summarise(tables: Iterable[pa.Table], detectors: list[str]) -> document.RunCounts:
    """Statuses with examples, verdicts, flags, formats, what files declare, what a profile says, score histograms, the highest scores."""
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("status", "verdict", "verdict_reason", "format", "flags", schema.SECOND_LOOK)
    }
    is_cascade = False
    examples: defaultdict[str, list[document.Example]] = defaultdict(list)
    histogram = {name: np.zeros(len(EDGES) - 1, np.int64) for name in ["ensemble", *detectors]}
    top: list[document.TopRow] = []
    declarations, profile = DeclarationCounter(), ProfileCounter()
    limits = Counter[str]()
    members = reused = own_failures = 0
    for table in tables:
        members += len(table)
        reused += pc.sum(table["reused"]).as_py() or 0
        is_cascade |= schema.SECOND_LOOK in table.column_names
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
    return document.RunCounts(
        members=members,
        reused=reused,
        statuses=_ordered(counts["status"]),
        own_failures=own_failures,
        examples=dict(examples),
        refused_by_limits=_ordered(limits),
        verdicts={verdict: counts["verdict"][verdict] for verdict in ("real", "fake", "abstain")},
        verdict_reasons=_ordered(counts["verdict_reason"]),
        second_look=_second_look(counts) if is_cascade else None,
        flags=_ordered(counts["flags"]),
        formats=_ordered(counts["format"]),
        provenance=declarations.counts(),
        profile=profile.counts(),
        histogram=document.Histogram(edges=EDGES.tolist(), counts={name: column.tolist() for name, column in histogram.items()}),
        top=top,
    )


def joined(earlier: document.RunCounts, later: document.RunCounts) -> document.RunCounts:
    """The counts of some rows and of those that follow them, as `summarise` counts them together."""
    looks = [one.second_look for one in (earlier, later) if one.second_look is not None]
    ok = earlier.statuses.get("ok", 0) + later.statuses.get("ok", 0)
    band, audit = sum(one.band for one in looks), sum(one.audit for one in looks)
    said, more = earlier.provenance, later.provenance
    profiles = [one.profile for one in (earlier, later) if one.profile is not None]
    examples = {status: list(some) for status, some in earlier.examples.items()}
    for status, some in later.examples.items():
        examples[status] = [*examples.get(status, []), *some][:EXAMPLES]
    histogram = {name: _added(earlier.histogram.counts.get(name), counts) for name, counts in later.histogram.counts.items()}
    return document.RunCounts(
        members=earlier.members + later.members,
        reused=earlier.reused + later.reused,
        statuses=_summed(earlier.statuses, later.statuses),
        own_failures=earlier.own_failures + later.own_failures,
        examples=examples,
        refused_by_limits=_summed(earlier.refused_by_limits, later.refused_by_limits),
        verdicts={verdict: count + later.verdicts[verdict] for verdict, count in earlier.verdicts.items()},
        verdict_reasons=_summed(earlier.verdict_reasons, later.verdict_reasons),
        second_look=document.SecondLookSummary(band=band, audit=audit, share=(band + audit) / ok if ok else None) if looks else None,
        flags=_summed(earlier.flags, later.flags),
        formats=_summed(earlier.formats, later.formats),
        provenance=document.Declarations(
            stated=said.stated + more.stated,
            declared=_summed(said.declared, more.declared),
            undeclared=_summed(said.undeclared, more.undeclared),
            c2pa=_summed(said.c2pa, more.c2pa),
        ),
        profile=_joined_profiles(profiles),
        histogram=document.Histogram(edges=later.histogram.edges, counts=histogram),
        top=sorted([*earlier.top, *later.top], key=lambda row: -row.score)[:TOP],
    )


def _summed(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return _ordered(Counter(one) + Counter(other))


def _added(one: Sequence[int] | None, other: Sequence[int]) -> list[int]:
    return list(other) if one is None else [left + right for left, right in zip(one, other, strict=True)]


def _joined_profiles(profiles: Sequence[document.ProfileSummary]) -> document.ProfileSummary | None:
    if len(profiles) < 2:
        return profiles[0] if profiles else None
    one, other = profiles
    named = Counter({(item.family, item.generator): item.flagged for item in one.generators})
    named.update({(item.family, item.generator): item.flagged for item in other.generators})
    ranked = sorted(named.items(), key=lambda item: (-item[1], item[0]))
    return document.ProfileSummary(
        flagged=one.flagged + other.flagged,
        identified=one.identified or other.identified,
        generators=[document.GeneratorCount(family=family, generator=name, flagged=count) for (family, name), count in ranked],
        unlike=one.unlike + other.unlike,
        silent=one.silent + other.silent,
        describes=one.describes or other.describes,
        described=one.described + other.described,
        told=sorted([*one.told, *other.told], key=lambda row: -row.score)[:MOST_EXAMPLES],
    )


def _second_look(counts: dict[str, Counter[str]]) -> document.SecondLookSummary:
    """How many images all members of a cascade looked at and why, and the share of those with a score that this is."""
    band, audit, scored = counts[schema.SECOND_LOOK]["band"], counts[schema.SECOND_LOOK]["audit"], counts["status"]["ok"]
    return document.SecondLookSummary(band=band, audit=audit, share=(band + audit) / scored if scored else None)


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
    "score": "the detectors themselves; add cores or a GPU, or take a lighter ensemble",
    "identify": "naming generators; a head is small, so this is a slow core",
    "describe": "predicting prompts; describe only what is flagged, take fewer beams or a cheaper describer, or add cores or a GPU",
    "write": "writing results; is the run directory on slow storage?",
}


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    values = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    return {item["values"]: item["counts"] for item in pc.value_counts(pc.drop_null(values.cast(pa.string()))).to_pylist()}


def _own_failures(table: pa.Table) -> int:
    """Rows on which Touchstone's own code failed: no child process, and so no file, can give that status."""
    crashed = pc.equal(table["status"].cast(pa.string()), Status.DECODER_CRASHED.value)
    return pc.sum(pc.and_(crashed, pc.starts_with(pc.fill_null(table["detail"], ""), OWN_FAILURE))).as_py() or 0


def _collect_examples(table: pa.Table, examples: defaultdict[str, list[document.Example]]) -> None:
    failed = table.filter(pc.not_equal(table["status"].cast(pa.string()), "ok")).select(["status", "uri", "member", "detail"])
    for row in failed.slice(0, 2_000).to_pylist():
        status = row.pop("status")
        if len(examples[status]) < EXAMPLES:
            examples[status].append(document.Example(**row))


def _crossed(table: pa.Table) -> dict[str, int]:
    """How many rows each limit refused."""
    refused = table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(_OVER_LIMITS)))
    named = pc.extract_regex(refused["detail"].cast(pa.string()), NAMED_LIMIT)
    return _counted(pc.struct_field(named, "limit"))


def _score_columns(table: pa.Table, detectors: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    yield "ensemble", pc.drop_null(table["score"]).to_numpy()
    for name in detectors:
        yield name, pc.drop_null(pc.struct_field(table["scores"], name)).to_numpy()


def _highest(top: list[document.TopRow], table: pa.Table) -> list[document.TopRow]:
    scored = table.filter(pc.is_valid(table["score"])).select(["image_id", "uri", "member", "score", "probability", "verdict", "sha256"])
    best = scored.take(pc.select_k_unstable(scored, TOP, sort_keys=[("score", "descending")])) if len(scored) > TOP else scored
    return sorted([*top, *(document.TopRow(**row) for row in best.to_pylist())], key=lambda row: -row.score)[:TOP]


def _ordered(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())
