"""The settings of a calibration (`CalibrateConfig`) and its files (`write_files`): the card and the
report.
"""

import json
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from ray_app.config import Frozen, is_named
from ray_app.detectors.card import split_variant
from ray_app.ensembles import EnsembleCard, EnsembleMember, decision_facts, load_ensemble_card
from ray_app.ensembles.card import Rule
from ray_app.errors import ConfigError
from ray_app.reports.calibration import CalibrationReport
from ray_app.storage import Store

ENDINGS = (".yaml", ".yml")
_HEAD = """# Written by `touchstone detectors calibrate` from {run}; what it is worth stands in {report}.
# Do not edit the numbers: the guarantee holds for exactly these.
"""


class CalibrateConfig(Frozen):
    """`fpr`, `confidence`: what the threshold promises. `rule`: None = `stacked`, of an only
    detector `mean-logit`.

    `first`, `share`, `audit`: of a cascade, how many detectors score every image, which share of
    images may go on to all of them, and which is drawn to go on whatever it scores.
    `share_sources`: the promise is for archives of the labels' own sources in their shares. `miss`:
    the share of fakes that may lie at or below `real_below`. `prevalence`: the share of fakes at
    which the probabilities are chances; None = as among the labels.
    """

    run: str
    out: str
    labels: str | None = None
    key: Literal["image_id", "sha256", "uri"] | None = None
    split: str | None = None
    detectors: tuple[str, ...] = ()
    fpr: float = Field(default=0.01, gt=0, lt=0.5)
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    rule: Rule | None = None
    first: int | None = Field(default=None, ge=1)
    share: float = Field(default=0.2, gt=0, lt=1)
    audit: float = Field(default=0.01, ge=0, lt=1)
    miss: float = Field(default=0.05, ge=0, lt=1)
    prevalence: float | None = Field(default=None, gt=0, lt=1)
    regroup: bool = False
    share_generators: bool = False
    share_sources: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _of_a_cascade(self) -> "CalibrateConfig":
        given = [
            name
            for name in ("first", "share", "audit")
            if name in self.model_fields_set and getattr(self, name) is not None
        ]
        if given and self.rule != "cascade":
            raise ValueError(
                f"--{given[0]} belongs to --rule cascade (rule: {self.rule or 'not given'})"
            )
        if self.rule == "cascade" and self.audit >= self.share:
            raise ValueError(
                f"--audit {self.audit:g} leaves nothing of --share {self.share:g} to the band"
            )
        return self


def card_path(out: str) -> Path:
    """Where a card goes, its folder made. Raises ConfigError for what is no local YAML file."""
    path = Path(out)
    if "://" in out or path.suffix not in ENDINGS or path.is_dir():
        raise ConfigError(
            f"--out {out}: not a YAML file of this machine",
            hint="for example --out calibrated.yaml",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror}", hint="name a file in a folder that can be written"
        ) from None
    return path


def named_from(path: Path, member: EnsembleMember) -> EnsembleMember:
    """The member as a card at `path` names it: a detector's own card by its place, relative where
    it lies below the card's folder.
    """
    base, variant = split_variant(member.detector)
    if is_named("detectors", base) or not Path(base).is_file():
        return member
    place, folder = Path(base).resolve(), path.parent.resolve()
    named = str(place.relative_to(folder)) if place.is_relative_to(folder) else str(place)
    return member.model_copy(
        update={"detector": named if variant is None else f"{named}:{variant}"}
    )


def write_files(path: Path, card: EnsembleCard, report: CalibrationReport) -> None:
    """Write the card's report, then the card at `path`; each file whole or not at all.

    Raises:
        StorageError: A file cannot be written.
    """
    text = _HEAD.format(run=report.run, report=report_path(path).name) + card_text(card)
    folder = Store.open(str(path.parent))
    folder.write(
        report_path(path).name,
        json.dumps(report.written(), indent=1, ensure_ascii=False, allow_nan=False).encode(),
    )
    folder.write(path.name, text.encode())
    assert decision_facts(load_ensemble_card(path)) == decision_facts(card), (
        f"{path} does not say what was fitted"
    )


def report_path(card: Path) -> Path:
    """Where the report of a card lies."""
    return card.with_name(f"{card.stem}.report.json")


def card_text(card: EnsembleCard) -> str:
    """A card as YAML: in the order of its keys, without what it leaves open; lists and sections
    that hold no others are one row.
    """
    facts = card.model_dump(mode="json", exclude_none=True)
    for member in facts["members"]:
        if member["weight"] == 1:
            del member["weight"]
    for feature in (facts.get("population") or {}).get("features", ()):
        for key in ("edges", "words"):
            if not feature[key]:
                del feature[key]
    text: str = yaml.safe_dump(
        facts, default_flow_style=None, sort_keys=False, allow_unicode=True, width=140
    )
    return text
