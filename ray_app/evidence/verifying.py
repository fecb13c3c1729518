"""A record → what of it agrees with itself, with the image and with the detectors here, line by line.

Without the image: the digest, the run's fingerprint, the cards against that, and the decision from the recorded scores. With it: the
file's hash, and the scores once more on this machine within a tolerance that is said.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_app import __version__
from ray_app.config.loading import validate
from ray_app.ensembles import EnsembleCard, decision_facts
from ray_app.errors import ConfigError, said
from ray_app.evidence.canonical import digest
from ray_app.evidence.cards import departures, revived
from ray_app.evidence.checks import Check, hashed
from ray_app.evidence.keys import MISSING, differences, strange_keys
from ray_app.evidence.profiling import PROFILE
from ray_app.evidence.redeciding import Decided, decide_again, spec_of
from ray_app.evidence.sections import FACTS, SENTENCES, Grounds, sections
from ray_app.evidence.signing import check_signature
from ray_app.runs import fingerprint

_NAMED = 3  # differences that a line tells


def verify_evidence(
    told: Mapping[str, Any], image: Path | None = None, *, signer: Path | None = None, device: str = "cpu", accepted: Collection[str] = ()
) -> Iterator[Check]:
    """Check a record that `read_evidence` gave, and the image where there is one. `accepted`: licences, as for `score`; `signer`: the
    public key of who must have signed it. What is not looked at, `not_verified` tells.

    Raises ConfigError where the record is no whole one, has keys that no record has, or the image or key cannot be read, and DetectorError
    where weights that the image needs are missing or under a licence that is not accepted.
    """
    record = told["record"]
    try:
        _refuse_keys(list(strange_keys(told)), record)
        if signer is not None:
            yield check_signature(told, signer)
        yield hashed("record", digest(record), told["sha256"], "the SHA-256 of all that it says")
        grounds = _grounds(record, device)
        again = sections(grounds)
        _refuse_keys(list(_unknown(record, grounds, again)), record)
        checks = [*_check_hashes(record, grounds), *_check_sections(record, again)]
        checks += _check_decision(record, decide_again(grounds.spec, grounds.row, grounds.guarantee))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"the record is not whole: {said(error)}", hint="it was changed after it was made; make it anew") from error
    yield from checks
    if image is None:
        yield Check("image", "not checked", "give it with --image: then its hash is compared, and it is scored again")
        return
    from ray_app.evidence.rescoring import check_image

    yield from check_image(record, grounds.spec, image, accepted)


def _refuse_keys(strange: Sequence[str], record: Mapping[str, Any]) -> None:
    if strange:
        made_by = record["made_by"].get("touchstone") if isinstance(record.get("made_by"), Mapping) else None
        told = f"it was made by Touchstone {made_by} and changed since, or that is a later version than this, {__version__}"
        raise ConfigError(f"no record has the key {', '.join(strange[:_NAMED])}", hint=told)


def _unknown(record: Mapping[str, Any], grounds: Grounds, again: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are not there where the record's parts are made anew."""
    facts = {name: card.scoring_facts | {"weights": None} for name, card in grounds.spec.cards.items()}
    noted = differences(facts, record["run"]["identity"]["detectors"], "run.identity.detectors")
    yield from (path for path, ours, _ in (*_differing(record, again), *noted) if ours is MISSING)


def _differing(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in (*FACTS, *([PROFILE] if PROFILE in again or PROFILE in record else [])):
        yield from differences(again.get(name), record.get(name) if name == PROFILE else record[name], name)
    yield from differences(again["guarantee"]["card"], record["guarantee"]["card"], "guarantee.card")


def _grounds(record: Mapping[str, Any], device: str) -> Grounds:
    """What a record rests on, as it stands in the record."""
    detectors, run = record["detectors"], record["run"]
    ensemble = validate(record["ensemble"], EnsembleCard, where="the recorded ensemble")
    cards = {name: revived(one["card"], one["asked_as"]) for name, one in detectors.items()}
    spec = spec_of(ensemble, cards, run["identity"], device=device)
    told = {name: one["card"] for name, one in detectors.items()}
    return Grounds(spec, record["ensemble"], told, record["row"], run, record["guarantee"]["run"])


def _check_hashes(record: Mapping[str, Any], grounds: Grounds) -> Iterator[Check]:
    hashes, identity, ensemble = record["hashes"], record["run"]["identity"], grounds.spec.ensemble
    yield hashed("run", fingerprint(identity), hashes["run"], "the fingerprint of its settings")
    yield hashed("ensemble", digest(grounds.ensemble), hashes["ensemble"], f"the card of {ensemble.name}")
    if "decision" in identity:
        same = decision_facts(ensemble) == identity["decision"]
        words = "the recorded rule, calibration and thresholds are the run's"
        yield Check("rule", "agrees", words) if same else Check("rule", "differs", words.replace("are", "are not"))
    for name, card in grounds.spec.cards.items():
        facts, weights = identity["detectors"].get(name, {}), hashes["weights"][name]
        other = [*departures(card, facts), *([] if facts.get("weights") == weights else ["weights"])]
        if other:
            yield Check(name, "differs", f"the recorded card is not what the run noted: {', '.join(other)}")
        else:
            told = f"card {hashes['detectors'][name]}, weights {weights or 'not noted by the run'}"
            yield Check(name, "agrees", f"the recorded card is the run's; SHA-256: {told}")


def _check_sections(record: Mapping[str, Any], again: Mapping[str, Any]) -> Iterator[Check]:
    """Whether what is told of the row is what the row, the run and the cards in the record give."""
    made_by = record["made_by"]["touchstone"]
    # Another version may tell less.
    other = [one for one in _differing(record, again) if one[2] is not MISSING or made_by == __version__]
    if other:
        told = [f"{key}: recorded {_shown(theirs)}, here {_shown(ours)}" for key, ours, theirs in other[:_NAMED]]
        yield Check("sections", "differs", f"not what the recorded row and cards give: {'; '.join(told)}")
    else:
        told_of = [*FACTS, *([PROFILE] if PROFILE in again else []), "guarantee.card"]
        yield Check("sections", "agrees", f"{', '.join(told_of)} follow from the recorded row, run and cards")
    if all(digest(again[name]) == digest(record[name]) for name in SENTENCES):
        yield Check("sentences", "agrees", "as this version of Touchstone writes them")
    elif made_by == __version__:
        yield Check("sentences", "differs", f"{', '.join(SENTENCES)}: this version of Touchstone would not have written them so")
    else:
        yield Check("sentences", "not checked", f"written by Touchstone {made_by}; this is {__version__}")


def _shown(value: Any) -> str:
    return "nothing" if value is MISSING else json.dumps(value)


def _check_decision(record: Mapping[str, Any], again: Decided) -> Iterator[Check]:
    row = record["row"]
    if again.differs:
        for name in again.differs:
            yield Check("decision", "differs", f"{name}: recorded {row.get(name)!r}, from the recorded scores {again.row[name]!r}")
        return
    if row["verdict"] is None:
        yield Check("decision", "agrees", f"none: the image has no score ({row['status']})")
        return
    how = "to the last bit" if again.exact else "but for the last bits of a number"
    score = "no score" if row["score"] is None else f"score {row['score']:+.6f}"
    yield Check("decision", "agrees", f"{row['verdict']}, {score}: the same from the recorded detector scores, {how}")
