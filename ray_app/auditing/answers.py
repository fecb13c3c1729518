"""People's labels of a sample, read back: what each stratum was found to hold. Knows labels and strata; knows no scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_app.auditing.sample import Audit
from ray_app.datasets.labels import parse_label
from ray_app.errors import ConfigError
from ray_app.evaluation.joining import Key
from ray_app.evaluation.labels import LabelTables, open_labels
from ray_app.metrics.stratified import LabelledStratum

UNSURE = "unsure"
_KEYS = ("image_id", "uri")  # a spreadsheet may have rounded the former


@dataclass(frozen=True)
class Answers:
    """`strata`: what was found in each; `blank`: drawn images without a label; `others`: labels of images that were not drawn."""

    strata: tuple[LabelledStratum, ...]
    blank: int
    others: int

    @property
    def labelled(self) -> int:
        """Images whose label is real or fake."""
        return sum(one.labelled for one in self.strata)

    @property
    def unsure(self) -> int:
        """Images of which people could not tell."""
        return sum(one.unsure for one in self.strata)


def read_answers(place: str, audit: Audit) -> Answers:
    """The labels at a path or URL (CSV, JSONL, Parquet), as answers about a sample: real, fake, unsure or nothing.

    Raises ConfigError where there is no label of the sample, for a word that is no label, and for one image with two of them.
    """
    source = open_labels(place)
    named = source.names()
    keys = [key for key in _KEYS if key in named and not (key == "image_id" and "uri" in named and _are_mangled(source))]
    if not keys or "label" not in named:
        raise ConfigError(f"{source.name}: labels need the columns `label` and `image_id` or `uri`", hint=f"found: {', '.join(named)}")
    labels, others = max((_labels_by(source, Key(key), audit) for key in keys), key=lambda one: len(one[0]))
    if not labels:
        raise ConfigError(
            f"{source.name}: not one label is of the {len(audit.images):,} images of the sample", hint="was it drawn anew since?"
        )
    return Answers(tuple(_strata(audit, labels)), len(audit.images) - len(labels), others)


def _labels_by(source: LabelTables, key: Key, audit: Audit) -> tuple[dict[int, str], int]:
    """The word for each place of the sample that has one, and how many labels are of other images."""
    places = {text: place for place, text in enumerate(_texts(key, audit.images))}
    labels: dict[int, str] = {}
    others = rows = 0
    for table in source.tables([name for name in [*key.columns, "label"] if name in source.names()]):
        for text, said in zip(key.texts(table).to_pylist(), table["label"].to_pylist(), strict=True):
            rows += 1
            if said is None or not str(said).strip():
                continue
            word, place = _word(said, f"{source.name}, row {rows}"), places.get(text)
            if place is None:
                others += 1
            elif labels.setdefault(place, word) != word:
                raise ConfigError(f"{source.name}, row {rows}: {text} is {labels[place]} in an earlier row and {word} here")
    return labels, others


def _are_mangled(source: LabelTables) -> bool:
    """Whether a spreadsheet has made something else than whole numbers of the ids."""
    try:
        for _ in source.tables(["image_id"]):
            pass
    except ConfigError:
        return True
    return False


def _word(said: Any, where: str) -> str:
    return UNSURE if str(said).strip().lower() == UNSURE else parse_label(said, where)


def _texts(key: Key, images: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = {name: [row[name] for row in images] for name in key.columns}
    table = pa.table({name: pa.array(column, pa.int64() if name == "image_id" else pa.string()) for name, column in columns.items()})
    return [str(text) for text in key.texts(table).to_pylist()]


def _strata(audit: Audit, labels: Mapping[int, str]) -> list[LabelledStratum]:
    counts = [{"fake": 0, "real": 0, UNSURE: 0} for _ in audit.strata]
    for place, word in labels.items():
        counts[audit.images[place]["stratum"]][word] += 1
    return [
        LabelledStratum(one.size, one.verdict == "fake", found["fake"], found["real"], found[UNSURE], one.words)
        for one, found in zip(audit.strata, counts, strict=True)
    ]
