"""Everything that an evaluation found, as one plain document: `metrics.json`. Knows which section says what; computes no figure itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ray_app import __version__
from ray_app.evaluation import releases
from ray_app.evaluation.answering import answers_of
from ray_app.evaluation.attributing import identification_of
from ray_app.evaluation.cells import Cells
from ray_app.evaluation.config import EvaluateConfig
from ray_app.evaluation.data_section import data_of
from ray_app.evaluation.distribution import grouping_of, groups_section
from ray_app.evaluation.joining import TOLD, LabelIndex, Labels, joined_rows
from ray_app.evaluation.localizing import localization_of_run
from ray_app.evaluation.mistakes import with_thumbnails
from ray_app.evaluation.naming import names_of
from ray_app.evaluation.prompting import prompts_of
from ray_app.evaluation.protocols import IdentificationRules, Protocol
from ray_app.evaluation.releases import releases_of
from ray_app.evaluation.resampling import MOST, Resampling
from ray_app.evaluation.significance import paired_tests
from ray_app.evaluation.system_section import Asked, system_of
from ray_app.evaluation.systems import Systems
from ray_app.evaluation.table import reference_of, table_of
from ray_app.runs import RunDirectory, current_tables, fingerprint
from ray_app.storage import strip_secrets

SCHEMA = 1
Document = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A run with its labels, and what a pass over both has gathered."""

    run: RunDirectory
    labels: Labels
    systems: Systems
    cells: Cells
    protocol: Protocol | None
    config: EvaluateConfig

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The labelled rows with these columns, a run's own and `TOLD`, read anew."""
        own = [name for name in columns if name not in TOLD]
        read = current_tables(self.run, list(dict.fromkeys(["image_id", *own, *self.labels.columns])))
        return joined_rows(read, self.labels, columns)


def document_of(found: Evaluation, warnings: Sequence[str] = (), telling: Callable[[str], object] = lambda _: None) -> Document:
    """The document, as plain JSON. `warnings`: of the join. `telling` hears what is being done."""
    protocol, config = found.protocol, found.config
    described = found.run.describe()
    telling("figures")
    systems = _systems(found)
    telling("masks and texts")
    rules = protocol.localization if protocol else None
    localized = localization_of_run(found.run, found.tables, rules=rules, pictures=config.thumbnails, guard=found.labels.guard)
    localization = localized.section if localized else None
    telling("tests and tables")
    binary = {one["name"]: one["output"] == "binary" for one in systems}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": config.title or (protocol.title if protocol else _named_after(found.run.store.url)),
        "run": _run(found.run, described),
        "labels": _labels(found, warnings),
        "protocol": protocol.facts() if protocol else None,
        "data": data_of(found.cells, seed=config.seed),
        "systems": systems,
        "reference": reference_of(protocol),
        "table": table_of(protocol, systems, localization),
        "paired": paired_tests(found.cells.sample.rows(), found.systems.all, binary),
        "localization": localization,
        **_named(found, systems),
        "mistakes": with_thumbnails(found.cells.mistakes.rows(), found.run, wanted=config.thumbnails),
        "overlays": localized.overlays if localized else [],
    }


def _named_after(url: str) -> str:
    """A run by the last of its folders that has a name of its own: one that was scored for an evaluation is called `run`."""
    names = [name for name in strip_secrets(url).split("/") if name and name != "run"]
    return f"Evaluation of {names[-1] if names else 'a run'}"


def _named(found: Evaluation, systems: Sequence[Document]) -> Document:
    """Sections that only a run with predicted generators or prompts has, and groups of generators, of which a protocol or an identifier
    tells. Without any predictions its rows are not read again for them.
    """
    protocol, predicted = found.protocol, found.cells.predicted
    rules = (protocol.identification if protocol else None) or IdentificationRules()
    names = names_of(found.run.describe())
    answers = answers_of(found.tables, names) if names.classes is not None or predicted["predicted_generator"] else None
    prompts = prompts_of(found.tables, found.run, clip=found.config.clip) if predicted["predicted_prompt"] else None
    grouping = grouping_of(protocol, names, systems)
    return {
        "identification": identification_of(answers, rules=rules, missing=found.cells.unused) if answers else None,
        "prompts": prompts.section() if prompts else None,
        "groups": groups_section(grouping, systems, answers, prompts, rules.top_k) if grouping else None,
    }


def _systems(found: Evaluation) -> list[Document]:
    sample = found.cells.sample.rows()
    resampling = Resampling(found.config.bootstrap, sample if found.cells.joined > MOST else None, found.config.seed)
    figures = {row.figure for row in found.protocol.rows} | set(found.protocol.figures) if found.protocol else set()
    members = [one for one in found.systems.all if one.name in found.systems.members]
    by_year = found.protocol is not None and "years" in found.protocol.automatic
    released = releases_of(found.tables(releases.COLUMNS)) if by_year else {}
    asked = Asked(resampling, frozenset(figures), members, released.get)
    return [system_of(system, found.cells, asked) for system in found.systems.all]


def _run(run: RunDirectory, described: Mapping[str, Any]) -> Document:
    return {
        "url": run.store.url,
        "fingerprint": fingerprint(described["identity"]),
        "created_at": described["created_at"],
        "detectors": described["detectors"],
        "ensemble": (described.get("ensemble") or {}).get("name"),
        "identity": described["identity"],
    }


def _labels(found: Evaluation, warnings: Sequence[str]) -> Document:
    labels, cells = found.labels, found.cells
    told = {"name": strip_secrets(labels.name), "joined": cells.joined, "rows_without_label": cells.others, "warnings": list(warnings)}
    if isinstance(labels, LabelIndex):
        return told | {"key": labels.key.name, "rows": labels.rows, "without_row": found.cells.unused, "doubled": labels.doubled,
                       "other_split": labels.other_split}  # fmt: skip
    return told | {"key": "input", "rows": cells.joined, "without_row": 0, "doubled": 0, "other_split": 0}
