"""The source of an evaluation's labels (`labels_for`): a file, an index, a layout of the source, or the run itself."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ray_app.datasets.config import DatasetSource
from ray_app.datasets.index import SIMULATED, build_index
from ray_app.errors import ConfigError
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.join import KEYS, Joined, LabelIndex, Labels, OwnLabels, index_labels
from ray_app.evaluation.labels import LabelsOfIndex, open_labels
from ray_app.evaluation.protocols import Protocol
from ray_app.runs import RunDirectory
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import Store

INDEX = "index"


def labels_for(config: EvaluateConfig, protocol: Protocol | None, run: RunDirectory | None, out: Store) -> Labels | None:
    """The labels that a config names, read; None where they are the run's own columns and there is no run yet.

    A layout, the config's or else the protocol's, labels the source of the run (or the config's own) into `out`/index, which is used
    again by the same evaluation. Raises ConfigError as labels and layouts do.
    """
    split = config.split or (protocol.split if protocol else None)
    if config.labels:
        return index_labels(open_labels(config.labels), key=config.key, split=split)
    layout = config.layout or (protocol.layout if protocol else None)
    if layout is None:
        return None if run is None else OwnLabels(run.store.url, split)
    arguments = config.arguments or (protocol.arguments if protocol and not config.layout else {})
    source = DatasetSource(layout=layout, arguments=arguments, **(_of_config(config) if run is None else _of_run(run)))
    store = out.below(INDEX)
    build_index(source, store)
    return index_labels(LabelsOfIndex(store.url), key="image_id", split=split)


def with_simulated_source(config: EvaluateConfig, out: Store) -> EvaluateConfig:
    """The config with what `simulated::` stands for: pictures made into `out`/index (100 pairs of a test split by default),
    as a list that has their labels. Raises ConfigError where `out` is no local folder.
    """
    if config.at != (SIMULATED,):
        return config
    from ray_app.datasets.simulation.labelled_set import LABELS  # it loads torch

    store = out.below(INDEX)
    build_index(DatasetSource(at=config.at, arguments=config.arguments or {"pairs": {"test": 100}}), store)
    return config.model_copy(update={"at": (f"list::{store.url}/simulated/{LABELS}",), "arguments": {}})


def check_joined(labels: Labels, cells: Joined, run: RunDirectory) -> list[str]:
    """What is odd about a join, in sentences. Raises ConfigError where no row is labelled, with one example of each side."""
    if isinstance(labels, OwnLabels):
        if not cells.joined:
            raise ConfigError(
                f"{run.store.url}: no row has a label of its own",
                hint="give --labels FILE, or --layout NAME where the source tells labels (touchstone index --help)",
            )
        return [] if not cells.others else [f"{cells.others:,} rows have no label, for example {cells.other}."]
    unused = _example(labels, cells)
    if not cells.joined:
        rows = f"the run has {cells.other}" if cells.other else "the run has no rows"
        raise ConfigError(
            f"{labels.name}: not one of {len(labels.words):,} labels is of a row of {run.store.url}: by {labels.key.name} the labels have "
            f"{unused}, {rows}",
            hint=_hint(labels.key.name),
        )
    return list(_remarks(labels, cells, unused))


def _of_config(config: EvaluateConfig) -> dict[str, Any]:
    score = config.score
    return {"at": config.at, "include": score.include, "exclude": score.exclude, "limit": score.limit, "columns": score.columns,
            "container_limits": score.container_limits}  # fmt: skip


def _of_run(run: RunDirectory) -> dict[str, Any]:
    """What the run was made of, by its identity."""
    identity = run.describe()["identity"]
    if not identity.get("source"):
        raise ConfigError(f"{run.store.url}: the run does not say what its source was", hint="give --labels")
    usual = ScoreConfig()
    settings = {name: identity.get(name, getattr(usual, name)) for name in ("include", "exclude", "limit", "columns", "container_limits")}
    return {"at": tuple(identity["source"]), **settings}


def _remarks(labels: LabelIndex, cells: Joined, unused: str | None) -> Iterator[str]:
    if cells.unused:
        yield f"{cells.unused:,} of {len(labels.words):,} labels have no row in the run, for example {labels.key.name} {unused}."
    if cells.others:
        yield f"{cells.others:,} rows have no label and are left out, for example {cells.other}."
    if labels.doubled:
        yield f"{labels.doubled:,} labels are there more than once and count once."
    if labels.other_split:
        yield f"{labels.other_split:,} labels are of other splits and are left out."


def _example(labels: LabelIndex, cells: Joined) -> str | None:
    """The key of the first label without a row."""
    if cells.used is None or not cells.unused:
        return None
    unused = np.flatnonzero(~cells.used)
    return labels.shown(int(unused[labels.order[unused].argmin()]))


def _hint(key: str) -> str:
    others = ", ".join(name for name in KEYS if name != key)
    whole = "uris are joined whole, relative ones being relative to the labels file, and are not guessed from their ends; "
    return f"{whole if key == 'uri' else ''}--key joins by {others} instead, where the labels have it"
