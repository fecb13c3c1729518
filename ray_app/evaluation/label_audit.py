"""`touchstone labels`: do the labels of a set say what they should, and could they be told without looking? Knows rows; scores nothing.

labels.json (the document), labels.html, and suspicious.parquet where a run was at hand.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ray_app import __version__
from ray_app.archives import Each, MemberReader, guard_of, in_turn, iter_blocks, member_rows, read_block
from ray_app.datasets.bonds import Bond, Kind, bonds_of, bound
from ray_app.datasets.columns import coded, fakes, texts
from ray_app.datasets.split_leaks import leaks_of
from ray_app.errors import ConfigError, InputError
from ray_app.evaluation.joining import Labels, OwnLabels, index_labels
from ray_app.evaluation.label_facts import facts_of_index, facts_of_run
from ray_app.evaluation.label_features import features_of
from ray_app.evaluation.label_suspects import Suspects, suspects_of, suspects_table
from ray_app.evaluation.label_words import difference_text, headline, remarks_on
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.mistakes import pictures_of
from ray_app.evaluation.sampling import hashed
from ray_app.evaluation.truths import check_joined
from ray_app.images import ImageLimits
from ray_app.metrics.class_differences import Difference, class_differences
from ray_app.metrics.shortcut import CONFOUNDED, shortcut_auc
from ray_app.reports.labels_report import render_labels
from ray_app.runs import RunDirectory
from ray_app.scoring.thumbnails import thumbnail
from ray_app.storage import Fetcher, Store, strip_secrets

SCHEMA = 1
DOCUMENT, PAGE, SUSPECTS = "labels.json", "labels.html", "suspicious.parquet"
SHOWN = 24
_TRIED = 50_000  # images that the small classifier sees
_MOST_GENERATORS = 40
_CONFLICTS: tuple[Kind, ...] = ("bytes", "looks", "group")
_BONDS: tuple[Kind, ...] = (*_CONFLICTS, "image", "prompt")


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
        rows, told, warnings = facts_of_index(at, read=read, each=each), None, []
    elif read:
        raise ConfigError(f"{strip_secrets(at)}: a run has read its files already", hint="leave --read out")
    else:
        found: Labels = index_labels(open_labels(labels), key=key) if labels else OwnLabels(run.store.url)
        rows, joined = facts_of_run(run, found)
        told, warnings = found.name, check_joined(found, joined, run)
    bonds = bonds_of(rows, _BONDS, prompts=1.0)
    document = _document(at, rows, told, warnings, seed) | {"conflicts": _conflicts(rows, bonds)}
    groups = bound(bonds, len(rows))[0] if run.exists() else None
    suspects = suspects_of(run, rows, groups, features=features, seed=seed) if groups is not None else None
    document["suspicious"] = None if suspects is None else suspects.told | {"images": _shown(rows, suspects)}
    document["remarks"] = remarks_on(document)
    document["headline"] = headline(document)
    _write(document, out, rows, suspects, _pictures(at, run, document) if thumbnails else {})
    return document


def _document(at: str, rows: pa.Table, labels: str | None, warnings: Sequence[str], seed: int) -> dict[str, Any]:
    is_fake = fakes(rows)
    features = features_of(rows)
    differences = class_differences(features, is_fake)
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
        "shortcut": {"auc": auc, "features": used, "confounded": auc["value"] is not None and auc["value"] > CONFOUNDED},
        "differences": [one.row() | {"text": difference_text(one)} for one in differences],
        "generators": _generators(rows, features, is_fake),
    }


def _shortcut(rows: pa.Table, features: Mapping[str, NDArray[Any]], is_fake: NDArray[np.bool_], seed: int) -> tuple[Any, list[str]]:
    """The out-of-fold AUC of metadata alone, on a sample, groups kept together; and what it was given."""
    some = np.argsort(hashed(rows["image_id"].to_numpy()), kind="stable")[:_TRIED]
    given = {
        name: column[some] if column.dtype != object else np.array([str(value) for value in column[some]])
        for name, column in features.items()
    }
    groups = coded(rows, "group")[0].astype(np.int64)
    groups = np.where(groups < 0, len(rows) + np.arange(len(rows)), groups)
    return shortcut_auc(given, is_fake[some], groups[some], seed=seed).row(), sorted(given)


def _generators(rows: pa.Table, features: Mapping[str, NDArray[Any]], is_fake: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Of every generator of fakes the strongest difference from real images, a sample of them; the most frequent first."""
    codes, names = coded(rows, "generator")
    found, counts = np.unique(codes[is_fake & (codes >= 0)], return_counts=True)
    reals = np.flatnonzero(~is_fake)
    reals = reals[np.argsort(hashed(rows["image_id"].to_numpy()[reals]), kind="stable")[:_TRIED]]
    told = []
    for code, count in sorted(zip(found.tolist(), counts.tolist(), strict=True), key=lambda one: (-one[1], names[one[0]]))[
        :_MOST_GENERATORS
    ]:
        mine = np.concatenate([reals, np.flatnonzero(is_fake & (codes == code))])
        differences: list[Difference] = class_differences({name: column[mine] for name, column in features.items()}, is_fake[mine])
        strongest = next((one for one in differences if one.strength != "none"), None)
        told.append({
            "generator": names[code], "n": count,
            "strongest": strongest and strongest.row() | {"text": difference_text(strongest, f"those of {names[code]}")},
            "why": None if differences else "too few images",
        })  # fmt: skip
    return told


def _conflicts(rows: pa.Table, bonds: Sequence[Bond]) -> list[dict[str, Any]]:
    """What is bound and labelled both ways; local edits look like the photographs they were made of and are left out of looks."""
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
    return [dict(one) for one in suspects_table(rows, first).to_pylist()]


def _pictures(at: str, run: RunDirectory, document: Mapping[str, Any]) -> dict[int, bytes]:
    """Small JPEGs of the images that the page shows, by id; one that cannot be read has none."""
    ids = {one["image_id"] for one in (document["suspicious"] or {}).get("images", ())}
    ids |= {
        one["image_id"]
        for conflict in document["conflicts"]
        if conflict["kind"] != "group"
        for pair in conflict["examples"]
        for one in pair
    }
    if run.exists() or not ids:
        return pictures_of(run, sorted(ids)) if ids else {}
    store, limits, pictures = Store.open(at), ImageLimits(), {}
    reader = MemberReader(Fetcher(guard=guard_of(store)), max_bytes=limits.max_bytes)
    for ref in iter_blocks(store, 0):
        members = [one for one in member_rows(read_block(store, ref)) if one.image_id in ids]
        for member, data in reader.read(members):
            try:
                if not isinstance(data, InputError):
                    pictures[member.image_id] = thumbnail(data, limits)
            except InputError:
                continue
    return pictures


def _write(document: dict[str, Any], out: Path, rows: pa.Table, suspects: Suspects | None, pictures: Mapping[int, bytes]) -> None:
    if suspects is not None:
        pq.write_table(suspects_table(rows, suspects), out / SUSPECTS)
    shown = {image_id: base64.b64encode(data).decode() for image_id, data in pictures.items()}
    (out / PAGE).write_text(render_labels(document, shown), encoding="utf-8")
    (out / DOCUMENT).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
