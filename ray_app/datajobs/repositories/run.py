"""`touchstone data collect --git`: `collect_repositories` reads the list, examines what its rules choose, decides, and writes what stays.

images/<source>/…   the files, named by the first 16 digits of their SHA-256; quarters of sheets as PNG
index.parquet       a row for each, labelled: what `touchstone data index`, `score`, `evaluate` and `detectors fit` take
dropped.parquet     a row for each file that a rule chose and that is not there, with the reason and what it repeats
summary.json        the figures of each row of the list, and `index_sha256`
collect.json        whose directory it is
parts/…             what was found in each row's files: the same command does not decode them again

Interrupted, the same command goes on.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.archives.manifest import parquet_bytes
from ray_app.cluster.progress import Progress
from ray_app.datajobs.repositories import candidates
from ray_app.datajobs.repositories.image_rules import ImageRule, RepositoriesConfig, read_refused, read_rules
from ray_app.datajobs.repositories.mirrors import Mirror, Mirrors, TrackedFile
from ray_app.errors import ClusterError, ConfigError, resumable
from ray_app.images import facts
from ray_app.reports import format as wording
from ray_app.runs.directory import claim_directory
from ray_app.storage import Lease, Store, canonical, strip_secrets

_IMAGES, _PARTS = "images", "parts"
_IDENTITY = {"format": 1, "form": "repositories"}
_WIDTH = 11
INDEX = pa.schema(
    [("uri", pa.string()), ("sha256", pa.string()), ("label", pa.string()), ("generator", pa.string()), ("group", pa.string()),
     ("split", pa.string()), ("source", pa.string()), ("family", pa.string()), ("camera", pa.string()), ("licence", pa.string()),
     ("covers_pictures", pa.bool_()), ("graphics", pa.bool_()), ("path", pa.string()), ("repo", pa.string()), ("commit", pa.string()),
     ("sheet", pa.string()), ("quarter", pa.int8()), ("format", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
     ("quality", pa.int32()), ("size_bytes", pa.int64()), ("phash", pa.string())]
)  # fmt: skip
_DROPPED = pa.schema([(name, pa.string()) for name in ("source", "repo", "commit", "path", "reason", "of")])


@dataclass(frozen=True)
class _Chosen:
    """A rule with what it chooses at its commit."""

    rule: ImageRule
    mirror: Mirror
    files: Sequence[TrackedFile]


def collect_repositories(config: RepositoriesConfig) -> dict[str, Any]:
    """Collect what `config.rules` choose into `config.out`; returns the content of `summary.json`.

    Raises ConfigError for a list that is none, for a rule that chooses nothing, and for repositories and commits that are gone, unless
    `allow_missing`; StorageError for a repository that is damaged; IdentityError for another command's directory; KeyboardInterrupt.
    """
    facts.require_perceptual_hash()
    rules, (refused, digest) = read_rules(config.rules), read_refused(config.refuse)
    store = Store.open(canonical(config.out))
    chosen, missing = _chosen(config, rules)
    if missing and not config.allow_missing:
        told = "; ".join(f"{one['repo']} {one['commit']} ({one['why']})" for one in missing)
        raise ConfigError(
            f"{len(missing)} commits cannot be had: {told}", hint="name others in the list, or build without them: --allow-missing"
        )
    with Lease(store, unguarded=config.unguarded) as lease, resumable(KeyboardInterrupt, ClusterError):
        claim_directory(store, "collect.json", _IDENTITY, same="form")
        found = _examined(store, chosen, refused, digest)
        rows = [row for part in found for row in part]
        owners = [one for one, part in zip(chosen, found, strict=True) for _ in part]
        decision = candidates.decide(rows)
        kept = [place for place, reason in enumerate(decision.reasons) if reason is None]
        if not kept:
            raise ConfigError(f"{strip_secrets(config.rules)}: no image stays", hint="other rules in the list?")
        lease.check()
        table = _index([owners[place].rule for place in kept], [rows[place] for place in kept])
        _write_images(store, [(owners[place], rows[place]) for place in kept])
        dropped = _dropped(owners, rows, decision)
        store.write("dropped.parquet", parquet_bytes(dropped))
        store.write("index.parquet", parquet_bytes(table))
        summary = _summary(config, chosen, found, decision, missing) | {"index_sha256": index_digest(table), **lease.facts()}
        store.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return summary


def index_digest(table: pa.Table) -> str:
    """SHA-256 over the sorted lines (id, label, source, generator, family, licence) of an index: the same on every machine, in any order.

    The id is a file's SHA-256, and of a quarter `<its sheet's>:<0 … 3>`.
    """
    names = ("label", "source", "generator", "family", "licence")
    lines = ("\t".join([candidates.canonical_id(row), *(row[name] for name in names)]) for row in table.to_pylist())
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def repositories_lines(summary: Mapping[str, Any]) -> list[str]:
    """What is there, what is not and why, and last the commands to go on with."""
    return [f"{label:{_WIDTH}}{text}" for label, text in _summary_lines(summary)]


def _chosen(config: RepositoriesConfig, rules: Sequence[ImageRule]) -> tuple[list[_Chosen], list[dict[str, Any]]]:
    """Every rule with its files, in the list's order, and the commits that are gone."""
    mirrors = Mirrors(Path(config.mirror), config.git_host)
    commits: dict[str, list[str]] = {}
    for rule in rules:
        commits.setdefault(rule.repo, []).append(rule.commit)
    had = {repo: mirrors.get(repo, wanted) for repo, wanted in commits.items()}
    missing: list[dict[str, Any]] = []
    for repo, (_, gone) in had.items():
        for commit, why in gone.items():
            sources = [rule.source for rule in rules if (rule.repo, rule.commit) == (repo, commit)]
            missing.append({"repo": repo, "commit": commit, "why": why, "sources": sources})
    found = []
    for rule in rules:
        mirror, gone = had[rule.repo]
        if mirror is None or rule.commit in gone:
            continue
        files = [file for file in mirror.files(rule.commit) if rule.chooses(file.path)]
        if not files:
            hint = f"see its paths: git --git-dir {mirror.at} ls-tree -r {rule.commit}"
            raise ConfigError(f"{rule.repo}: no path matches {rule.path_rule!r}", hint=hint)
        found.append(_Chosen(rule, mirror, mirror.sized(files)))
    return found, missing


def _examined(store: Store, chosen: Sequence[_Chosen], refused: frozenset[str], digest: str) -> list[list[candidates.Row]]:
    """The candidates of each rule, in the order of their paths; those of an earlier command are read from its part."""
    progress = Progress(sum(len(one.files) for one in chosen), name="collect")
    found = []
    try:
        for one in chosen:
            part = f"{_PARTS}/{one.rule.source}-{one.rule.digest(digest)[:16]}.parquet"
            if store.exists(part):
                rows = pq.read_table(io.BytesIO(store.read(part))).to_pylist()
                progress.advance(len(one.files), 0)
            else:
                rows = []
                for row in candidates.candidates_of(one.rule, one.mirror, one.files, refused):
                    rows.append(row)
                    progress.advance(not row["quarter"], row["reason"] not in (None, "over_cap"))
                places = {file.path: place for place, file in enumerate(one.files)}
                rows.sort(key=lambda row: (places[row["path"]], row["quarter"] or 0))
                store.write(part, parquet_bytes(pa.Table.from_pylist(rows, candidates.CANDIDATE)))
            found.append(rows)
    finally:
        progress.close()
    return found


def _place(rule: ImageRule, row: candidates.Row) -> str:
    return f"{_IMAGES}/{rule.source}/{row['sha256'][:16]}.{candidates.ending(row['format'])}"


def _index(rules: Sequence[ImageRule], rows: Sequence[candidates.Row]) -> pa.Table:
    """A row of INDEX for each picture that stays; `group` is the family, which no split divides."""
    found = []
    for rule, row in zip(rules, rows, strict=True):
        labels = {"uri": _place(rule, row), "generator": rule.generator, "group": rule.family}
        camera = rule.made_by if rule.label == "real" else None
        found.append({**rule.facts(), **row, **labels, "camera": camera})
    return pa.Table.from_pylist(found, INDEX)


def _dropped(owners: Sequence[_Chosen], rows: Sequence[candidates.Row], decision: candidates.Decision) -> pa.Table:
    found = []
    for place, (reason, of) in enumerate(zip(decision.reasons, decision.of, strict=True)):
        if reason is not None:
            rule, path = owners[place].rule, rows[place]["path"]
            earlier = None if of is None else f"{owners[of].rule.source}/{rows[of]['path']}"
            found.append({**rule.facts(), "path": path, "reason": reason, "of": earlier})
    return pa.Table.from_pylist(found, _DROPPED)


def _write_images(store: Store, kept: Sequence[tuple[_Chosen, candidates.Row]]) -> None:
    """Write the files that are not there yet, and remove those that an earlier command wrote and this list does not have."""
    if store.exists("index.parquet"):
        earlier = set(pq.read_table(io.BytesIO(store.read("index.parquet")), columns=["uri"])["uri"].to_pylist())
        for place in sorted(earlier - {_place(one.rule, row) for one, row in kept}):
            store.delete(place)
    progress = Progress(len(kept), name="write")
    try:
        for one, group in groupby(kept, key=itemgetter(0)):
            there = store.sizes(f"{_IMAGES}/{one.rule.source}")
            rows = [row for _, row in group]
            absent = [row for row in rows if there.get(_place(one.rule, row).rpartition("/")[2]) != row["size_bytes"]]
            progress.advance(len(rows) - len(absent), 0)
            for row, data in _contents(one, absent):
                store.write(_place(one.rule, row), data)
                progress.advance(1, 0)
    finally:
        progress.close()


def _contents(one: _Chosen, rows: Sequence[candidates.Row]) -> Iterator[tuple[candidates.Row, bytes]]:
    by_file = [list(group) for _, group in groupby(rows, key=itemgetter("path"))]
    files = [TrackedFile(group[0]["path"], group[0]["blob"]) for group in by_file]
    for group, data in zip(by_file, one.mirror.contents(files), strict=True):
        parts = {None: data} if group[0]["sheet"] is None else dict(enumerate(candidates.cut(data)))
        yield from ((row, parts[row["quarter"]]) for row in group)


def _summary(
    config: RepositoriesConfig,
    chosen: Sequence[_Chosen],
    found: Sequence[Sequence[candidates.Row]],
    decision: candidates.Decision,
    missing: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    sources: list[dict[str, Any]] = []
    labels, start = Counter[str](), 0
    for one, rows in zip(chosen, found, strict=True):
        counts = candidates.counted(decision.reasons[start : start + len(rows)])
        start += len(rows)
        labels[one.rule.label] += counts["kept"]
        sources.append({**one.rule.facts(), "files": len(one.files), "kept": counts.pop("kept"), "dropped": counts})
    totals = candidates.counted(decision.reasons)
    return {
        "schema": 1,
        "rules": strip_secrets(config.rules),
        "out": strip_secrets(canonical(config.out)),
        "images": totals.pop("kept"),
        "labels": dict(sorted(labels.items())),
        "dropped": totals,
        "families": len({one.rule.family for one in chosen}),
        "missing": list(missing),
        "sources": sources,
    }


def _summary_lines(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    out = wording.visible(summary["out"])
    counts = ", ".join(f"{number:,} {label}" for label, number in summary["labels"].items())
    sources = wording.counted(len(summary["sources"]), "source")
    yield "collected", f"{wording.counted(summary['images'], 'image')} ({counts}) of {sources} into {out}/{_IMAGES}"
    if summary["dropped"]:
        yield "left out", f"{sum(summary['dropped'].values()):,}, listed with reasons in {out}/dropped.parquet"
        for reason, number in summary["dropped"].items():
            yield "", f"{number:,} {reason}: {candidates.REASONS.get(reason) or wording.meaning(reason)}"
    for one in summary["sources"]:
        if one["expected"] not in (None, one["kept"], one["kept"] // 4 if one["is_sheet"] else None):
            yield "", f"{one['source']}: {one['kept']:,} kept, where the list says {one['expected']:,}"
    for one in summary["missing"]:
        yield "missing", f"{one['repo']} {one['commit']}: {wording.visible(one['why'])}"
    yield "index", f"{out}/index.parquet, SHA-256 of its content {summary['index_sha256']}"
    yield "next", f"touchstone data index {out}/index.parquet --layout columns --out {out}/index"
