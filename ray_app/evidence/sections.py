"""The parts of a record that follow from a row, a run and its cards: made when it is written, and made again when it is verified."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ray_app.evidence.canonical import digest
from ray_app.evidence.detectors import told_of
from ray_app.evidence.profiling import profile_of
from ray_app.evidence.redeciding import DECIDED, decide_again
from ray_app.evidence.telling import at_other_priors, guarantee_words, limits_of
from ray_app.inference import ScoringSpec
from ray_app.runs import fingerprint
from ray_app.runs.schema import STABILITY

# Sections that are facts, and those that are sentences, which another version of Touchstone may put otherwise.
FACTS = ("image", "decision", "detectors", "provenance", "hashes")
SENTENCES = ("guarantee", "limits", "verify")
_IMAGE = ("image_id", "uri", "member", "occurrence", "sha256", "status", "detail", "format", "width", "height", "decoder", "quality")


class Grounds(NamedTuple):
    """What a record rests on: the ensemble's card and the detectors' as JSON, the whole row, facts of the run, and its summary's word on
    the guarantee. `spec`: what the cards mean to this version of Touchstone, which may know keys that they do not have.
    """

    spec: ScoringSpec
    ensemble: Mapping[str, Any]
    cards: Mapping[str, Mapping[str, Any]]
    row: Mapping[str, Any]
    run: Mapping[str, Any]
    guarantee: Mapping[str, Any] | None


def sections(grounds: Grounds) -> dict[str, Any]:
    """All of a record but who made it and when, as plain JSON."""
    spec, ensemble, cards, row, run, of_run = grounds
    told = told_of(spec, row, run["identity"])
    return {
        "image": {name: row.get(name) for name in _IMAGE},
        "decision": _decision(grounds),
        "detectors": {name: one | {"card": dict(cards[name])} for name, one in told.items()},
        "ensemble": dict(ensemble),
        "guarantee": {"card": ensemble.get("guarantee"), "run": of_run, "words": guarantee_words(spec.ensemble, of_run)},
        **profile_of(row, run["identity"]),
        "provenance": json.loads(row.get("provenance") or "null"),
        "limits": limits_of(spec.ensemble, spec.cards, row),
        "row": dict(row),
        "run": dict(run),
        "hashes": _hashes(grounds),
        "verify": _how_to_verify(row),
    }


def run_facts(url: str, described: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of `run.json` and `summary.json`: where and when, by which version, of what, and with which settings."""
    return {
        "url": url,
        "created_at": described["created_at"],
        "finished_at": summary.get("finished_at"),
        "schema": described["schema"],
        "touchstone": summary.get("version"),
        "members": summary.get("members"),
        "verdicts": summary.get("verdicts"),
        "identity": described["identity"],
    }


def _decision(grounds: Grounds) -> dict[str, Any]:
    card, row = grounds.spec.ensemble, grounds.row
    return {
        **{name.removeprefix("verdict_"): row.get(name) for name in DECIDED},
        "rule": card.rule,
        "thresholds": grounds.ensemble.get("thresholds"),
        "at_other_prevalences": at_other_priors(row["score"], card, calibrated=bool(row["calibrated"])),
        "views": _views(grounds),
        "rederived": not decide_again(grounds.spec, row, grounds.guarantee).differs,
    }


def _views(grounds: Grounds) -> list[dict[str, Any]]:
    """Of a row whose stability was looked at: score and verdict of each recompressed and resized view."""
    alone = {name: value for name, value in grounds.row.items() if name != STABILITY}
    decided = [decide_again(grounds.spec, alone | {"scores": scores}).row for scores in grounds.row.get(STABILITY) or ()]
    return [{"score": one["score"], "verdict": one["verdict"]} for one in decided]


def _hashes(grounds: Grounds) -> dict[str, Any]:
    card, identity = grounds.spec.ensemble, grounds.run["identity"]
    return {
        "file": grounds.row["sha256"],
        "run": fingerprint(identity),
        "ensemble": digest(grounds.ensemble),
        "population": None if card.population is None else card.population.sha256,
        "references": None if card.guarantee is None else card.guarantee.references_sha256,
        "detectors": {name: digest(one) for name, one in grounds.cards.items()},
        "weights": {name: identity["detectors"].get(name, {}).get("weights") for name in grounds.spec.cards},
    }


def _how_to_verify(row: Mapping[str, Any]) -> list[str]:
    told = ["touchstone evidence --verify evidence.json"]
    if row["sha256"] is None:
        return told
    return [*told, "touchstone evidence --verify evidence.json --image FILE", f"sha256sum FILE # must be {row['sha256']}"]
