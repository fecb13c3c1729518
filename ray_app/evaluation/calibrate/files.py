"""Write the files of a calibration: an ensemble card, and the labels of held-out images.

An ensemble card is a YAML file with detectors, the rule that combines them, and thresholds. The
held-out images are those on which thresholds were chosen.
"""

import csv
import io
from pathlib import Path
from typing import Any

from ray_app.config import is_named
from ray_app.detectors.card import split_variant
from ray_app.detectors.card_writer import write_card
from ray_app.ensembles import (
    EnsembleCard,
    EnsembleMember,
    get_decision_settings,
    load_ensemble_card,
)
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.data import CalibrationData
from ray_app.storage import Store

ENDINGS = (".yaml", ".yml")
_HEAD = """# Written by `touchstone detectors calibrate` from {run}. {labels} has the held-out part.
# Do not edit the numbers: the guarantee holds for exactly these.
"""


def make_card_path(out: str) -> Path:
    """Check the value of `--out`, the path of the ensemble card to write, and create its folder.

    Args:
        out: The value of `--out`.

    Returns:
        The path of the card.

    Raises:
        ConfigError: The path is not a local YAML file, or the folder cannot be created.
    """
    path = Path(out)
    if "://" in out or path.suffix not in ENDINGS or path.is_dir():
        raise ConfigError(
            f"--out must be a local YAML file, got {out}",
            hint="give a file such as --out calibrated.yaml",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: {error.strerror}", hint="give a file in a writable folder"
        ) from None
    return path


def name_from_card(path: Path, member: EnsembleMember) -> EnsembleMember:
    """Return an ensemble member whose detector name is valid in an ensemble card at `path`.

    A shipped detector keeps its name. A detector with a card of your own is named by the path of
    that card. The path is relative if the detector's card is below the folder of `path`.

    Args:
        path: Path of the ensemble card.
        member: The member. It may name its detector by the path of a card.

    Returns:
        The member with the changed name.
    """
    base, variant = split_variant(member.detector)
    if is_named("detectors", base) or not Path(base).is_file():
        return member
    target, folder = Path(base).resolve(), path.parent.resolve()
    name = str(target.relative_to(folder)) if target.is_relative_to(folder) else str(target)
    return member.model_copy(update={"detector": name if variant is None else f"{name}:{variant}"})


def write_files(path: Path, card: EnsembleCard, run: str, held_out: CalibrationData) -> None:
    """Write the labels of the held-out images, and then the ensemble card.

    The held-out images are those on which the card's thresholds were chosen. `touchstone evaluate`
    can read their labels. Each file is written as a whole or not at all.

    Args:
        path: Path of the card.
        card: The card.
        run: Path or URL of the run with the scores, which is named in a comment.
        held_out: The held-out images.

    Raises:
        StorageError: A file cannot be written.
    """
    labels = held_out_path(path)
    folder = Store.open(str(path.parent))
    folder.write(labels.name, _label_table(held_out).encode())
    write_ensemble_card(path, card, _HEAD.format(run=run, labels=labels.name))


def write_ensemble_card(path: Path, card: EnsembleCard, comment: str) -> None:
    """Write an ensemble card below a comment, and check that it reads back as it was."""
    write_card(path, to_card_fields(card), comment=comment, is_compact=True)
    assert get_decision_settings(load_ensemble_card(path)) == get_decision_settings(card), (
        f"{path} differs from the fitted card"
    )


def held_out_path(card: Path) -> Path:
    """Return the path of the file with the labels of the held-out images of an ensemble card.

    The file is next to the card. For a card `calibrated.yaml`, it is `calibrated.held-out.csv`.
    """
    return card.with_name(f"{card.stem}.held-out.csv")


def _label_table(images: CalibrationData) -> str:
    """Return labels in the format of `touchstone evaluate --labels`."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image_id", "label", "generator", "source"])
    columns = (images.image_id.tolist(), images.fake.tolist(), images.generator, images.source)
    for image_id, is_fake, generator, source in zip(*columns, strict=True):
        label = "fake" if is_fake else "real"
        table.writerow([image_id, label, generator or "", source or ""])
    return text.getvalue()


def to_card_fields(card: EnsembleCard) -> dict[str, Any]:
    """Return the keys and values of an ensemble card as they are written to its YAML file.

    Keys with the value None and weights of 1 are left out, because they are defaults. The card may
    have histograms of properties of the calibration images. Their empty bin edges (`edges`) and
    empty lists of values (`words`) are left out.
    """
    facts = card.model_dump(mode="json", exclude_none=True)
    for member in facts["members"]:
        if member["weight"] == 1:
            del member["weight"]
    for feature in (facts.get("population") or {}).get("features", ()):
        for key in ("edges", "words"):
            if not feature[key]:
                del feature[key]
    return facts
