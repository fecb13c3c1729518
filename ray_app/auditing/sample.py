"""The files of an audit: `sample.csv` for people to fill in, `audit.html` to do it with pictures, `audit.json` with what makes the labels
count. Knows those files; computes no figure.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_app import __version__
from ray_app.archives import manifests
from ray_app.auditing.drawing import Counted, Sample, count, draw
from ray_app.auditing.strata import Stratum
from ray_app.errors import ConfigError
from ray_app.evaluation.mistakes import pictures_of
from ray_app.reports.audit_page import AuditImage, render_audit
from ray_app.runs import RunDirectory, fingerprint
from ray_app.scoring.guarantee import WAIVED

SAMPLE, PAGE, FACTS = "sample.csv", "audit.html", "audit.json"
SCHEMA = 1
COLUMNS = ("image_id", "uri", "member", "stratum", "label")
PICTURE_PX = 512


@dataclass(frozen=True)
class Audit:
    """What `audit.json` says: the run as it was when the sample was drawn, the strata, and the images drawn (`COLUMNS` without labels)."""

    facts: Mapping[str, Any]
    strata: tuple[Stratum, ...]
    images: tuple[Mapping[str, Any], ...]

    @property
    def scored(self) -> int:
        """Images that the audit speaks for."""
        return sum(one.size for one in self.strata)


def draw_sample(url: str, number: int, folder: Path, *, seed: int = 0, pictures: bool = True) -> Audit:
    """Draw a sample of a finished run into a folder that has none yet. Raises ConfigError (no run, nothing to draw, a sample is there)."""
    if (folder / FACTS).exists():
        raise ConfigError(f"{folder} holds a sample already, maybe with labels", hint="give another --out")
    run = RunDirectory.open(url)
    run.describe_finished()
    counted = count(run)
    if not counted.scored:
        raise ConfigError(f"{run.store.url}: no image of the run has a verdict, so there is nothing to ask about")
    drawn = draw(run, counted, number, seed)
    facts = _facts(run, counted, drawn, seed)
    images = tuple(drawn.rows.to_pylist())
    _write_csv(folder / SAMPLE, images)
    found = pictures_of(run, [row["image_id"] for row in images], side=PICTURE_PX) if pictures else {}
    (folder / PAGE).write_text(render_audit(facts, list(_shown(images, found))), encoding="utf-8")
    # Last, because the folder is taken from then on.
    (folder / FACTS).write_text(json.dumps(facts | {"sample": images}, indent=1, ensure_ascii=False), encoding="utf-8")
    return Audit(facts, tuple(drawn.strata), images)


def read_audit(*folders: Path) -> Audit:
    """The audit in the first folder that has one. Raises ConfigError where none has, or its file is none of ours."""
    path = next((folder / FACTS for folder in folders if (folder / FACTS).is_file()), None)
    if path is None:
        raise ConfigError(
            f"no {FACTS} in {' or in '.join(dict.fromkeys(map(str, folders)))}",
            hint="--out is the folder of `touchstone audit RUN --draw N --out DIR`: without its strata labels cannot be weighed",
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return Audit(told, tuple(Stratum.of_row(row) for row in told["strata"]), tuple(told["sample"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not what `touchstone audit --draw` wrote: {error}") from None


def _facts(run: RunDirectory, counted: Counted, drawn: Sample, seed: int) -> dict[str, Any]:
    described = run.describe()
    return {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.store.url,
        "fingerprint": fingerprint(described["identity"]),
        "scores": _scores_of(described["identity"]),
        "listing": max(manifests(run.store)),
        "ensemble": (described.get("ensemble") or {}).get("name"),
        "seed": seed,
        "scored": counted.scored,
        "unscored": counted.unscored,
        "drawn": len(drawn.rows),
        "strata": [one.row() for one in drawn.strata],
    }


def _scores_of(identity: Mapping[str, Any]) -> str:
    """Names what a run scored and with what, whatever was decided of it."""
    return fingerprint({key: value for key, value in identity.items() if key not in ("decision", WAIVED)})


def changed_since(audit: Audit, run: RunDirectory) -> str | None:
    """Why figures of this audit are not of the run as it is now, or None. Raises ConfigError where the sample is of another run."""
    identity = run.describe_finished()["identity"]
    if _scores_of(identity) != audit.facts["scores"]:
        raise ConfigError(f"the sample was drawn from another run than {run.store.url}", hint=f"it is of {audit.facts['run']}")
    if fingerprint(identity) != audit.facts["fingerprint"]:
        return "the run was decided anew since the sample was drawn: these figures are of its verdicts before"
    if max(manifests(run.store)) != audit.facts["listing"]:
        return "the run has a newer listing since the sample was drawn: these figures are of the archive before"
    return None


def _write_csv(path: Path, images: Sequence[Mapping[str, Any]]) -> None:
    buffer = io.StringIO(newline="")
    written = csv.writer(buffer, lineterminator="\n")
    written.writerow(COLUMNS)
    written.writerows([*(row[name] for name in COLUMNS[:-1]), ""] for row in images)
    path.write_text(buffer.getvalue(), encoding="utf-8")


def _shown(images: Iterable[Mapping[str, Any]], pictures: Mapping[int, bytes]) -> Iterable[AuditImage]:
    for row in images:
        yield AuditImage(row["image_id"], row["uri"], row["member"], row["stratum"], pictures.get(row["image_id"]))
