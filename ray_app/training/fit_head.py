"""Fit a linear head to your labelled images, on the features of a published backbone.

`fit_labelled_images` runs the command `touchstone detectors fit`. It reads the labels and the
images, and writes the head with its card. It does not start Ray.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch

from ray_app.archives.label_tables import columns_hint, is_label_table
from ray_app.archives.progress import ProgressLog
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.config import validate
from ray_app.datasets.label_reader import LabelFile
from ray_app.datasets.labels import warn_of_spellings
from ray_app.detectors import DetectorCard, licences, load_card
from ray_app.detectors import weights as weight_files
from ray_app.detectors.card import Backbone
from ray_app.detectors.card_sections import SeenNames, TrainingData
from ray_app.detectors.card_writer import describe_backbone, write_card
from ray_app.detectors.detector import build_network, load_backbone
from ray_app.detectors.precision import Precision
from ray_app.detectors.preprocessing import Pixels
from ray_app.detectors.registry import HEADS
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher, Store, canonicalize, strip_secrets
from ray_app.training import validate as validation
from ray_app.training.config import FitHeadConfig
from ray_app.training.embeddings import FOLDER, FeatureFolder
from ray_app.training.head import (
    BinaryClassifier,
    HeadSettings,
    LogOddsHead,
    cross_validate_auc,
    even_weights,
    fit_head,
    require_enough,
)

if TYPE_CHECKING:
    from ray_app.detectors import Detector

GROUPINGS = ("group", "family", "source")
"""Columns that may contain the group of an image. The first that a labels file has is used."""


class LabelledImage(NamedTuple):
    """One image of a labels file.

    Attributes:
        label: 1 for fake, 0 for real.
        group: Images with the same group are in the same fold of the cross-validation. "" if the
            file has no groups.
        maker: The generator of a fake, or the source of a real image. "" if it is unknown.
    """

    uri: str
    label: int
    group: str
    maker: str


class FittedHead(NamedTuple):
    """A fitted head, and the facts that its card states.

    Attributes:
        classifier: The linear classifier, `svm` or `logistic`.
        aucs: The ROC AUC of each fold of the cross-validation. Folds with images of only one class
            are left out.
        groups: Number of groups of images. All images of a group are in the same fold. 0 if the
            labels have no groups.
    """

    name: str
    base: DetectorCard
    classifier: BinaryClassifier
    labels: str
    real: int
    fake: int
    aucs: Sequence[float]
    seen: SeenNames = SeenNames((), (), False)
    groups: int = 0

    @property
    def folds(self) -> str:
        """The number of folds and the range of their ROC AUC, as text for the terminal."""
        return f"mean of {len(self.aucs)} folds, {min(self.aucs):.3f} to {max(self.aucs):.3f}"

    def lines(self, card: Path, installed: Path | None) -> list[str]:
        """Return the result as lines for the terminal.

        `installed` is where the head was installed as the head of `base`. None if it was not
        installed.
        """
        lines = [
            f"{self.name}: fitted to {self.real} real and {self.fake} fake images, written to {card}"
        ]
        if self.aucs:
            unseen = (
                f"saw no image of its group ({self.groups} groups)"
                if self.groups
                else "did not see it"
            )
            lines.append(
                f"cross-validated ROC AUC {np.mean(self.aucs):.3f} ({self.folds}); each image was judged by a head that {unseen}"
            )
        else:
            lines.append("no cross-validated ROC AUC: every fold has images of one class only")
        lines.append(f"touchstone score SOURCE --detector {card} --out RUN")
        if installed is not None:
            lines.append(f"installed as {self.base.name}: {installed}")
        return lines


def fit_labelled_images(config: FitHeadConfig, progress: Callable[[str], None]) -> list[str]:
    """Fit a linear head to labelled images, and write its card, its weights, and the features.

    `progress` receives lines about images that are left out. The result is lines for the terminal.
    """
    base = load_card(config.card)
    licences.require_accepted(base, config.accept_licences)
    folder = config.out or f"heads/{base.name.replace(':', '-')}"
    if "://" in folder:
        raise ConfigError(
            f"--out must be a local folder, got {folder}", hint="give the path of a local folder"
        )
    if config.install and not base.weights.fitted:
        raise ConfigError(
            f"--install: {base.name} has a published head, which cannot be replaced",
            hint="give a card without a published head",
        )
    labels = find_labels(config.labels)
    rows = read_labels(labels, config.folds)
    if config.even and not any(row.group for row in rows):
        raise ConfigError(
            f"--even: {labels} has no column of groups",
            hint="add a column group, family or source, or give --folds COLUMN",
        )
    # An ensemble may average log-odds, which only logistic regression predicts.
    classifier = config.classifier or ("logistic" if base.weights.fitted else "svm")
    name = config.name or f"{base.name.replace(':', '-')}-{classifier}"
    # Report an invalid name or too few images before computing features for hours.
    validate(base.model_dump() | {"name": name}, DetectorCard, where="--name")
    require_enough(np.array([row.label for row in rows]))
    url = config.features or str(Path(folder) / FOLDER)
    if Path(url).is_file():
        raise ConfigError(
            f"--features {url}: must be a folder, but is a file",
            hint="name a folder; features.npz of version 0.27 and older cannot be read",
        )
    features = FeatureFolder(url, load_backbone_detector(base, config.device))
    images = gather_features(rows, base, features, labels=labels, progress=progress)

    is_fake = np.array([row.label for row in images.values()])
    require_enough(is_fake)
    vectors = np.stack([features.vectors[sha256] for sha256 in images])
    groups = [row.group for row in images.values()]
    has_groups = any(groups)
    weights = even_weights(is_fake, groups) if config.even else None
    aucs = cross_validate_auc(vectors, is_fake, classifier, groups if has_groups else None, weights)
    head = fit_head(vectors, is_fake, HeadSettings(classifier), weights).as_log_odds()
    makers = [[row.maker for row in images.values() if row.label == label] for label in (1, 0)]
    fitted = FittedHead(
        name,
        base,
        classifier,
        Path(urlsplit(labels).path).name,
        int((is_fake == 0).sum()),
        int((is_fake == 1).sum()),
        aucs,
        SeenNames.from_labels(*makers),
        len(set(groups)) if has_groups else 0,
    )
    file, path = Path(folder) / "weights.pth", Path(folder) / "card.yaml"
    card = write_head_card(path, fitted, weights=file, sha256=save_head(file, head))
    if base.terms != "permissive":
        # The head has the terms that were accepted for the backbone.
        licences.remember_licence(card.name, card.licence)
    return fitted.lines(path, install_head(base, file) if config.install else None)


def load_backbone_detector(
    card: DetectorCard, device: str = "cpu", precision: Precision = "auto"
) -> "Detector":
    """Load the backbone of a card as a detector that computes embeddings.

    The head of the card is not loaded and need not exist, so the scores of the detector mean
    nothing. Raises ConfigError unless the card has a backbone and its family is one of `HEADS`.
    """
    if card.family not in HEADS or card.backbone is None:
        raise ConfigError(
            f"{card.name}: a head needs a card of the family {' or '.join(HEADS)}, got {card.family}",
            hint="use another card, for example vfm-pe-l14",
        )
    network = build_network(card)
    _, part = weight_files.list_parts(card)
    load_backbone(card, network, weight_files.resolve_part(part), part)
    detector = validation.build_detector(card, network, device=device, precision=precision)
    detector.keep_embeddings()
    return detector


def find_labels(path: str) -> str:
    """Return the path of the labels file that a user names by `path`.

    If `path` is a local folder that contains `index.parquet`, the file is this table. Otherwise
    `path` is returned unchanged.
    """
    inside = Path(path) / "index.parquet"
    return str(inside) if "://" not in path and inside.is_file() else path


def read_labels(path: str, folds: str | None = None) -> list[LabelledImage]:
    """Read the rows of a labels file, with every `uri` made absolute.

    `folds` is the column whose groups the cross-validation does not divide, by default the first of
    `GROUPINGS` that the file has. Raises ConfigError with file and row if a row is invalid.
    """
    if not is_label_table(path):
        raise ConfigError(
            f"{path}: not a file of labels", hint="give a .csv, .tsv, .jsonl, or .parquet file"
        )
    # ListEntries resolves URIs, since it refuses those that a file from elsewhere may not name.
    file = LabelFile(path, resolves_uris=False)
    hint = columns_hint(file.list_columns())
    columns = file.find_columns(
        ["uri", "label", "generator", *GROUPINGS, *([folds] if folds else [])]
    )
    if missing := {"uri", "label"} - set(columns):
        raise ConfigError(f"{path}: labels need the column `{min(missing)}`", hint=hint)
    if folds is not None and folds not in columns:
        raise ConfigError(f"{path}: --folds {folds}: the labels have no such column", hint=hint)
    column = folds or next((name for name in GROUPINGS if name in columns), GROUPINGS[0])
    entries = ListEntries(strip_secrets(canonicalize(path)), "uri")
    rows = (row for table in file.tables(columns) for row in table.to_pylist())
    labelled = [
        _make_labelled(f"{path}, row {number}", row, entries, column)
        for number, row in enumerate(rows, 1)
    ]
    warn_of_spellings((row.maker for row in labelled if row.label), path)
    if len({bool(row.group) for row in labelled}) > 1:
        raise ConfigError(
            f"{path}: some rows have a {column}, but others have none",
            hint=f"give every row a {column}, or remove the column",
        )
    return labelled


def _make_labelled(
    where: str, row: Mapping[str, str | None], entries: ListEntries, column: str
) -> LabelledImage:
    if not row["uri"] or row["label"] is None:
        raise ConfigError(f"{where}: `uri` and `label` must have a value, got {row!r}")
    is_fake = row["label"] == "fake"
    [item] = entries.members([{"uri": row["uri"]}])
    if item.refused is not None:
        raise ConfigError(f"{where}: {row['uri']}: {item.refused.detail}")
    makers = [row.get(name) for name in (("generator",) if is_fake else ("source", "generator"))]
    maker = next(filter(None, makers), "") or ""
    return LabelledImage(item.uri, int(is_fake), row.get(column) or "", maker)


def gather_features(
    rows: Sequence[LabelledImage],
    card: DetectorCard,
    features: FeatureFolder,
    *,
    labels: str,
    progress: Callable[[str], None],
) -> Mapping[str, LabelledImage]:
    """Compute features that are not stored yet, and return the readable images by SHA-256.

    If the work is interrupted, the features that were computed so far are stored. Images may be
    fetched from the web server of `labels` and from all servers on the public Internet. Raises
    ConfigError if bytes are labelled both real and fake.
    """
    fetcher, limits = Fetcher(signed=[labels]), ImageLimits()
    used: dict[str, LabelledImage] = {}
    failures: list[str] = []
    log = ProgressLog("fit")

    def read_new_images() -> Iterator[tuple[str, Pixels]]:
        for count, row in enumerate(rows):
            log("read", count)
            try:
                data = fetcher.fetch(row.uri, "", limits.max_bytes)
                sha256 = hashlib.sha256(data).hexdigest()
                is_new = sha256 not in used and sha256 not in features.vectors
                if is_new:
                    pixels = card.preprocessing.prepare(decode_image(data, limits).pixels)
            except InputError as error:
                failures.append(f"  {row.uri}: {error.status}: {error.detail}")
                continue
            first = used.setdefault(sha256, row)
            if first.label != row.label:
                raise ConfigError(
                    f"{first.uri} and {row.uri} are the same image, but labelled both real and fake: correct one label"
                )
            if is_new:
                yield sha256, pixels

    features.compute(read_new_images())
    if repeated := len(rows) - len(failures) - len(used):
        progress(f"{repeated} of {len(rows)} rows repeat an image and count once")
    if failures:
        progress(f"{len(failures)} of {len(rows)} images could not be read and are left out:")
    for line in failures:
        progress(line)
    return used


def save_head(path: Path, head: LogOddsHead) -> str:
    """Write a head in the file format of CLIP-D's head, and return the SHA-256 of the file.

    The format is {"model": {"fc.weight", "fc.bias"}}.
    """
    state = {"fc.weight": torch.from_numpy(head.weight), "fc.bias": torch.tensor([head.bias])}
    file = io.BytesIO()
    torch.save({"model": state}, file)
    _write(path, file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


def install_head(base: DetectorCard, weights: Path) -> Path:
    """Install a fitted head in the weight cache for a card whose authors published no head.

    The card, and ensembles that name the card, then score with this head. It replaces a head that
    was installed before. Runs record the hash of the head.
    """
    path = weight_files.cached_path(weight_files.list_parts(base)[0])
    _write(path, weights.read_bytes())
    return path


def _write(path: Path, data: bytes) -> None:
    Store.open(str(path.parent)).write(path.name, data)


_NOTES = {
    "svm": (
        "The scores of a support vector machine rank images; they are not log-odds until they are calibrated.",
        "The validation says how the head does on images like these, not on other generators.",
    ),
    "logistic": (
        "The scores are not calibrated. The validation says how the head does on images like these, not on other generators.",
    ),
}


def write_head_card(path: Path, head: FittedHead, *, weights: Path, sha256: str) -> DetectorCard:
    """Write the card of a fitted head, with the backbone and preprocessing of the base card.

    `weights` must be in the same folder. Raises ConfigError, and writes nothing, if a card cannot
    have this name.
    """
    base = head.base
    assert base.backbone is not None
    trained_on = TrainingData(
        name=head.labels,
        images=f"{head.real} real and {head.fake} fake",
        licence="unknown",
        **head.seen._asdict(),
    )
    published_metric = {
        "set": f"{head.labels}, cross-validated",
        "metric": "ROC AUC",
        "value": round(float(np.mean(head.aucs)), 4) if head.aucs else None,
        "n": head.real + head.fake,
        "verified": True,
        "source": "touchstone detectors fit",
        "note": f"{head.folds}; no image was judged by a head that saw it" if head.aucs else None,
    }
    facts = {
        "name": head.name,
        "title": f"{head.name}: a linear head, fitted to {head.labels}, on {base.backbone.title}",
        "family": base.family,
        "architecture": {"name": head.classifier, "arguments": dict(base.architecture.arguments)},
        "backbone": _describe_backbone(base.backbone),
        "preprocessing": base.preprocessing.model_dump(mode="json"),
        "weights": {"uri": weights.name, "sha256": sha256, "format": "torch", "unwrap": ["model"]},
        "output": {"sign": 1},
        "precision": base.precision,
        "size": base.size.model_dump() if base.size else None,
        "valid_range": base.valid_range.model_dump(mode="json"),
        "licence": f"the head is yours; its backbone: {base.backbone.licence}",
        "licence_note": base.backbone.licence_note,
        "terms": base.terms,
        "citation": f"touchstone detectors fit {base.name} --classifier {head.classifier}",
        "source": base.backbone.source,
        "training_data": trained_on.model_dump(mode="json", exclude_defaults=True),
        "published": [published_metric] if head.aucs else [],
        "notes": list(_NOTES[head.classifier]),
    }
    validate(facts | {"backbone": base.backbone.model_dump()}, DetectorCard, where=str(path))
    write_card(path, facts)
    return load_card(path)


def _describe_backbone(backbone: Backbone) -> str | dict[str, Any]:
    """Return what the card says of the backbone, with the whole path of a local file."""
    facts = describe_backbone(backbone)
    path = backbone.folder / backbone.weights.uri
    if not isinstance(facts, str) and path.is_file():
        facts["weights"]["uri"] = str(path.resolve())
    return facts
