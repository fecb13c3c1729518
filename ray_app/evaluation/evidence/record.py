"""One image's record, from a run's files (`make_evidence`, `read_evidence`): its decision, by what, under which promise, and their hashes.

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

Everything is read from the run directory and the cards; nothing is fetched, decoded or scored. `find_row` is the one row that a uri, an
id or a path means; `sections` are the parts that follow from a row, a run and its cards: made when a record is written, and again when it
is verified.
"""

import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.detectors import DetectorCard, files_by_hash, fragility
from ray_app.detectors.card import blind_to
from ray_app.ensembles import EnsembleCard, Guarantee, calibrate, logit, sigmoid
from ray_app.errors import ConfigError
from ray_app.evaluation.evidence.checks import DECIDED, cards_of, decide_again, digest, parse_record, plain, profile_of, spec_of
from ray_app.inference import ScoringSpec
from ray_app.reports.format import stated
from ray_app.runs import RunDirectory, fingerprint, reader, schema
from ray_app.storage import canonical, strip_secrets

PRIORS = (0.001, 0.01, 0.1, 0.5)  # shares of fakes at which a calibrated probability is given again
_PER_DETECTOR = ("replies", "mask_area", "mask_peak")
# Sections that are facts, and those that are sentences, which another version of Touchstone may put otherwise.
RECORD_SECTIONS = ("image", "decision", "detectors", "provenance", "hashes")
SENTENCES = ("guarantee", "limits", "verify")
_IMAGE = ("image_id", "uri", "member", "occurrence", "sha256", "status", "detail", "format", "width", "height", "decoder", "quality")
BETWEEN = " › "  # as reports write a member of a container: s3://bucket/photos.tar › 12/a.jpg
_NAMED = 3
Wanted = dict[str, Any]  # column → its value
Place = tuple[str, int]  # a file of the run, and the image_id of a row in it
SCHEMA = 1
KIND = "touchstone_evidence"


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


class MatchedRow(NamedTuple):
    """A current row of the run, and by what it was found: `image_id`, `uri`, `path` or `sha256`."""

    row: dict[str, Any]
    by: str


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


def sections(grounds: Grounds) -> dict[str, Any]:
    """All of a record but who made it and when, as plain JSON."""
    spec, ensemble, cards, row, run, of_run = grounds
    by_detector = detector_sections(spec, row, run["identity"])
    return {
        "image": {name: row.get(name) for name in _IMAGE},
        "decision": _decision(grounds),
        "detectors": {name: one | {"card": dict(cards[name])} for name, one in by_detector.items()},
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


def guarantee_words(card: EnsembleCard, of_run: Mapping[str, Any] | None) -> list[str]:
    """What is known of the rate at which real images reach the threshold, and whether it holds in this run's archive."""
    if card.guarantee is not None:
        return [*_guaranteed(card.guarantee), *_carried_over(of_run)]
    cuts = card.thresholds
    if cuts.false_positive_rate is None:
        return ["There is no guarantee: nobody measured how many real images reach this threshold."]
    among = f" of {cuts.n_real:,} real images" if cuts.n_real else " of real images"
    where = f" ({cuts.measured_on})" if cuts.measured_on else ""
    return [f"There is no guarantee. When the threshold was chosen, {stated(cuts.false_positive_rate)}{among} reached it{where}."]


def limits_of(card: EnsembleCard, cards: Mapping[str, DetectorCard], row: Mapping[str, Any]) -> list[str]:
    """What must not be read into the record."""
    return [
        *_of_the_verdict(row),
        *_of_the_probability(card, row),
        *_of_the_detectors(cards),
        "A score is of these bytes alone. A copy that was compressed, resized or cropped again is another file and may score otherwise.",
        "What a file says of its own origin can be written or removed by anybody, and entered no score. A C2PA manifest can be checked; "
        "only a trust list says whose signature counts.",
        "The digest shows that a record was changed by accident or without care. It is no signature: who changes a record can compute "
        "another digest. To prove when and by whom it was made, sign the file or keep its digest where it cannot be changed.",
    ]


def at_other_priors(score: float | None, card: EnsembleCard, *, calibrated: bool) -> list[dict[str, float]]:
    """A calibrated probability at other shares of fakes than the calibration's; nothing where either is not known.

    Bayes' rule on log-odds: the score moves by logit(share) less logit(the calibration's).
    """
    if score is None or not calibrated or card.population is None:
        return []
    shares = sorted({*PRIORS, card.population.prevalence})
    moved = [(share, score + logit(share) - logit(card.population.prevalence)) for share in shares]
    return [{"prevalence": share, "probability": 1 / (1 + math.exp(-moved)) if moved > -700 else 0.0} for share, moved in moved]


def detector_sections(spec: ScoringSpec, row: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Per detector, in the ensemble's order: its raw score (null = none), calibrated, its probability, and how it was made."""
    names = [member.detector for member in spec.ensemble.members]
    return {
        name: _one(spec, row, name)
        | {
            "asked_as": asked_as,
            "precision": identity.get("precision", {}).get(name),
            "weights": identity["detectors"].get(name, {}).get("weights"),
        }
        for asked_as, name in zip(names, spec.cards, strict=True)
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


def find_row(run: RunDirectory, image: str) -> MatchedRow:
    """The current row of one image: by its image_id, its uri (`CONTAINER › MEMBER` inside one), its path, or a copy of the file.

    A local file whose place the run does not know is looked for by its bytes. Raises ConfigError where no row, or more than one, is meant.
    """
    for by, found in _found(run, list(_meanings(image))):
        if len(found) > 1:
            raise ConfigError(f"{image}: {len(found):,} rows of the run", hint=f"give one's image_id: {_few(run, found)}")
        if found:
            return MatchedRow(_row(run, *found[0]), by)
    raise ConfigError(
        f"{run.store.url}: no row of {image}", hint=f"touchstone results {run.store.url} --json shows each row's image_id and uri"
    )


def read_evidence(path: Path) -> dict[str, Any]:
    """A record that was written. Raises ConfigError where the file is none, or one of a later kind."""
    try:
        document = parse_record(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a record's JSON: {error}", hint="--verify takes an evidence.json as it was written") from None
    if (
        not isinstance(document, dict)
        or KIND not in document
        or not (isinstance(document.get("record"), dict) and isinstance(document.get("sha256"), str))
    ):
        raise ConfigError(f"{path}: no record of `touchstone runs evidence`", hint="--verify takes an evidence.json")
    if document[KIND] != SCHEMA:
        raise ConfigError(
            f"{path}: a record of schema {document[KIND]}; this version reads {SCHEMA}", hint=f"it was made by {_maker(document)}"
        )
    return document


def _guaranteed(known: Guarantee) -> Iterator[str]:
    yield (
        f"With {stated(known.confidence)} confidence, no more than {stated(known.target_fpr)} of real images like those of the "
        f"calibration reach this threshold: of {known.n_real:,} that nothing else was fitted on, {known.false_positives:,} did, and the "
        f"exact binomial upper bound (Clopper and Pearson) of that is {stated(known.upper_bound)}{_worth(known)}."
    )
    yield (
        "That is a rate over many real images. It is not the chance that this image is real, and among few fakes even a low rate makes "
        "many flags false."
    )


def _worth(known: Guarantee) -> str:
    """On how many independent reals the bound rests, where they hang together."""
    if known.groups is None or known.effective is None or known.effective >= known.groups:
        return ""
    return f", that of reals of {known.groups:,} sources or looks, worth {known.effective:,.0f} independent ones, being no higher"


def _carried_over(of_run: Mapping[str, Any] | None) -> Iterator[str]:
    if of_run is None:
        yield "Whether the run's archive is like the images of the calibration was not examined."
    elif of_run.get("holds"):
        yield (
            "The run's archive was compared with the images of the calibration, and no difference was noticed. Real images of a new kind "
            "that score as fakes do would not be noticed by that."
        )
    elif of_run.get("holds") is None:
        yield f"Whether the run's archive is like the images of the calibration is not known: {of_run.get('why')}."
    else:
        yield f"In the run's archive the guarantee does not hold: {of_run.get('why')}."
        if of_run.get("waived"):
            yield "Its verdicts stand all the same, since whoever ran it waived the guarantee."
        elif of_run.get("unlike"):
            yield "That is beyond the limit, so every verdict of the run was withdrawn to “abstain”."


def _of_the_verdict(row: Mapping[str, Any]) -> Iterator[str]:
    if row["verdict"] == "fake":
        yield (
            "“fake” says that the score reached a threshold. It is no proof, and it says neither who made or altered the image, nor how, "
            "nor to what end."
        )
    elif row["verdict"] == "real":
        yield (
            "“real” says that no evidence was found. It does not say that an image is genuine: a generator may leave no trace that is "
            "known here, and no guarantee speaks of the fakes that are missed."
        )
    elif row["verdict"] == "abstain":
        yield "“abstain” says neither real nor fake, and the score must not be read as either."
    else:
        yield "There is no score and no verdict: the image could not be scored."


def _of_the_probability(card: EnsembleCard, row: Mapping[str, Any]) -> Iterator[str]:
    if row["probability"] is None:
        return
    if not row["calibrated"]:
        yield "The probability is not calibrated: it is the plain sigmoid of the score, and not how often such images are fake."
    elif card.population is not None:
        yield (
            f"The probability is a chance only where {stated(card.population.prevalence)} of the images are fake, as it was calibrated "
            "for. At another share it is another."
        )
    else:
        yield "The probability is calibrated, but the card does not say for which share of fakes."


def _of_the_detectors(cards: Mapping[str, DetectorCard]) -> Iterator[str]:
    shown = [name for name, card in cards.items() if card.demonstration]
    if shown:
        kind = "is a demonstration detector" if len(shown) == 1 else "are demonstration detectors"
        yield f"{_listed(shown)} {kind}: not for decisions about any image."
    yield from blind_to(cards.values())
    unknown = [name for name, card in cards.items() if not card.training_data.complete]
    if unknown:
        yield (
            f"Of {_listed(unknown)} it is not wholly known which generators were seen in training. On one that it never saw, a detector "
            "may find nothing."
        )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _one(spec: ScoringSpec, row: Mapping[str, Any], name: str) -> dict[str, Any]:
    score, calibration = (row["scores"] or {}).get(name), spec.calibrations[name]
    at = None if score is None else float(calibrate(np.array([score], np.float64), calibration)[0])
    sized = row["width"] is not None and row["height"] is not None
    facts = {fact: [row.get(fragility.FACTS[fact][0])] for fact in spec.bounded}
    return {
        "score": score,
        "calibration": None if calibration is None else str(calibration),
        "calibrated_score": at,
        "probability": None if at is None else float(sigmoid(np.array([at]))[0]),
        "doubt": spec.doubt(name, row["width"], row["height"], facts) if sized else None,
        **{column: row[column].get(name) for column in _PER_DETECTOR if row.get(column) and name in row[column]},
        **({"views": {view: scores.get(name) for view, scores in row["views"].items() if scores}} if row.get("views") else {}),
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
    alone = {name: value for name, value in grounds.row.items() if name != schema.STABILITY}
    decided = [decide_again(grounds.spec, alone | {"scores": scores}).row for scores in grounds.row.get(schema.STABILITY) or ()]
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
    commands = ["touchstone runs evidence --verify evidence.json"]
    if row["sha256"] is None:
        return commands
    return [*commands, "touchstone runs evidence --verify evidence.json --image FILE", f"sha256sum FILE # must be {row['sha256']}"]


def _meanings(image: str) -> Iterator[tuple[str, Wanted]]:
    """What a word may mean, most literal first."""
    if re.fullmatch(r"[-−]?\d{1,19}", image):
        yield "image_id", {"image_id": int(image.replace("−", "-"))}
    uri, between, member = image.partition(BETWEEN)
    inside = {"member": member} if between else {}
    yield "uri", {"uri": strip_secrets(uri)} | inside
    place = strip_secrets(canonical(uri))
    if place != uri:
        yield "path", {"uri": place} | inside
    if "://" not in image and Path(image).is_file():
        yield "sha256", {"sha256": files_by_hash.file_sha256(Path(image))}


def _found(run: RunDirectory, meanings: Sequence[tuple[str, Wanted]]) -> Iterator[tuple[str, list[Place]]]:
    """Per meaning the rows that have it, in one pass; an id is one row's alone, so that nothing is read behind it."""
    columns = list(dict.fromkeys(["image_id", *(name for _, wanted in meanings for name in wanted)]))
    found: list[list[Place]] = [[] for _ in meanings]
    for path in reader.current_files(run):
        for table in reader.tables_in(run, [path], columns):
            for places, (_, wanted) in zip(found, meanings, strict=True):
                places += [(path, number) for number in _matching(table, wanted)]
        if meanings[0][0] == "image_id" and found[0]:
            break
    return zip((by for by, _ in meanings), found, strict=True)


def _matching(table: pa.Table, wanted: Wanted) -> list[int]:
    """The ids of the rows that have these values."""
    for name, value in wanted.items():
        column = table[name]
        within = -(2**63) <= value < 2**63 if isinstance(value, int) else True
        table = table.filter(pc.equal(column, pa.scalar(value, column.type))) if within else table.slice(0, 0)
    ids: list[int] = table["image_id"].to_pylist()
    return ids


def _few(run: RunDirectory, found: Sequence[Place]) -> str:
    rows = [_row(run, *one) for one in found[:_NAMED]]
    names = [f"{row['image_id']} ({row['uri'] if row['member'] is None else row['uri'] + BETWEEN + row['member']})" for row in rows]
    return ", ".join(names) + (", …" if len(found) > _NAMED else "")


def _row(run: RunDirectory, path: str, number: int) -> dict[str, Any]:
    for table in reader.tables_in(run, [path]):
        rows = table.filter(pc.equal(table["image_id"], number))
        if len(rows):
            row: dict[str, Any] = rows.slice(0, 1).to_pylist()[0]
            return row
    raise AssertionError(f"{path} had a row of {number} a moment ago")


def _maker(document: Mapping[str, Any]) -> str:
    made_by = document["record"].get("made_by")
    return f"Touchstone {made_by.get('touchstone')}" if isinstance(made_by, Mapping) else "another version of Touchstone"
