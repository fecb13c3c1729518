"""One image's record, from a run's files (`make_evidence`): its decision, by what, under which guarantee, and the hashes of all that.

    {"touchstone_evidence": 1, "sha256": digest of `record`, "signature": if it was signed (`signature.signed`), "record": {
        image       image_id, uri, member, occurrence; `sha256` of its file
        finding     the word, and the grounds that it rests on, strongest first: source, what it says, error rate
        decision    score, probability, calibrated, verdict, reason, thresholds, …; `rederived`: the cards below give the same
        detectors   per detector: score, calibration in words, calibrated score, precision, weights, card, …
        ensemble    the ensemble's card          guarantee   the card's, whether it holds in this run, both in sentences
        profile     generator and words that were predicted, where the run has a profile
        provenance  what the file says of itself limits      what must not be read into this
        row         the run's whole row          run         where and when, software, identity, fingerprint
        hashes      of each of these             verify      how to check
        made_at, made_by, found_by; cards_here_depart: where the run noted another card than lies on the machine that made this}}

Everything is read from the run directory and the cards; nothing is fetched, decoded or scored. `sections` are the parts that follow from a
row, a run and its cards (`Grounds`): made when a record is written, and again when it is verified.
"""

import functools
import hashlib
import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app import __version__
from ray_app.detectors import DetectorCard, card_sections, files_by_hash, load_card
from ray_app.detectors.card import blind_to, with_run_facts
from ray_app.ensembles import EnsembleCard, calibrate, find, logit, sigmoid
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec
from ray_app.reports.format import file_name, stated
from ray_app.runs import RunDirectory, directory, fingerprint, reader, row_schema
from ray_app.runs.schema import DETAIL, FINDING, GROUNDS, SECOND_LOOK, STABILITY, reason_of
from ray_app.storage import canonical as canonical_uri
from ray_app.storage import strip_secrets

KIND, SCHEMA = "touchstone_evidence", 1
PRIORS = (0.001, 0.01, 0.1, 0.5)  # shares of fakes at which a calibrated probability is given again
PROFILE = "profile"
# Sections that are facts, and those that are sentences, which another version of Touchstone may put otherwise.
RECORD_SECTIONS = ("image", "decision", "detectors", "provenance", "hashes")
SENTENCES = ("finding", "guarantee", "limits", "verify")
DECIDED = ("score", "probability", "calibrated", "verdict", "verdict_reason", DETAIL, SECOND_LOOK)
_IMAGE = ("image_id", "uri", "member", "occurrence", "sha256", "status", "detail", "format", "width", "height", "decoder", "quality")
_PER_DETECTOR = ("replies", "mask_area", "mask_peak")
_CLOSE = 1e-9  # of a number: another processor's exp and log may round the last bits otherwise
_NAMED = 3
MISSING = object()  # in a value's place: there is no such key

_NEAREST = (
    "A generator's name is the nearest of those that the identifier knows. It is no proof of where an image came from, it entered no "
    "score, and of an image that is not flagged it says nothing."
)
_WORDS = "Predicted words are a guess at the prompt: many prompts lead to one image, and these may never have been typed."
_OF_VERDICT = {
    "fake": "“fake” says that the score reached a threshold. It is no proof, and it says neither who made or altered the image, nor how, "
    "nor to what end.",
    "real": "“real” says that no evidence was found. It does not say that an image is genuine: a generator may leave no trace that is "
    "known here, and no guarantee speaks of the fakes that are missed.",
    "abstain": "“abstain” says neither real nor fake, and the score must not be read as either.",
    None: "There is no score and no verdict: the image could not be scored.",
}
_ALWAYS = (
    "A score is of these bytes alone. A copy that was compressed, resized or cropped again is another file and may score otherwise.",
    "What a file says of its own origin can be written or removed by anybody, and entered no score. A C2PA manifest can be checked; "
    "only a trust list says whose signature counts.",
    "The digest shows that a record was changed by accident or without care. It is no signature: who changes a record can compute "
    "another digest. To prove when and by whom it was made, sign the file or keep its digest where it cannot be changed.",
)


class Grounds(NamedTuple):
    """What a record rests on: the ensemble's card and the detectors' as JSON, the whole row, facts of the run, and what its summary says
    of the guarantee. `spec`: what the cards mean to this version of Touchstone, which may know keys that they do not have.
    """

    spec: ScoringSpec
    ensemble: Mapping[str, Any]
    cards: Mapping[str, Mapping[str, Any]]
    row: Mapping[str, Any]
    run: Mapping[str, Any]
    guarantee: Mapping[str, Any] | None


class Decided(NamedTuple):
    """What the cards make of the recorded scores. `exact`: the row has the same to the last bit. `differs`: the columns that do not."""

    row: dict[str, Any]
    exact: bool
    differs: tuple[str, ...]


def make_evidence(url: str, image: str) -> dict[str, Any]:
    """The record of one image of a run (`image`: see `find_row`) with its digest: plain JSON, and but for `made_at` always the same.

    Raises ConfigError where there is no finished run, not exactly one such row, or a detector's card is not on this machine.
    """
    run = RunDirectory.open(url)
    described, summary = run.describe_finished(), run.read_json("summary.json")
    row, found_by = find_row(run, image)
    identity, ensemble = described["identity"], EnsembleCard.model_validate(described["ensemble"])
    here = [_card_here(member.detector) for member in ensemble.members]
    noted = {card.name: identity["detectors"].get(card.name, {}) for card in here}
    cards = {card.name: with_run_facts(card, noted[card.name]) for card in here}
    of_run = {
        "url": run.store.url,
        "created_at": described["created_at"],
        "finished_at": summary.get("finished_at"),
        "schema": described["schema"],
        "touchstone": summary.get("version"),
        **{name: summary.get(name) for name in ("members", "verdicts")},
        "identity": identity,
    }
    dumped = {name: card.model_dump(mode="json") for name, card in cards.items()}
    grounds = Grounds(spec_of(ensemble, cards, identity), described["ensemble"], dumped, plain(row), of_run, summary.get("guarantee"))
    record = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": {"touchstone": __version__, "python": platform.python_version()},
        "found_by": found_by,
        "cards_here_depart": {card.name: keys for card in here if (keys := departures(card, noted[card.name]))},
        **sections(grounds),
    }
    return {KIND: SCHEMA, "sha256": digest(record), "record": record}


def sections(grounds: Grounds) -> dict[str, Any]:
    """All of a record but who made it and when, as plain JSON."""
    spec, ensemble, _, row, run, of_run = grounds
    found = find(row.get("provenance"), row["verdict"], spec.ensemble.thresholds)
    return {
        "image": {name: row.get(name) for name in _IMAGE},
        "finding": {FINDING: found.finding, GROUNDS: [one.model_dump() for one in found.grounds]},
        "decision": _decision(grounds),
        "detectors": {
            name: _detector(grounds, name, member.detector) for name, member in zip(spec.cards, spec.ensemble.members, strict=True)
        },
        "ensemble": dict(ensemble),
        "guarantee": {"card": ensemble.get("guarantee"), "run": of_run, "words": list(_guarantee_words(spec.ensemble, of_run))},
        **_profile(row, run["identity"]),
        "provenance": json.loads(row.get("provenance") or "null"),
        "limits": list(_limits(spec.ensemble, spec.cards, row)),
        "row": dict(row),
        "run": dict(run),
        "hashes": _hashes(grounds),
        "verify": _how_to_verify(row),
    }


def digest(value: Any) -> str:
    """The SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no blanks (after RFC 8785, but for numbers, which are as Python writes them). NaN is an error."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def record_text(value: Any) -> str:
    """A record as its file has it. Raises ValueError for NaN and infinity."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def spec_of(ensemble: EnsembleCard, cards: Mapping[str, DetectorCard], identity: Mapping[str, Any], *, device: str = "cpu") -> ScoringSpec:
    """The settings of the run that a record is of, on any device."""
    from ray_app.scoring.identity import stability_in

    return ScoringSpec(
        ensemble,
        cards,
        ImageLimits(**identity.get("limits", {})),
        {name: identity.get("precision", {}).get(name, "fp32") for name in cards},
        identity.get("resize", "exact"),
        identity.get("batch_slots", 1),
        device,
        stability=stability_in(dict(identity)),
    )


def departures(card: DetectorCard, noted: Mapping[str, Any]) -> list[str]:
    """The keys in which a card is not what a run noted; what an older run did not note is not compared."""
    ours = {key: value for key, value in card.scoring_facts.items() if key in noted}
    return [key for key, _, _ in directory.differing_keys(ours, {key: value for key, value in noted.items() if key in ours})]


def decide_again(spec: ScoringSpec, row: Mapping[str, Any], guarantee: Mapping[str, Any] | None = None) -> Decided:
    """Apply the ensemble to a row's detector scores, by the code that decides in runs. `guarantee`: as in the run's summary."""
    from ray_app.scoring.guarantee import decided, unlike_rows

    rows = decided(_table(spec, row), spec)
    unlike = (guarantee or {}).get("unlike")
    [again] = (unlike_rows(rows, unlike, spec.ensemble.thresholds) if unlike else rows).to_pylist()
    known = row
    if DETAIL not in row:  # a row of before schema 6, whose reason was a sentence
        why = reason_of(row["verdict_reason"])
        known = {**row, "verdict_reason": why and why.reason, DETAIL: why and why.detail}
    values = {name: again.get(name) for name in DECIDED if name in known}
    differs = tuple(name for name in values if any(differences(values[name], known[name], name)))
    return Decided(values, values == {name: known[name] for name in values}, differs)


def differences(ours: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two values of JSON differ, but for last bits of their numbers: the dotted name, and either's value, `MISSING` for a key that is
    not there.
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in {**ours, **theirs}:
            yield from differences(ours.get(name, MISSING), theirs.get(name, MISSING), f"{path}.{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{path}.{number}")
    elif isinstance(ours, float) and isinstance(theirs, float):
        if not np.isclose(ours, theirs, rtol=_CLOSE, atol=_CLOSE):
            yield path, ours, theirs
    elif ours is MISSING or theirs is MISSING or ours != theirs:
        yield path, ours, theirs


def plain(value: Any) -> Any:
    """A row's values as JSON has them: times in ISO 8601, bytes as their hash, numbers that are not finite and other types as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()}"
    if isinstance(value, datetime | date):
        return value.isoformat()
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def find_row(run: RunDirectory, image: str) -> tuple[dict[str, Any], str]:
    """The current row of one image, and by what it was found: its `image_id`, its `uri` (`CONTAINER › MEMBER` inside one), its `path`, or
    the `sha256` of a copy of the file, where the run does not know its place.

    Raises ConfigError where no row, or more than one, is meant.
    """
    meanings = list(_meanings(image))
    columns = list(dict.fromkeys(["image_id", *(name for _, wanted in meanings for name in wanted)]))
    found: list[list[tuple[str, int]]] = [[] for _ in meanings]  # of each meaning: a file of the run, and an id in it
    for path in reader.current_files(run):
        for table in reader.tables_in(run, [path], columns):
            for places, (_, wanted) in zip(found, meanings, strict=True):
                is_meant = functools.reduce(pc.and_, (pc.equal(table[name], value) for name, value in wanted.items()))
                places += [(path, number) for number in table.filter(is_meant)["image_id"].to_pylist()]
        if meanings[0][0] == "image_id" and found[0]:
            break  # an id is one row's alone
    for (by, _), places in zip(meanings, found, strict=True):
        rows = [_row(run, *place) for place in places[:_NAMED]]
        if len(places) > 1:
            names = ", ".join(f"{row['image_id']} ({file_name(row['uri'], row['member'])})" for row in rows)
            more = ", …" if len(places) > _NAMED else ""
            raise ConfigError(f"{image}: {len(places):,} rows of the run", hint=f"give one's image_id: {names}{more}")
        if rows:
            return rows[0], by
    raise ConfigError(
        f"{run.store.url}: no row of {image}", hint=f"touchstone results {run.store.url} --json shows each row's image_id and uri"
    )


def _card_here(detector: str) -> DetectorCard:
    try:
        return load_card(detector)
    except ConfigError as error:
        hint = "a record holds every card in full; bring the card to where the run's ensemble names it"
        raise ConfigError(f"the card of {detector} is not on this machine: {error.message}", hint=hint) from None


def _table(spec: ScoringSpec, row: Mapping[str, Any]) -> pa.Table:
    """The row as a run's files hold it, words as plain text; what is no part of a decision is left out."""
    schema = row_schema(
        list(row["scores"] or spec.cards),
        speakers=list(row.get("replies") or ()),
        second_look=SECOND_LOOK in row,
        stability=STABILITY in row,
    )
    kinds = {field.name: field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in schema}
    left_out = ("input", "scored_at", "views", FINDING, GROUNDS)
    return pa.table({name: pa.array([value], kinds.get(name)) for name, value in row.items() if name not in left_out})


def _meanings(image: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a word may mean, most literal first, as columns and their values."""
    number = int(image.replace("−", "-")) if re.fullmatch(r"[-−]?\d{1,19}", image) else None
    if number is not None and -(2**63) <= number < 2**63:
        yield "image_id", {"image_id": number}
    uri, between, member = image.partition(" › ")
    inside = {"member": member} if between else {}
    yield "uri", {"uri": strip_secrets(uri)} | inside
    place = strip_secrets(canonical_uri(uri))
    if place != uri:
        yield "path", {"uri": place} | inside
    if "://" not in image and Path(image).is_file():
        yield "sha256", {"sha256": files_by_hash.file_sha256(Path(image))}


def _row(run: RunDirectory, path: str, number: int) -> dict[str, Any]:
    tables = (table.filter(pc.equal(table["image_id"], number)) for table in reader.tables_in(run, [path]))
    return next(row for table in tables for row in table.to_pylist())


def _decision(grounds: Grounds) -> dict[str, Any]:
    card, row = grounds.spec.ensemble, grounds.row
    alone = {name: value for name, value in row.items() if name != STABILITY}
    views = [decide_again(grounds.spec, alone | {"scores": scores}).row for scores in row.get(STABILITY) or ()]
    return {
        **{name.removeprefix("verdict_"): row.get(name) for name in DECIDED},
        "rule": card.rule,
        "thresholds": grounds.ensemble.get("thresholds"),
        "at_other_prevalences": _at_other_priors(row["score"], card) if row["calibrated"] else [],
        "views": [{name: view[name] for name in ("score", "verdict")} for view in views],
        "rederived": not decide_again(grounds.spec, row, grounds.guarantee).differs,
    }


def _at_other_priors(score: float | None, card: EnsembleCard) -> list[dict[str, float]]:
    """A calibrated probability at other shares of fakes than the calibration's; nothing where either is not known.

    Bayes' rule on log-odds: the score moves by logit(share) less logit(the calibration's).
    """
    if score is None or card.population is None:
        return []
    shares = sorted({*PRIORS, card.population.prevalence})
    moved = [(share, score + logit(share) - logit(card.population.prevalence)) for share in shares]
    return [{"prevalence": share, "probability": 1 / (1 + math.exp(-at)) if at > -700 else 0.0} for share, at in moved]


def _detector(grounds: Grounds, name: str, asked_as: str) -> dict[str, Any]:
    """A detector's raw score (null = none), calibrated, its probability, and how it was made."""
    spec, row, identity = grounds.spec, grounds.row, grounds.run["identity"]
    score, calibration = (row["scores"] or {}).get(name), spec.calibrations[name]
    at = None if score is None else float(calibrate(np.array([score], np.float64), calibration)[0])
    is_sized = row["width"] is not None and row["height"] is not None
    facts = {fact: [row.get(card_sections.FACTS[fact][0])] for fact in spec.bounded}
    return {
        "score": score,
        "calibration": None if calibration is None else str(calibration),
        "calibrated_score": at,
        "probability": None if at is None else float(sigmoid(np.array([at]))[0]),
        "doubt": spec.doubt(name, row["width"], row["height"], facts) if is_sized else None,
        **{column: row[column].get(name) for column in _PER_DETECTOR if row.get(column) and name in row[column]},
        **({"views": {view: scores.get(name) for view, scores in row["views"].items() if scores}} if row.get("views") else {}),
        "asked_as": asked_as,
        "precision": identity.get("precision", {}).get(name),
        "weights": identity["detectors"].get(name, {}).get("weights"),
        "card": dict(grounds.cards[name]),
    }


def _profile(row: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The section `profile`: generator, prompt, the facts of the cards that predicted them, limits; none for a run without one."""
    if not identity.get(PROFILE):
        return {}
    generator = {name: row.get(f"generator_{name}") for name in ("family", "probability", "confidence", "ranking")}
    section = {
        "generator": {"name": row.get("predicted_generator"), **generator} if row.get("generator_confidence") is not None else None,
        "prompt": {"text": row["predicted_prompt"], "likelihood": row.get("prompt_likelihood")} if row.get("predicted_prompt") else None,
        "cards": dict(identity[PROFILE]),
    }
    limits = [_NEAREST] * (section["generator"] is not None) + [_WORDS] * (section["prompt"] is not None)
    return {PROFILE: {**section, "limits": limits}}


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
    verify, file = "touchstone runs evidence --verify evidence.json", row["sha256"]
    return [verify] if file is None else [verify, f"{verify} --image FILE", f"sha256sum FILE # must be {file}"]


def _guarantee_words(card: EnsembleCard, of_run: Mapping[str, Any] | None) -> Iterator[str]:
    """What is known of the rate at which real images reach the threshold, and whether it holds in this run's archive."""
    known, cuts = card.guarantee, card.thresholds
    if known is None and cuts.false_positive_rate is None:
        yield "There is no guarantee: nobody measured how many real images reach this threshold."
    elif known is None and cuts.false_positive_rate is not None:
        among = f" of {cuts.n_real:,} real images" if cuts.n_real else " of real images"
        where = f" ({cuts.measured_on})" if cuts.measured_on else ""
        yield f"There is no guarantee. When the threshold was chosen, {stated(cuts.false_positive_rate)}{among} reached it{where}."
    elif known is not None:
        worth = ""
        if known.groups is not None and known.effective is not None and known.effective < known.groups:
            independent = f"worth {known.effective:,.0f} independent ones, being no higher"
            worth = f", that of reals of {known.groups:,} sources or looks, {independent}"
        yield (
            f"With {stated(known.confidence)} confidence, no more than {stated(known.target_fpr)} of real images like those of the "
            f"calibration reach this threshold: of {known.n_real:,} that nothing else was fitted on, {known.false_positives:,} did, and "
            f"the exact binomial upper bound (Clopper and Pearson) of that is {stated(known.upper_bound)}{worth}."
        )
        yield (
            "That is a rate over many real images. It is not the chance that this image is real, and among few fakes even a low rate makes "
            "many flags false."
        )
        yield from _in_this_run(of_run)


def _in_this_run(of_run: Mapping[str, Any] | None) -> Iterator[str]:
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


def _limits(card: EnsembleCard, cards: Mapping[str, DetectorCard], row: Mapping[str, Any]) -> Iterator[str]:
    """What must not be read into the record."""
    yield _OF_VERDICT.get(row["verdict"], _OF_VERDICT[None])
    if row["probability"] is not None and not row["calibrated"]:
        yield "The probability is not calibrated: it is the plain sigmoid of the score, and not how often such images are fake."
    elif row["probability"] is not None and card.population is not None:
        yield (
            f"The probability is a chance only where {stated(card.population.prevalence)} of the images are fake, as it was calibrated "
            "for. At another share it is another."
        )
    elif row["probability"] is not None:
        yield "The probability is calibrated, but the card does not say for which share of fakes."
    if shown := [name for name, one in cards.items() if one.demonstration]:
        kind = "is a demonstration detector" if len(shown) == 1 else "are demonstration detectors"
        yield f"{_listed(shown)} {kind}: not for decisions about any image."
    yield from blind_to(cards.values())
    if unknown := [name for name, one in cards.items() if not one.training_data.complete]:
        yield (
            f"Of {_listed(unknown)} it is not wholly known which generators were seen in training. On one that it never saw, a detector "
            "may find nothing."
        )
    yield from _ALWAYS


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
