"""A run and its labels → labelled images with a score of every detector. Knows rows, labels and cards; fits nothing.

What cannot be used is left out and counted: images without a score, images outside the range that a detector's card allows and those of
one colour (their verdict is `abstain` whatever they score), images without a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_app.calibration.collecting import ROWS, Collector, Tally
from ray_app.calibration.labelled import Labelled
from ray_app.detectors import DetectorCard, load_card
from ray_app.ensembles.cards import EnsembleCard, Member, ensemble_of
from ray_app.errors import ConfigError, TouchstoneError
from ray_app.evaluation.joining import Labels, OwnLabels, index_labels
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.systems import Systems, systems_of
from ray_app.evaluation.truths import check_joined
from ray_app.runs import RunDirectory
from ray_app.runs.reader import current_tables


@dataclass(frozen=True)
class Reading:
    """A labelled run, read. `members`: as the run's ensemble names them, and `names`: as the run does; `before`: what decided until now."""

    url: str
    labels: str
    members: tuple[Member, ...]
    names: tuple[str, ...]
    before: EnsembleCard
    calibrations: Mapping[str, Any]
    labelled: Labelled
    identity: Mapping[str, Any]
    tally: Tally
    told: tuple[str, ...]


def read_labelled(
    url: str, labels: str | None, *, key: str | None = None, split: str | None = None, detectors: Sequence[str] = ()
) -> Reading:
    """The images of a run that have a label and a score of every detector; `labels`: None = the run's own columns.

    `detectors`: only these of the run's, in this order. Raises ConfigError where there is no run, where labels are of something else, for
    a detector that was not run, and for a run in which not every detector looked at every image.
    """
    run = RunDirectory.open(url)
    if not run.exists():
        raise ConfigError(f"{run.store.url}: no run here", hint="touchstone score SOURCE --out DIR makes one")
    described, systems = run.describe(), systems_of(run)
    members, names = _members(systems, described["detectors"], detectors, run.store.url)
    cards = _cards(members, names)
    _check_cards(cards, described["identity"].get("detectors", {}))
    found: Labels = index_labels(open_labels(labels), key=key, split=split) if labels else OwnLabels(run.store.url, split)
    reader = Collector(found, names, cards)
    for table in current_tables(run, list(dict.fromkeys([*ROWS, *found.columns]))):
        reader.add(table)
    told = [*check_joined(found, reader.tally, run), *_left_out(reader.tally), *_unfinished(run)]
    before = systems.ensemble if systems.ensemble and names == systems.members else ensemble_of([one.detector for one in members])
    calibrations = {name: systems.calibrations.get(name) for name in names}
    labelled = reader.labelled()
    if not len(labelled):
        raise ConfigError(f"{run.store.url}: no labelled image has a score of every detector", hint=" ".join(told) or None)
    _check_labels(labelled, found.name)
    return Reading(run.store.url, found.name, members, names, before, calibrations, labelled, described["identity"], reader.tally,
                   tuple(told))  # fmt: skip


def _members(systems: Systems, run_names: Sequence[str], asked: Sequence[str], url: str) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    """The members that are calibrated, without what the run's ensemble says of them, and their names in the run."""
    if systems.ensemble is not None and systems.ensemble.cascade is not None:
        raise ConfigError(
            f"{url}: a cascade scored it, so not every detector looked at every image, and those that all looked at are no fair sample",
            hint="score the labelled images with `--detector A --detector B …`, and calibrate that run",
        )
    if systems.ensemble is not None:
        known = dict(zip(systems.members, (one.detector for one in systems.ensemble.members), strict=True))
    else:
        known = {name: name for name in run_names}
    if missing := [name for name in asked if name not in known]:
        raise ConfigError(f"{url}: the run has no scores of {', '.join(missing)}", hint=f"it has {', '.join(known)}")
    names = tuple(asked) or tuple(known)
    return tuple(Member(detector=known[name]) for name in names), names


def _cards(members: Sequence[Member], names: Sequence[str]) -> dict[str, DetectorCard]:
    """The cards of those detectors whose cards can be read here."""
    found = {}
    for member, name in zip(members, names, strict=True):
        try:
            found[name] = load_card(member.detector)
        except TouchstoneError:
            continue  # a run of another machine is calibrated all the same; its sizes are not checked
    return found


def _check_cards(cards: Mapping[str, DetectorCard], noted: Mapping[str, Any]) -> None:
    """Raises ConfigError for a detector whose card is not any more what the run was scored with: other scores would be calibrated."""
    for name, card in cards.items():
        facts = noted.get(name, {})
        now: dict[str, Any] = {"architecture": card.architecture_facts, "preprocessing": card.preprocessing.model_dump(mode="json")}
        if card.weights.sha256 and not card.weights.beside and card.backbone is None:
            now["weights"] = card.weights.sha256
        if other := [key for key, value in now.items() if key in facts and facts[key] != value]:
            raise ConfigError(
                f"{name}: its card has other {' and '.join(other)} than the run was scored with", hint="score the labelled images again"
            )


def _check_labels(labelled: Labelled, labels: str) -> None:
    """Raises ConfigError where the same bytes are labelled real and fake."""
    fakes = {digest for digest, fake in zip(labelled.sha256, labelled.fake.tolist(), strict=True) if fake}
    reals = {digest for digest, fake in zip(labelled.sha256, labelled.fake.tolist(), strict=True) if not fake}
    if both := sorted(fakes & reals):
        raise ConfigError(
            f"{labels}: {len(both):,} files are labelled real in one place and fake in another, for example sha256 {both[0]}",
            hint="correct the labels, or leave those files out",
        )


def _left_out(tally: Tally) -> list[str]:
    return [f"{count:,} labelled images are left out: {reason}." for reason, count in tally.left_out.items()]


def _unfinished(run: RunDirectory) -> list[str]:
    return [] if run.store.exists("summary.json") else [f"{run.store.url} is not finished: only what is scored so far is used."]
