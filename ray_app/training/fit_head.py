"""Fit a linear head to labelled images, on the features of a published backbone.

`fit_labelled_images` reads the labels and the images, and writes the head with its card.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ray_app.archives.label_tables import columns_hint, is_label_table
from ray_app.archives.progress import ProgressLog
from ray_app.archives.uri_list_rows import ListEntries
from ray_app.config import validate
from ray_app.datasets.label_reader import LabelFile
from ray_app.detectors import DetectorCard, Preprocessing, licences, linear_head, load_card
from ray_app.detectors.card_sections import SeenNames
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, decode_image
from ray_app.storage import Fetcher, canonical, strip_secrets
from ray_app.training.config import FitHeadConfig

GROUPINGS = ("group", "family", "source")
"""Columns of groups. The first that a labels file has is used."""


class LabelledImage(NamedTuple):
    """One image of a labels file.

    Attributes:
        uri: The absolute URI.
        label: 1 for fake, 0 for real.
        group: The group that no fold of the validation divides. "" if the file has no groups.
        maker: The generator of a fake, or the source of a real image. "" if it is unknown.
    """

    uri: str
    label: int
    group: str
    maker: str


@dataclass(frozen=True)
class GatheredImages:
    """Images whose features are in the cache.

    Attributes:
        used: Images by the SHA-256 of their bytes.
        refused: URIs of unreadable images, each with the error.
        rows: The number of rows in the labels file.
    """

    used: Mapping[str, LabelledImage]
    refused: Sequence[tuple[str, InputError]]
    rows: int

    @property
    def repeated(self) -> int:
        """The number of rows that repeat an image."""
        return self.rows - len(self.refused) - len(self.used)

    def lines(self) -> list[str]:
        """Return what is left out, for people."""
        lines = []
        if self.repeated:
            lines.append(f"{self.repeated} of {self.rows} rows repeat an image and count once")
        if self.refused:
            lines.append(
                f"{len(self.refused)} of {self.rows} images could not be read and are left out:"
            )
        lines += [f"  {uri}: {error.status}: {error.detail}" for uri, error in self.refused]
        return lines


@dataclass(frozen=True)
class FittedHead:
    """A head that was fitted and written.

    Attributes:
        name: The name of the new detector.
        base: The name of the card with the backbone.
        card: The path of the new card.
        fit: The facts on its card.
        groups: The number of groups of images. 0 if the labels have no groups.
        installed: Where the head is installed as the own head of `base`. None if it is not.
    """

    name: str
    base: str
    card: Path
    fit: linear_head.Fit
    groups: int
    installed: Path | None

    def lines(self) -> list[str]:
        """Return the result for people."""
        fit = self.fit
        lines = [
            f"{self.name}: fitted to {fit.real} real and {fit.fake} fake images, written to {self.card}"
        ]
        if fit.aucs:
            mean, low, high = sum(fit.aucs) / len(fit.aucs), min(fit.aucs), max(fit.aucs)
            unseen = (
                f"saw neither it nor any other of its group, of which there are {self.groups}"
                if self.groups
                else "did not see it"
            )
            folds = f"mean of {len(fit.aucs)} folds, {low:.3f} to {high:.3f}"
            lines.append(
                f"cross-validated ROC AUC {mean:.3f} ({folds}); each image was judged by a head that {unseen}"
            )
        else:
            lines.append("no cross-validated ROC AUC: every fold has images of one class only")
        lines.append(f"touchstone score SOURCE --detector {self.card} --out RUN")
        if self.installed is not None:
            lines.append(f"installed as {self.base}: {self.installed}")
        return lines


def fit_labelled_images(config: FitHeadConfig, progress: Callable[[str], None]) -> FittedHead:
    """Fit a head, and write its card, its weights, and the features.

    Args:
        config: The card with the backbone, the labels, and the classifier.
        progress: Receives lines about rows and images that are left out.

    Raises:
        ConfigError: The labels are invalid, or too few images of a class can be read.
        DetectorError: Weights are missing, or their licence is not accepted.
    """
    base = load_card(config.card)
    licences.require_accepted(base, config.accept_licences)
    folder = config.out or f"heads/{base.name.replace(':', '-')}"
    if "://" in folder:
        raise ConfigError(f"--out {folder}: a head and its card are written to a local folder")
    if config.install and not base.weights.fitted:
        raise ConfigError(
            f"--install: {base.name} has a head of its own, which is not replaced",
            hint="give a card without a published head",
        )
    labels = find_labels(config.labels)
    rows = read_labels(labels, config.folds)
    if config.even and not any(row.group for row in rows):
        raise ConfigError(
            f"--even: {labels} does not say which group an image belongs to",
            hint="it needs a column group, family or source, or --folds COLUMN",
        )
    # An ensemble may average log-odds, which logistic regression gives.
    classifier = config.classifier or ("logistic" if base.weights.fitted else "svm")
    name = config.name or f"{base.name.replace(':', '-')}-{classifier}"
    # An invalid name or too few images are reported before hours of features.
    validate(base.model_dump() | {"name": name}, DetectorCard, where="--name")
    linear_head.require_enough(np.array([row.label for row in rows]))
    reader = linear_head.FeatureReader(base, device=config.device)
    features = Path(config.features) if config.features else Path(folder) / "features.npz"
    cache = linear_head.FeatureCache(features, reader.key)
    images = gather_features(rows, base.preprocessing, reader, cache, labels=labels)
    for line in images.lines():
        progress(line)

    head, fit, groups = _fit(images, cache, classifier, labels, is_even=config.even)
    weights, card = Path(folder) / "weights.pth", Path(folder) / "card.yaml"
    sha256 = linear_head.save_head(weights, head)
    written = linear_head.write_card(card, base, name=name, weights=weights, sha256=sha256, fit=fit)
    if base.terms != "permissive":
        # The head has the terms that were accepted for the backbone.
        licences.remember_licence(written.name, written.licence)
    installed = linear_head.install_head(base, weights) if config.install else None
    return FittedHead(name, base.name, card, fit, groups, installed)


def find_labels(path: str) -> str:
    """Return the path of a labels file, or of the index.parquet in a folder."""
    inside = Path(path) / "index.parquet"
    return str(inside) if "://" not in path and inside.is_file() else path


def read_labels(path: str, folds: str | None = None) -> list[LabelledImage]:
    """Read the rows of a labels file, with every `uri` made absolute.

    Args:
        path: Path or fsspec URL of the file.
        folds: The column of the groups. By default the first of `GROUPINGS` that the file has.

    Raises:
        ConfigError: The file cannot be read, or a row is invalid. The message names file and row.
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
        raise ConfigError(f"{path}: --folds {folds}: no such column", hint=hint)
    column = folds or next((name for name in GROUPINGS if name in columns), GROUPINGS[0])
    entries = ListEntries(strip_secrets(canonical(path)), "uri")
    rows = (row for table in file.tables(columns) for row in table.to_pylist())
    labelled = [
        _make_labelled(f"{path}, row {number}", row, entries, column)
        for number, row in enumerate(rows, 1)
    ]
    if len({bool(row.group) for row in labelled}) > 1:
        raise ConfigError(
            f"{path}: some rows have a {column} and some have none",
            hint="give every row one, or drop the column",
        )
    return labelled


def _make_labelled(
    where: str, row: Mapping[str, str | None], entries: ListEntries, column: str
) -> LabelledImage:
    if not row["uri"] or row["label"] is None:
        raise ConfigError(f"{where}: `uri` and `label` are needed, found {row!r}")
    is_fake = row["label"] == "fake"
    [item] = entries.members([{"uri": row["uri"]}])
    if item.refused is not None:
        raise ConfigError(f"{where}: {row['uri']}: {item.refused.detail}")
    makers = [row.get(name) for name in (("generator",) if is_fake else ("source", "generator"))]
    maker = next(filter(None, makers), "") or ""
    return LabelledImage(item.uri, int(is_fake), row.get(column) or "", maker)


def gather_features(
    rows: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    reader: linear_head.FeatureReader,
    cache: linear_head.FeatureCache,
    *,
    labels: str,
) -> GatheredImages:
    """Bring the features of all readable images into the cache.

    An interruption keeps the features that were extracted so far.

    Args:
        rows: The images.
        preprocessing: The preprocessing of the backbone's card.
        reader: The backbone.
        cache: Receives the features.
        labels: The file that names the images. Its own web server may be asked for images, and
            all servers on the public Internet.

    Raises:
        ConfigError: The same bytes are labelled both real and fake.
    """
    fetcher, limits = Fetcher(signed=[labels]), ImageLimits()
    used: dict[str, LabelledImage] = {}
    failures: list[tuple[str, InputError]] = []
    waiting: dict[str, npt.NDArray[np.uint8]] = {}
    log = ProgressLog("fit")

    def extract() -> None:
        if waiting:
            features = reader.read(np.stack(list(waiting.values())))
            cache.add(dict(zip(waiting, features, strict=True)))
            waiting.clear()

    try:
        for count, row in enumerate(rows):
            log("read", count)
            try:
                data = fetcher.fetch(row.uri, "", limits.max_bytes)
                sha256 = hashlib.sha256(data).hexdigest()
                if sha256 not in cache and sha256 not in waiting:
                    waiting[sha256] = preprocessing.prepare(decode_image(data, limits).pixels)
            except InputError as error:
                failures.append((row.uri, error))
                continue
            first = used.setdefault(sha256, row)
            if first.label != row.label:
                raise ConfigError(
                    f"{first.uri} and {row.uri} are the same image, labelled both real and fake"
                )
            if len(waiting) == reader.slots:
                extract()
        extract()
    finally:
        cache.save()
    return GatheredImages(used, failures, len(rows))


def _fit(
    images: GatheredImages,
    cache: linear_head.FeatureCache,
    classifier: linear_head.Classifier,
    labels: str,
    *,
    is_even: bool,
) -> tuple[linear_head.Head, linear_head.Fit, int]:
    """Return the head, the facts for its card, and the number of groups."""
    is_fake = np.array([row.label for row in images.used.values()])
    linear_head.require_enough(is_fake)
    features = np.stack([cache[sha256] for sha256 in images.used])
    groups = [row.group for row in images.used.values()]
    has_groups = any(groups)
    weights = linear_head.even_weights(is_fake, groups) if is_even else None
    aucs = linear_head.cross_validated_auc(
        features, is_fake, classifier, groups if has_groups else None, weights=weights
    )
    head = linear_head.fit_head(features, is_fake, classifier, weights=weights)
    makers = [[row.maker for row in images.used.values() if row.label == label] for label in (1, 0)]
    fit = linear_head.Fit(
        classifier,
        Path(urlsplit(labels).path).name,
        int((is_fake == 0).sum()),
        int((is_fake == 1).sum()),
        aucs,
        SeenNames.of(*makers),
    )
    return head, fit, len(set(groups)) if has_groups else 0
