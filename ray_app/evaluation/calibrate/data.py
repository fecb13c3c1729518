"""A run and its labels → labelled images with a score of every detector (`read_labelled`,
`CalibrationData`), in columns of one length.

What cannot be used is left out and counted: images without a score, images outside the range that a
detector's card allows and those of one colour (their verdict is `abstain` whatever they score),
images without a label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ray_app.datasets.label_reader import open_labels
from ray_app.detectors import DetectorCard
from ray_app.detectors.card import Platt
from ray_app.ensembles.card import EnsembleCard, EnsembleMember, ensemble_of
from ray_app.errors import ConfigError
from ray_app.evaluation.join import OWN, own_labels, read_labels
from ray_app.evaluation.run import check_joined
from ray_app.evaluation.systems import Systems, readable_card, systems_of
from ray_app.inference import is_blank
from ray_app.metrics.arrays import Bools
from ray_app.runs import RunDirectory
from ray_app.runs.current import numbers
from ray_app.runs.rows import bounded_facts

Places = NDArray[np.int64]
ROWS = ("image_id", "status", "sha256", "format", "width", "height", "quality", "texture", "graphics", "flags", "phash", "decoder",
        "scores")  # fmt: skip
"""What is read of a run, so far as it has it."""
TRUTH = (
    "label",
    "generator",
    *(f"{who}_{name}" for who in ("label", "own") for name in ("source", "group", "part", "phash")),
)
"""What labels, or the run's own columns, may say. `group` is taken for `source` where there is
none.
"""


@dataclass(frozen=True)
class CalibrationData:
    """n images with a label and a score of every detector.

    `image_id` int64 (n,) · `sha256` of the files, 64 hex digits · `fake` bool (n,) · `scores`
    {detector: float32 (n,)}, raw and finite, in the ensemble's order · `generator`, `source` (what
    is not independent: one scene, photographer, article), `phash` (16 hex digits) and `part` (fit,
    calibrate, choose, where the user divides the images): None where it is not known · `format` as
    in the run · `width`, `height` int (n,), px · `quality` float (n,), of JPEGs, 1 … 100; NaN where
    there is none.
    """

    image_id: NDArray[np.int64]
    sha256: Sequence[str]
    fake: Bools
    scores: Mapping[str, NDArray[np.float32]]
    generator: Sequence[str | None]
    source: Sequence[str | None]
    phash: Sequence[str | None]
    part: Sequence[str | None]
    format: Sequence[str | None]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    quality: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Whose scores there are, in order."""
        return tuple(self.scores)

    @property
    def raw(self) -> NDArray[np.float64]:
        """The scores as float64 (n, detectors)."""
        return np.stack([np.asarray(scores, np.float64) for scores in self.scores.values()], axis=1)

    def take(self, places: NDArray[Any]) -> "CalibrationData":
        """The images at some places (m,), in that order; or those where a mask (n,) is true."""
        chosen = np.flatnonzero(places) if places.dtype == np.bool_ else places
        taken: dict[str, Any] = {
            "scores": {name: scores[chosen] for name, scores in self.scores.items()}
        }
        for one in fields(self):
            if one.name != "scores":
                column = getattr(self, one.name)
                taken[one.name] = (
                    column[chosen]
                    if isinstance(column, np.ndarray)
                    else [column[place] for place in chosen]
                )
        return CalibrationData(**taken)


@dataclass(frozen=True)
class LabelledRun:
    """A labelled run, read. `members`: as the run's ensemble names them, and `names`: as the run
    does; `before`: what decided until now; `joined`: labelled rows, of which some are `left_out`,
    by reason; `decoders` of the images.
    """

    url: str
    labels: str
    members: tuple[EnsembleMember, ...]
    names: tuple[str, ...]
    before: EnsembleCard
    calibrations: Mapping[str, Platt | None]
    labelled: CalibrationData
    identity: Mapping[str, Any]
    joined: int
    left_out: Mapping[str, int]
    decoders: frozenset[str]
    remarks: tuple[str, ...]


def read_labelled(
    url: str,
    labels: str | None,
    *,
    key: str | None = None,
    split: str | None = None,
    detectors: Sequence[str] = (),
) -> LabelledRun:
    """The images of a run that have a label and a score of every detector; `labels`: None = the
    run's own columns.

    `detectors`: only these of the run's, in this order. Raises ConfigError where there is no run,
    where labels are of something else, for a detector that was not run, and for a run in which not
    every detector looked at every image.
    """
    run = RunDirectory.open(url)
    if not run.exists():
        raise run.missing()
    described, systems = run.describe(), systems_of(run)
    members, names = _members(systems, described["detectors"], detectors, run.store.url)
    cards = _cards(members, names)
    _check_cards(cards, described["identity"].get("detectors", {}))
    with (
        read_labels(open_labels(labels), key=key, split=split)
        if labels
        else own_labels(run.store.url, split) as found
    ):
        found.join(run, [*ROWS, OWN])
        remarks = check_joined(found, run)
        rows = pa.concat_tables(found.tables([*ROWS, *TRUTH]))
    usable, left_out = _usable(rows, names, cards)
    remarks += [
        f"{count:,} labelled images are left out: {reason}." for reason, count in left_out.items()
    ]
    if not run.store.exists("summary.json"):
        remarks.append(f"{run.store.url} is not finished: only what is scored so far is used.")
    before = (
        systems.ensemble
        if systems.ensemble and names == systems.members
        else ensemble_of([one.detector for one in members])
    )
    calibrations = {name: systems.calibrations.get(name) for name in names}
    rows = rows.filter(pa.array(usable))
    if not len(rows):
        raise ConfigError(
            f"{run.store.url}: no labelled image has a score of every detector",
            hint=" ".join(remarks) or None,
        )
    labelled = _labelled(rows, names)
    _check_labels(labelled, found.name)
    return LabelledRun(
        url=run.store.url, labels=found.name, members=members, names=names, before=before, calibrations=calibrations, labelled=labelled,
        identity=described["identity"], joined=found.joined, left_out=left_out,
        decoders=frozenset(pc.unique(rows["decoder"]).drop_null().to_pylist()), remarks=tuple(remarks),
    )  # fmt: skip


def _usable(
    rows: pa.Table, names: Sequence[str], cards: Mapping[str, DetectorCard]
) -> tuple[Bools, dict[str, int]]:
    """Which labelled rows have a score of each detector, lie in the range of every card, and show
    anything; how many others, by reason.
    """
    is_ok = np.asarray(pc.equal(rows["status"], "ok"))
    statuses = Counter(rows["status"].filter(pa.array(~is_ok)).to_pylist())
    has_all = np.isfinite([_scores(rows, name) for name in names]).all(axis=0)
    blank = np.array([is_blank(flags) for flags in rows["flags"].to_pylist()], np.bool_)
    sizes = np.stack([_whole(rows["width"]), _whole(rows["height"])], axis=1)
    distinct, places = np.unique(sizes, axis=0, return_inverse=True)
    ranges = [card.valid_range for card in cards.values()]
    doubts = [
        width > 0 and any(one.doubt(width, height) for one in ranges)
        for width, height in distinct.tolist()
    ]
    outside: Bools = np.array(doubts, np.bool_)[places.reshape(-1)]
    for card in cards.values():
        outside[list(card.fragility.doubts(bounded_facts(rows, card.fragility.abstains)))] = True
    others = {
        "no score of every detector": int((is_ok & ~has_all & ~outside & ~blank).sum()),
        "outside a valid range": int((is_ok & outside).sum()),
        "one colour, or nearly": int((is_ok & ~outside & blank).sum()),
    }
    left_out = {
        reason: count
        for reason, count in {**dict(sorted(statuses.items())), **others}.items()
        if count
    }
    return is_ok & has_all & ~outside & ~blank, left_out


def _labelled(rows: pa.Table, names: Sequence[str]) -> CalibrationData:
    """Usable rows with `ROWS` and `TRUTH`, in columns."""
    known = {
        name: pc.coalesce(*(rows[f"{who}_{name}"] for who in ("label", "own")))
        for name in ("source", "group", "part", "phash")
    }
    return CalibrationData(
        image_id=rows["image_id"].to_numpy(),
        sha256=rows["sha256"].to_pylist(),
        fake=np.asarray(pc.equal(rows["label"], "fake")),
        scores={name: _scores(rows, name) for name in names},
        generator=[
            None if name in ("unknown", "real") else name for name in rows["generator"].to_pylist()
        ],
        source=pc.coalesce(known["source"], known["group"]).to_pylist(),
        phash=pc.coalesce(known["phash"], rows["phash"]).to_pylist(),
        part=known["part"].to_pylist(),
        format=rows["format"].to_pylist(),
        width=_whole(rows["width"]),
        height=_whole(rows["height"]),
        quality=numbers(rows["quality"]),
    )


def _scores(rows: pa.Table, name: str) -> NDArray[np.float32]:
    """A detector's own scores (n,), NaN for none."""
    return np.asarray(pc.fill_null(pc.struct_field(rows["scores"], name), np.nan), np.float32)


def _whole(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(column, 0)).astype(np.int64)


def _members(
    systems: Systems, run_names: Sequence[str], asked: Sequence[str], url: str
) -> tuple[tuple[EnsembleMember, ...], tuple[str, ...]]:
    """The members that are calibrated, without the run's ensemble's calibration of them, and their
    names in the run.
    """
    if systems.ensemble is not None and systems.ensemble.cascade is not None:
        raise ConfigError(
            f"{url}: a cascade scored it, so not every detector looked at every image, and those that all looked at are no fair sample",
            hint="score the labelled images with `--detector A --detector B …`, and calibrate that run",
        )
    if systems.ensemble is not None:
        known = dict(
            zip(systems.members, (one.detector for one in systems.ensemble.members), strict=True)
        )
    else:
        known = {name: name for name in run_names}
    if missing := [name for name in asked if name not in known]:
        raise ConfigError(
            f"{url}: the run has no scores of {', '.join(missing)}",
            hint=f"it has {', '.join(known)}",
        )
    names = tuple(asked) or tuple(known)
    return tuple(EnsembleMember(detector=known[name]) for name in names), names


def _cards(members: Sequence[EnsembleMember], names: Sequence[str]) -> dict[str, DetectorCard]:
    """The cards of those detectors whose cards can be read here: of the others, sizes are not
    checked.
    """
    found = {
        name: readable_card(member.detector) for name, member in zip(names, members, strict=True)
    }
    return {name: card for name, card in found.items() if card is not None}


def _check_cards(cards: Mapping[str, DetectorCard], noted: Mapping[str, Any]) -> None:
    """Raises ConfigError for a detector whose card is not any more what the run was scored with:
    other scores would be calibrated.
    """
    for name, card in cards.items():
        facts = noted.get(name, {})
        now: dict[str, Any] = {
            "architecture": card.architecture_facts,
            "preprocessing": card.preprocessing.model_dump(mode="json"),
        }
        if card.weights.sha256 and not card.weights.beside and card.backbone is None:
            now["weights"] = card.weights.sha256
        if other := [key for key, value in now.items() if key in facts and facts[key] != value]:
            raise ConfigError(
                f"{name}: its card has other {' and '.join(other)} than the run was scored with",
                hint="score the labelled images again",
            )


def _check_labels(labelled: CalibrationData, labels: str) -> None:
    """Raises ConfigError where the same bytes are labelled real and fake."""
    digests = np.array(labelled.sha256, object)
    if both := sorted({*digests[labelled.fake]} & {*digests[~labelled.fake]}):
        raise ConfigError(
            f"{labels}: {len(both):,} files are labelled real in one place and fake in another, for example sha256 {both[0]}",
            hint="correct the labels, or leave those files out",
        )
