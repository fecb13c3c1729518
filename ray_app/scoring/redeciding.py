"""Other rules or thresholds on stored scores: verdict columns are written anew, nothing is fetched, decoded or scored."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.archives import manifests
from ray_app.ensembles import decide, load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec, make_spec, range_doubts, remarks_on
from ray_app.runs import RunDirectory, begun_retry, fingerprint
from ray_app.runs.rows import as_array, decided_columns
from ray_app.scoring.preparing import decision_identity
from ray_app.scoring.reporting import count_rows, ensemble_facts, write_report
from ray_app.storage import Lease


def decide_run(url: str, ensemble: str) -> dict[str, Any]:
    """Apply an ensemble card to a finished run; returns the new summary.

    The directory then belongs to a `score` command with that ensemble. Interrupted, the same command finishes it; until then
    the run says that its verdicts are mixed. Raises ConfigError when a detector of the card was not run, or the run is unfinished.
    """
    run = RunDirectory.open(url)
    with Lease(run.store):
        described = run.describe_finished()
        if run.read_json("summary.json")["listing"] != max(manifests(run.store)):
            raise ConfigError(f"{url}: a newer listing is still being scored", hint="finish it with its `touchstone score` command first")
        if begun_retry(run) is not None:
            raise ConfigError(f"{url}: a retry is not finished", hint="finish it with its `touchstone score` command first")
        card = load_ensemble_card(ensemble)
        identity = described["identity"]
        spec = make_spec(card, limits=ImageLimits(**identity["limits"]))
        missing = [name for name in spec.cards if name not in described["detectors"]]
        if missing:
            raise ConfigError(f"{url}: the run has no scores of {', '.join(missing)}", hint=f"it has {', '.join(described['detectors'])}")
        changed = described | {"identity": identity | decision_identity(spec), "ensemble": card.model_dump(mode="json")}
        run.write_json("run.json", changed | {"deciding": True})
        for manifest in manifests(run.store):
            run.rewrite(manifest, lambda rows: _decided(rows, spec))
        run.write_json("run.json", changed)
        return _summary(run, spec)


def _decided(rows: pa.Table, spec: ScoringSpec) -> pa.Table:
    has_score = pc.equal(rows["status"].cast(pa.string()), "ok").to_numpy()
    scores = {name: pc.struct_field(rows["scores"].combine_chunks(), name).to_numpy(zero_copy_only=False) for name in spec.cards}
    sizes = list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
    scores = {name: np.asarray(column, np.float32) for name, column in scores.items()}
    replies = rows["replies"].combine_chunks() if "replies" in rows.column_names else None
    remarks = remarks_on({name: pc.struct_field(replies, name).to_pylist() for name in spec.speakers} if replies is not None else {})
    decisions = decide(spec.ensemble, scores, calibrations=spec.calibrations, out_of_range=range_doubts(spec, sizes), remarks=remarks)
    for name, values in decided_columns(decisions, has_score).items():
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, rows.schema.field(index), as_array(values, rows.schema.field(index), len(rows)))
    return rows


def _summary(run: RunDirectory, spec: ScoringSpec) -> dict[str, Any]:
    described = run.describe()
    summary = run.read_json("summary.json") | count_rows(run, described["detectors"])
    summary |= {
        "run": run.store.url,
        "ensemble": ensemble_facts(spec),
        "identity": described["identity"],
        "fingerprint": fingerprint(described["identity"]),
    }
    run.write_json("summary.json", summary)
    write_report(run)
    return summary
