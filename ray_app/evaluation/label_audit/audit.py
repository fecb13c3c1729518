"""`touchstone data labels` (`audit_labels`): which labels are likely wrong, and whether properties of files alone predict them.

It writes labels.json (the document), labels.html, and suspicious.parquet where a run was at hand. Suspects are images whose label a
classifier doubts, worst first: a logistic regression on kept embeddings, or else on the scores of the run's detectors, that saw no image
of the same group; its output is weighed by confident learning (`ray_app.metrics.label_quality`).
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_app import __version__
from ray_app.archives import Each, MemberReader, guard_of, in_turn, iter_blocks, manifests, member_rows, read_block, read_blocks
from ray_app.datasets.labels import coded, fakes, texts
from ray_app.datasets.near_duplicates import Bond, Kind, bonds_of, connected_groups, leaks_of
from ray_app.errors import ConfigError
from ray_app.evaluation import accumulate, join
from ray_app.evaluation.label_audit.features import FEATURES, facts_of_index, facts_of_run, features_of
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.run import check_joined
from ray_app.images import ImageLimits
from ray_app.metrics import arrays, detection, label_quality, shortcut
from ray_app.reports.audit import render_labels
from ray_app.reports.format import counted
from ray_app.runs import RunDirectory, block_features, kept_features, vectors_of
from ray_app.runs.reader import current_tables
from ray_app.storage import Fetcher, Store, strip_secrets

_CANNOT = (
    "A doubted label is not a wrong one: hard images, new generators and images of a kind that is rare here are doubted too. Look at them.",
    "A wrong label that most images of its kind share is not doubted, because the classifier has learnt it.",
)
_PRESENT = {
    "present": {"icc": "have a colour profile", "camera": "name a camera in EXIF", "origin": "say where they come from"},
    "none": {"icc": "have no colour profile", "camera": "name no camera in EXIF", "origin": "do not say where they come from"},
}
MOST = 100_000
LEAST = 50  # images of each class
LEAST_AUC = 0.7  # below, the list would be of the classifier's own errors, not of wrong labels
Rows = npt.NDArray[np.int64]
SCHEMA = 1
DOCUMENT, PAGE, SUSPECTS = "labels.json", "labels.html", "suspicious.parquet"
SHOWN = 24
_TRIED = 50_000  # images that the small classifier sees
_MOST_GENERATORS = 40
_CONFLICTS: tuple[Kind, ...] = ("bytes", "looks", "group")
_BONDS: tuple[Kind, ...] = (*_CONFLICTS, "image", "prompt")


@dataclass(frozen=True)
class Suspects:
    """`places`: rows of the labelled table, worst first; `confidence`: the probability of the other label. `told`: for the document."""

    places: Rows
    confidence: arrays.Floats
    told: dict[str, Any]


def audit_labels(
    at: str,
    out: Path,
    *,
    labels: str | None = None,
    key: str | None = None,
    read: bool = False,
    features: str | None = None,
    thumbnails: bool = True,
    seed: int = 0,
    each: Each = in_turn,
) -> dict[str, Any]:
    """Audit the labels of an index, or of a run with its own labels or these, into a local folder; returns labels.json.

    `read`: open the files of an index. `features`: whose kept embeddings of a run. Raises ConfigError (nothing there, no labels).
    """
    run = RunDirectory.open(at)
    if not run.exists():
        if labels or key or features:
            raise ConfigError(f"{strip_secrets(at)}: no run, so --labels, --key and --features have nothing to join", hint="give a run")
        rows, origin, warnings = facts_of_index(at, read=read, each=each), None, []
    elif read:
        raise ConfigError(f"{strip_secrets(at)}: a run has read its files already", hint="leave --read out")
    else:
        found: join.Labels = join.index_labels(open_labels(labels), key=key) if labels else join.OwnLabels(run.store.url)
        rows, joined = facts_of_run(run, found)
        origin, warnings = found.name, check_joined(found, joined, run)
    bonds = bonds_of(rows, _BONDS, prompts=1.0)
    document = _document(at, rows, origin, warnings, seed) | {"conflicts": _conflicts(rows, bonds)}
    groups = connected_groups(bonds, len(rows))[0] if run.exists() else None
    suspects = suspects_of(run, rows, groups, features=features, seed=seed) if groups is not None else None
    document["suspicious"] = None if suspects is None else suspects.told | {"images": _shown(rows, suspects)}
    document["remarks"] = remarks_on(document)
    document["headline"] = headline(document)
    _write(document, out, rows, suspects, _pictures(at, run, document) if thumbnails else {})
    return document


def difference_text(one: label_quality.Difference, fakes: str = "the fakes") -> str:
    """A difference as a sentence, the class that has more of it first."""
    what, unit = FEATURES[one.name]
    if not isinstance(one.value, str):
        phrase = f"have a {what} of at most {_number(one.value)}{' ' + unit if unit else ''}"
    elif one.name == "format":
        phrase = f"are {one.value}"
    else:
        phrase = _PRESENT.get(one.value, {}).get(one.name) or f"have {one.value} as {what}"
    sides = sorted([(one.fake, fakes), (one.real, "the real images")], key=lambda side: -side[0])
    (more, first), (less, second) = sides
    share = f"All {first.removeprefix('the ')}" if more == 1 and not first.startswith("those") else f"{_percent(more)} of {first}"
    return f"{share} {phrase}, and {'none' if less == 0 else _percent(less)} of {second}."


def headline(document: Mapping[str, Any]) -> str:
    """What stands first, in one sentence."""
    twice, found = _values(document, "bytes"), document["suspicious"]
    strong = [str(one["text"]) for one in document["differences"] if one["strength"] == "strong"]
    if twice:
        return f"{counted(twice, 'file')} stand{'s' if twice == 1 else ''} under both labels."
    if strong:
        return strong[0]
    if document["shortcut"]["confounded"]:
        return f"Metadata alone tell the classes apart, with an AUC of {document['shortcut']['auc']['value']:.2f}."
    doubted = sum(found["count"].values()) if found and not found["why"] else 0
    if found and doubted > 0.01 * found["n"]:
        return f"{counted(doubted, 'label')} of {found['n']:,} are worth a second look."
    return "Nothing alarming in what could be looked at."


def remarks_on(document: Mapping[str, Any]) -> list[str]:
    """What the audit does not show, in sentences."""
    return [*document["warnings"], *_on_facts(document), *_on_suspects(document)]


def suspects_of(run: RunDirectory, rows: pa.Table, groups: Rows, *, features: str | None = None, seed: int = 0) -> Suspects:
    """Of labelled rows (see `label_facts`) in groups (n,). `features`: whose embeddings; null = the first kept, else the scores."""
    ids, is_fake = rows["image_id"].to_numpy(), fakes(rows)
    chosen = np.sort(np.argsort(accumulate.hashed(ids), kind="stable")[:MOST])
    vectors, source = _vectors(run, ids[chosen], features)
    is_known = np.isfinite(vectors).all(axis=1) & (vectors.shape[1] > 0)
    chosen, vectors = chosen[is_known], vectors[is_known]
    fake = is_fake[chosen]
    facts: dict[str, Any] = {"source": source, "n": len(chosen), "left_out": len(rows) - len(chosen), "auc": None, "thresholds": None,
                            "expected": None, "count": None, "why": None}  # fmt: skip
    fewest = int(min(fake.sum(), (~fake).sum()))
    if fewest < LEAST:
        return _none(facts, f"it takes {LEAST} images of each class with {source}; one has {fewest:,}")
    chance = label_quality.crossed_probabilities(vectors, fake, groups[chosen], seed=seed)
    if not np.isfinite(chance).all():
        return _none(facts, "there are too few groups to keep them apart")
    facts["auc"] = detection.auc_figure(arrays.ScoreHistogram.of(chance[fake]), arrays.ScoreHistogram.of(chance[~fake])).row()
    auc = facts["auc"]["value"]
    if auc < LEAST_AUC:
        return _none(facts, f"the classifier tells the classes apart with an AUC of {auc:.2f} only: it would doubt what it cannot tell")
    found = label_quality.confident_learning(chance, fake)
    places = found.suspicious(fake)
    confidence = np.where(fake[places], 1 - chance[places], chance[places])
    order = np.lexsort((ids[chosen][places], -confidence))
    expected = {"real": float(found.expected[0, 1]), "fake": float(found.expected[1, 0])}
    count = {"real": int((~fake[places]).sum()), "fake": int(fake[places].sum())}
    return Suspects(
        chosen[places[order]], confidence[order], facts | {"thresholds": list(found.thresholds), "expected": expected, "count": count}
    )


def suspects_table(rows: pa.Table, found: Suspects) -> pa.Table:
    """suspicious.parquet: `image_id, uri, member, generator, label, likely_label, confidence`, worst first."""
    some = rows.take(pa.array(found.places))
    labels = texts(some, "label")
    return pa.table({
        **{name: some[name] for name in ("image_id", "uri", "member")},
        "generator": texts(some, "generator"),
        "label": labels,
        "likely_label": pa.array(["real" if label == "fake" else "fake" for label in labels.to_pylist()], pa.string()),
        "confidence": pa.array(found.confidence, pa.float64()),
    })  # fmt: skip


def _on_facts(document: Mapping[str, Any]) -> Iterator[str]:
    if "width" not in document["known"]:
        yield (
            "Formats, sizes and qualities are not known: --read reads them from the files, and a run of touchstone score has them "
            "(touchstone data labels RUN --labels INDEX)."
        )
    known = {one["kind"]: one["known"] for one in document["conflicts"]}
    missing = [word for kind, word in (("bytes", "sha256"), ("looks", "perceptual hash")) if not known[kind]]
    if missing:
        by = "it" if len(missing) == 1 else "them"
        yield f"Images have no {' and no '.join(missing)}, so that pictures under both labels could not be looked for by {by}."
    if document["shortcut"]["confounded"]:
        yield (
            "Where files tell the classes apart, a detector that is trained or measured here may read files: compress both classes alike, "
            "or compare within one format and size."
        )


def _on_suspects(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["suspicious"]
    if found is None:
        yield "No label was doubted: that takes a run (touchstone score … --features NAME, then touchstone data labels RUN --labels INDEX)."
        return
    if found["why"]:
        yield f"No label was doubted: {found['why']}."
        return
    yield from _CANNOT
    if found["source"].startswith("the scores"):
        yield "Doubts rest on the scores of detectors: one that was trained on these very images has learnt their labels and doubts none."
    if document["shortcut"]["confounded"]:
        yield "Since files tell the classes apart, an image may be doubted for its format or size alone."
    if found["left_out"]:
        yield f"{found['left_out']:,} labelled images were not looked at for doubts (a sample, or no features of them)."


def _values(document: Mapping[str, Any], kind: str) -> int:
    return next((int(one["values"]) for one in document["conflicts"] if one["kind"] == kind), 0)


def _none(facts: dict[str, Any], why: str) -> Suspects:
    return Suspects(np.empty(0, np.int64), np.empty(0), facts | {"why": why})


def _vectors(run: RunDirectory, ids: Rows, wanted: str | None) -> tuple[arrays.Floats, str]:
    """(n, d) what is known of images beside their files, NaN where nothing is, and what it is."""
    kept = kept_features(run)
    if wanted is not None and wanted not in kept:
        raise ConfigError(f"{run.store.url} keeps no embeddings of '{wanted}'", hint=f"it has those of {', '.join(kept) or 'none'}")
    name = wanted or next(iter(kept), None)
    if name is None:
        return _scores(run, ids), "the scores of the run's detectors"
    vectors = np.full((len(ids), kept[name]["width"]), np.nan, np.float32)
    order = np.argsort(ids)
    for number in manifests(run.store):
        for ref in read_blocks(run.store, number):
            rows = block_features(run, number, ref.block, name)
            mine = rows["image_id"].to_numpy()
            at = order[np.minimum(np.searchsorted(ids, mine, sorter=order), len(ids) - 1)]
            is_wanted = ids[at] == mine
            vectors[at[is_wanted]] = vectors_of(rows, mine[is_wanted], vectors.shape[1])
    return vectors, f"the embeddings of {name}"


def _scores(run: RunDirectory, ids: Rows) -> arrays.Floats:
    """(n, detectors) scores; a detector that scored none of these images is left out."""
    tables = [(table["image_id"].to_numpy(), _columns(table)) for table in current_tables(run, ["image_id", "scores"])]
    names, scores = (np.concatenate([pair[place] for pair in tables]) for place in (0, 1))
    order = np.argsort(names, kind="stable")
    at = order[np.minimum(np.searchsorted(names[order], ids), len(names) - 1)]
    found = np.where((names[at] == ids)[:, None], scores[at], np.nan)
    return np.asarray(found[:, np.isfinite(found).any(axis=0)], np.float64)


def _columns(table: pa.Table) -> arrays.Floats:
    scores = table["scores"].combine_chunks()
    return np.column_stack([np.asarray(column.cast(pa.float64()).fill_null(np.nan)) for column in scores.flatten()])


def _document(at: str, rows: pa.Table, labels: str | None, warnings: Sequence[str], seed: int) -> dict[str, Any]:
    is_fake = fakes(rows)
    features = features_of(rows)
    differences = label_quality.class_differences(features, is_fake)
    auc, used = _shortcut(rows, features, is_fake, seed)
    return {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "at": strip_secrets(at),
        "labels": labels,
        "warnings": list(warnings),
        "n": len(rows),
        "n_real": int((~is_fake).sum()),
        "n_fake": int(is_fake.sum()),
        "known": sorted(features),
        "shortcut": {
            "auc": auc.row(),
            "features": used,
            "confounded": shortcut.confounded(auc),
            "finding": shortcut.finding(auc),
        },
        "differences": [one.row() | {"text": difference_text(one)} for one in differences],
        "generators": _generators(rows, features, is_fake),
    }


def _shortcut(
    rows: pa.Table, features: Mapping[str, NDArray[Any]], is_fake: NDArray[np.bool_], seed: int
) -> tuple[arrays.MetricEstimate, list[str]]:
    """The out-of-fold AUC of metadata alone, on a sample, groups kept together; and what it was given."""
    some = np.argsort(accumulate.hashed(rows["image_id"].to_numpy()), kind="stable")[:_TRIED]
    given = {
        name: column[some] if column.dtype != object else np.array([str(value) for value in column[some]])
        for name, column in features.items()
    }
    groups = coded(rows, "group")[0].astype(np.int64)
    groups = np.where(groups < 0, len(rows) + np.arange(len(rows)), groups)
    return shortcut.shortcut_auc(given, is_fake[some], groups[some], seed=seed), sorted(given)


def _generators(rows: pa.Table, features: Mapping[str, NDArray[Any]], is_fake: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Of every generator of fakes the strongest difference from real images, a sample of them; the most frequent first."""
    codes, names = coded(rows, "generator")
    found, counts = np.unique(codes[is_fake & (codes >= 0)], return_counts=True)
    reals = np.flatnonzero(~is_fake)
    reals = reals[np.argsort(accumulate.hashed(rows["image_id"].to_numpy()[reals]), kind="stable")[:_TRIED]]
    shares = []
    most_frequent = sorted(zip(found.tolist(), counts.tolist(), strict=True), key=lambda one: (-one[1], names[one[0]]))
    for code, count in most_frequent[:_MOST_GENERATORS]:
        mine = np.concatenate([reals, np.flatnonzero(is_fake & (codes == code))])
        differences: list[label_quality.Difference] = label_quality.class_differences(
            {name: column[mine] for name, column in features.items()}, is_fake[mine]
        )
        strongest = next((one for one in differences if one.strength != "none"), None)
        shares.append({
            "generator": names[code], "n": count,
            "strongest": strongest and strongest.row() | {"text": difference_text(strongest, f"those of {names[code]}")},
            "why": None if differences else "too few images",
        })  # fmt: skip
    return shares


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _conflicts(rows: pa.Table, bonds: Sequence[Bond]) -> list[dict[str, Any]]:
    """What is bound and labelled both ways; local edits resemble their photographs and are left out of perceptual hashes."""
    is_fake, edited = fakes(rows), np.asarray(texts(rows, "mask_uri").is_valid())
    found = []
    for bond in [one for one in bonds if one.kind in _CONFLICTS]:
        sides = np.where(edited & (bond.kind == "looks"), -1, is_fake).astype(np.int64)
        found += leaks_of([bond], sides, ("real", "fake"))
    wanted = sorted({row for one in found for pair in one["rows"] for row in pair})
    named = rows.select(["image_id", "uri", "member"]).take(pa.array(wanted, pa.int64())).to_pylist()
    labels = texts(rows, "label").take(pa.array(wanted, pa.int64())).to_pylist()
    names = {row: one | {"label": label} for row, one, label in zip(wanted, named, labels, strict=True)}
    return [{**{name: value for name, value in one.items() if name not in ("rows", "between")},
             "examples": [[names[row] for row in pair] for pair in one["rows"]]} for one in found]  # fmt: skip


def _shown(rows: pa.Table, suspects: Suspects) -> list[dict[str, Any]]:
    first = Suspects(suspects.places[:SHOWN], suspects.confidence[:SHOWN], {})
    rows_shown: list[dict[str, Any]] = suspects_table(rows, first).to_pylist()
    return rows_shown


def _pictures(at: str, run: RunDirectory, document: Mapping[str, Any]) -> dict[int, bytes]:
    """Small JPEGs of the images that the page shows, by id; one that cannot be read has none."""
    ids = {one["image_id"] for one in (document["suspicious"] or {}).get("images", ())}
    pairs = [pair for conflict in document["conflicts"] if conflict["kind"] != "group" for pair in conflict["examples"]]
    ids |= {one["image_id"] for pair in pairs for one in pair}
    if run.exists() or not ids:
        return accumulate.pictures_of(run, sorted(ids)) if ids else {}
    store, limits, pictures = Store.open(at), ImageLimits(), dict[int, bytes]()
    reader = MemberReader(Fetcher(guard=guard_of(store)), max_bytes=limits.max_bytes)
    for ref in iter_blocks(store, 0):
        pictures |= accumulate.thumbnails_of(reader, [one for one in member_rows(read_block(store, ref)) if one.image_id in ids], limits)
    return pictures


def _write(document: dict[str, Any], out: Path, rows: pa.Table, suspects: Suspects | None, pictures: Mapping[int, bytes]) -> None:
    if suspects is not None:
        pq.write_table(suspects_table(rows, suspects), out / SUSPECTS)
    shown = {image_id: base64.b64encode(data).decode() for image_id, data in pictures.items()}
    (out / PAGE).write_text(render_labels(document, shown), encoding="utf-8")
    (out / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
