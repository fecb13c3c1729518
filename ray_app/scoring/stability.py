"""What `--stability K` means for a run: what is asked for, and how many verdicts did not outlive it. Knows rows; loads no network."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from ray_app.ensembles.cards import Thresholds
from ray_app.errors import Reason
from ray_app.inference.stability import Stability, uncertain
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.reader import numbers
from ray_app.runs.rows import with_reasons
from ray_app.runs.schema import STABILITY
from ray_app.scoring.config import ScoreConfig


def stability_of(config: ScoreConfig) -> Stability | None:
    """What a config asks for; None = nothing."""
    return Stability(config.stability, config.stability_margin) if config.stability else None


def stability_in(identity: dict[str, Any]) -> Stability | None:
    """What a run was asked for, by its identity; None = nothing."""
    facts = identity.get("stability")
    return None if facts is None else Stability(facts["count"], facts["margin"])


def stability_facts(run: RunDirectory, thresholds: Thresholds) -> dict[str, Any]:
    """The `stability` section of a summary; empty where the run was not asked for it. Streams the run's rows.

    `asked`: images whose views were scored. `unstable`: those that abstain for it. `unasked`: verdicts so near a threshold that they
    would have been asked, of which no view is there: `touchstone decide` moved the threshold to them.
    """
    asked_for = stability_in(run.describe()["identity"])
    if asked_for is None:
        return {}
    counts = Counter[str]()
    for table in current_tables(run, ["score", "verdict", "verdict_reason", STABILITY]):
        viewed = table[STABILITY].is_valid().to_numpy()
        near = uncertain(numbers(table["score"]), table["verdict"].to_pylist(), thresholds, asked_for.margin)
        unstable = pc.sum(pc.equal(with_reasons(table)["verdict_reason"], Reason.UNSTABLE.value)).as_py() or 0
        counts.update(asked=int(viewed.sum()), unstable=unstable, unasked=int((~viewed[near]).sum()))
    counted = {key: counts[key] for key in ("asked", "unstable", "unasked")}
    return {"stability": {"views": asked_for.count, "margin": asked_for.margin, **counted}}
