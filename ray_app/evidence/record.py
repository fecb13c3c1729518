"""One image's record, from a run's files: what was decided of it, by what, under which promise, and the hashes of all of that.

    {"touchstone_evidence": 1, "sha256": digest of `record`, "signature": if it was signed (`signing`), "record": {
        image       image_id, uri, member, occurrence; `sha256` of its file
        decision    score, probability, calibrated, verdict, reason, thresholds, …; `rederived`: the cards below give the same
        detectors   per detector: score, calibration in words, calibrated score, precision, weights, card, …
        ensemble    the ensemble's card          guarantee   the card's, the run's word on whether it holds, both in sentences
        profile     generator and words that were predicted, where the run has a profile
        provenance  what the file says of itself limits      what must not be read into this
        row         the run's whole row          run         where and when, software, identity, fingerprint
        hashes      of each of these             verify      how to check
        made_at, made_by, found_by; cards_here_depart: where the run noted another card than lies on the machine that made this}}

Everything is read from the run directory and the cards; nothing is fetched, decoded or scored.
"""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_app import __version__
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError
from ray_app.evidence.canonical import digest, plain, read_back
from ray_app.evidence.cards import cards_of
from ray_app.evidence.finding import find_row
from ray_app.evidence.redeciding import spec_of
from ray_app.evidence.sections import Grounds, run_facts, sections
from ray_app.runs import RunDirectory

SCHEMA = 1
KIND = "touchstone_evidence"


def make_evidence(url: str, image: str) -> dict[str, Any]:
    """The record of one image of a run (`image`: see `find_row`) with its digest: plain JSON, and but for `made_at` always the same.

    Raises ConfigError where there is no finished run, not exactly one such row, or a detector's card is not on this machine.
    """
    run = RunDirectory.open(url)
    described, summary = run.describe_finished(), run.read_json("summary.json")
    found, ensemble = find_row(run, image), EnsembleCard.model_validate(described["ensemble"])
    known = cards_of(ensemble, described["identity"]["detectors"])
    grounds = Grounds(
        spec_of(ensemble, {name: one.card for name, one in known.items()}, described["identity"]),
        described["ensemble"],
        {name: one.card.model_dump(mode="json") for name, one in known.items()},
        plain(found.row),
        run_facts(run.store.url, described, summary),
        summary.get("guarantee"),
    )
    record = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": {"touchstone": __version__, "python": platform.python_version()},
        "found_by": found.by,
        "cards_here_depart": {name: list(one.departs) for name, one in known.items() if one.departs},
        **sections(grounds),
    }
    return {KIND: SCHEMA, "sha256": digest(record), "record": record}


def read_evidence(path: Path) -> dict[str, Any]:
    """A record that was written. Raises ConfigError where the file is none, or one of a later kind."""
    try:
        told = read_back(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a record's JSON: {error}", hint="--verify takes an evidence.json as it was written") from None
    if not isinstance(told, dict) or KIND not in told or not (isinstance(told.get("record"), dict) and isinstance(told.get("sha256"), str)):
        raise ConfigError(f"{path}: no record of `touchstone evidence`", hint="--verify takes an evidence.json")
    if told[KIND] != SCHEMA:
        raise ConfigError(f"{path}: a record of schema {told[KIND]}; this version reads {SCHEMA}", hint=f"it was made by {_maker(told)}")
    return told


def _maker(told: Mapping[str, Any]) -> str:
    made_by = told["record"].get("made_by")
    return f"Touchstone {made_by.get('touchstone')}" if isinstance(made_by, Mapping) else "another version of Touchstone"
