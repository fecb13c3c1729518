"""Heads of our own: a linear classifier on a backbone's features (`fit_head`, `save_head`,
`write_card`), with a card that `score` takes.

Features are the expensive part and are kept in a file (`FeatureCache`); scikit-learn does the
fitting and is imported only then.

Embeddings that outlive their images: what decides one (`embedding_facts`), which heads suit it, and
the scores that a head gives it (`LinearHead`).
"""

import functools
import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch.nn import functional

from ray_app.config import named_configs, read_mapping, validate
from ray_app.detectors import weights as weight_files
from ray_app.detectors.card import Backbone, DetectorCard, default_slots, load_card
from ray_app.detectors.card_sections import SeenNames, TrainingData
from ray_app.detectors.checkpoints import checkpoint_config, read_state_dict
from ray_app.detectors.detector import (
    Detector,
    Prediction,
    bare_network,
    build_network,
    fake_index,
    load_backbone,
    log_odds,
    own_keys,
)
from ray_app.detectors.precision import (
    Precision,
    ResolvedPrecision,
    Tap,
    autocast,
    head_of,
    no_embedding,
    resolve_precision,
)
from ray_app.detectors.preprocessing import Pixels, ResizeMode
from ray_app.detectors.registry import HEADS
from ray_app.detectors.weights import file_sha256
from ray_app.errors import ConfigError, DetectorError
from ray_app.storage import Store

Vectors = npt.NDArray[np.float32]
_SIDE_PX = 224  # of the image that a network is tried with where images keep their sizes


class LinearHead:
    """The head of a card alone: embeddings in, log-odds of fake out, in fp32 on a CPU. The
    backbone's weights are not read.

    Raises DetectorError where the card's network has no such head, or its weights are missing or do
    not fit.
    """

    def __init__(self, card: DetectorCard) -> None:
        network = bare_network(card)
        name, layer = head_of(card.name, network)
        own = weight_files.parts_of(card)[0]
        path = weight_files.resolve_part(own)
        state = own_keys(card, read_state_dict(path, own.weights), network)
        wanted = {
            key: getattr(layer, key).shape
            for key in ("weight", "bias")
            if getattr(layer, key) is not None
        }
        found = {key: state[f"{name}.{key}"] for key in wanted if f"{name}.{key}" in state}
        if {key: tensor.shape for key, tensor in found.items()} != wanted:
            raise DetectorError(
                f"{card.name}: {path}: no head of the shape that the card says, {dict(wanted)}"
            )
        self.card = card
        self._fake = fake_index(card, checkpoint_config(card, path))
        self._weight, self._bias = (
            found["weight"].float(),
            found["bias"].float() if "bias" in found else None,
        )

    @torch.inference_mode()
    def score(self, vectors: Vectors) -> Vectors:
        """(N, d) float32 → (N,) float32 log-odds of fake; NaN for a row of NaN."""
        logits = functional.linear(torch.from_numpy(vectors), self._weight, self._bias)
        scores: Vectors = log_odds(self.card, self._fake, logits, len(vectors)).numpy()
        return scores


def embedding_facts(
    card: DetectorCard, *, precision: ResolvedPrecision, resize: ResizeMode
) -> dict[str, Any]:
    """All that decides an embedding beside the image, as plain JSON; cards for which it is equal
    have equal embeddings.

    `sha256`: of the weights before the head: the backbone's file, where the card names one.
    `width`: numbers per image. Reads weights, builds no network with values. Raises DetectorError
    where the detector has no embedding, or weights are missing.
    """
    width = _width(card)
    architecture = dict(card.architecture_facts)
    if card.family in HEADS:
        architecture.pop("name")  # of the classifier that the head was fitted as
    return {
        "backbone": card.backbone.name if card.backbone else None,
        "sha256": _body_sha256(card),
        "architecture": architecture,
        "preprocessing": card.preprocessing.model_dump(mode="json"),
        "precision": precision,
        "resize": resize,
        "width": width,
    }


def _width(card: DetectorCard) -> int:
    """Numbers per image, of a network that was tried without values. Raises DetectorError where its
    head takes no single vector.
    """
    network = bare_network(card)
    _, head = head_of(card.name, network)
    if head.out_features != card.output.logits:
        raise no_embedding(card.name)
    tap = Tap(card.name, network)
    height, width = card.preprocessing.shape or (_SIDE_PX, _SIDE_PX)
    try:
        with torch.device("meta"), torch.inference_mode():
            given = network(torch.empty(1, 3, height, width))
    # some do not run without values; the first batch will tell
    except (RuntimeError, NotImplementedError):
        return head.in_features
    tap.taken((given if isinstance(given, Prediction) else Prediction(given)).logits)
    return head.in_features


def _body_sha256(card: DetectorCard) -> str:
    (_, path), *shared = weight_files.resolved(card)
    digests = [weight_files.digest_of(*one) for one in shared]
    if rest := _rest_sha256(card.model_dump_json(), path, file_sha256(path)):
        digests.append(rest)
    return weight_files.digest_of_all(digests)


@functools.cache
def _rest_sha256(described: str, path: Path, file_digest: str) -> str:
    """Of all tensors in a card's own file but those of its head, by their names in the network; ""
    where there are none.

    `described`: the card as JSON. `file_digest` stands for the content of the file, which is read
    once per process.
    """
    card = DetectorCard.model_validate_json(described)
    network = bare_network(card)
    name, _ = head_of(card.name, network)
    state = own_keys(card, read_state_dict(path, card.weights), network)
    body = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.")}
    digest = hashlib.sha256()
    for key, tensor in sorted(body.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if body else ""


Classifier = Literal["svm", "logistic"]
CLASSIFIERS: tuple[Classifier, ...] = get_args(Classifier)
# with fewer, not even a cross-validation of five folds has one of each class in every fold
FEWEST_PER_CLASS = 5
MOST_FOLDS = 5
_SEED = 0

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Groups = Sequence[str]


class Head(NamedTuple):
    """logit = features · weight + bias, positive for fake: `weight` (1, d) float32."""

    weight: Features
    bias: float


class FeatureReader:
    """A card's network up to its head: prepared pixels in, features out. The card's own head need
    not exist.

    `slots`: images that go through at once. `key`: all that decides a feature beside the image, as
    one line of JSON. Raises ConfigError for a card of another family, DetectorError where the
    backbone's weights are missing or do not fit.
    """

    def __init__(
        self,
        card: DetectorCard,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        if card.family not in HEADS or card.backbone is None:
            raise ConfigError(
                f"{card.name}: heads are fitted for cards of the families {' and '.join(HEADS)}, this one is of {card.family}",
                hint="for example vfm-pe-l14",
            )
        network = build_network(card)
        _, part = weight_files.parts_of(card)
        path = weight_files.resolve_part(part)
        load_backbone(card, network, path, part)
        digest, resolved = (
            weight_files.digest_of(part, path),
            resolve_precision(precision, device, card.precision),
        )
        self.slots = default_slots(device)
        self._detector = Detector(
            card,
            network,
            fake=0,
            device=device,
            precision=resolved,
            resize="exact",
            slots=self.slots,
            weights_sha256=digest,
        )
        decisive = {
            "backbone": digest,
            "arguments": [
                dict(card.backbone.architecture.arguments),
                dict(card.architecture.arguments),
            ],
            "preprocessing": card.preprocessing.model_dump(mode="json"),
            "precision": resolved,
        }
        if card.family != "clip-linear":  # there the arguments are all
            decisive["network"] = card.backbone.architecture.name
        self.key = json.dumps(decisive, sort_keys=True)

    @torch.inference_mode()
    def read(self, pixels: Pixels) -> Features:
        """(N, H, W, 3) uint8 as the card's preprocessing prepares it, N ≤ `slots` → (N, d)."""
        network: Any = self._detector.network
        normalised = self._detector.normalise(torch.from_numpy(pixels))
        with autocast(self._detector.device, self._detector.precision):
            features: Features = network.features(normalised).float().cpu().numpy()
        return features


class FeatureCache:
    """Features by the SHA-256 of an image's bytes, in one npz file; another `key` than the file's
    begins anew.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._features: dict[str, Features] = {}
        self._saved = 0
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    if str(file["key"]) == key:
                        self._features = dict(
                            zip(file["sha256"].tolist(), file["features"], strict=True)
                        )
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                pass  # half a file is no file: everything in it can be read again
            self._saved = len(self._features)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._features

    def __getitem__(self, sha256: str) -> Features:
        return self._features[sha256]

    def add(self, features: Mapping[str, Features]) -> None:
        """Keep features, in the file too once they are many."""
        self._features |= features
        if len(self._features) >= self._saved + 512:
            self.save()

    def save(self) -> None:
        """Write the file in one rename, if there is anything new."""
        if len(self._features) == self._saved:
            return
        file = io.BytesIO()
        np.savez(
            file,
            key=self._key,
            sha256=list(self._features),
            features=np.stack(list(self._features.values())),
        )
        _put(self._path, file.getvalue())
        self._saved = len(self._features)


def even_weights(labels: Labels, groups: Groups, power: float = 0.0) -> npt.NDArray[np.float64]:
    """(n,) weights that add up to n. `power`: a group of a class with m images counts as m to this
    power: 0 all alike, 1 as they come.
    """
    units = list(zip(labels.tolist(), groups, strict=True))
    sizes = Counter(units)
    weights: npt.NDArray[np.float64] = np.array(
        [sizes[unit] ** (power - 1) for unit in units], np.float64
    )
    weights *= len(units) / weights.sum()
    return weights


def fit_head(
    features: Features,
    labels: Labels,
    classifier: Classifier = "svm",
    *,
    c: float = 1.0,
    weights: npt.NDArray[np.float64] | None = None,
) -> Head:
    """Fit (n, d) features to (n,) labels, 1 = fake. Both classes weigh the same however many images
    they have.

    `svm`: scikit-learn's LinearSVC; its score ranks, but is no log-odds until it is calibrated.
    `logistic`: LogisticRegression. `c`: the inverse strength of the penalty, for features that are
    centred and scaled to a mean square length of 1; that shift and scale are folded into the head,
    so that it takes features as they come. `weights`: (n,) of the images, all alike if left out;
    see `even_weights`. Raises ConfigError for too few images of a class.
    """
    require_enough(labels)
    return _fitted(features, labels, classifier, c, weights)


def cross_validated_auc(
    features: Features,
    labels: Labels,
    classifier: Classifier = "svm",
    groups: Groups | None = None,
    *,
    c: float = 1.0,
    weights: npt.NDArray[np.float64] | None = None,
) -> list[float]:
    """ROC AUC per fold, each of images that its head did not see, nor any image of their groups.
    Raises ConfigError.

    At most 5 stratified folds; a fold that holds one class only has no AUC and is left out.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    require_enough(labels)
    folds = min(MOST_FOLDS, *(_units(labels, groups, label) for label in (0, 1)))
    if folds < 2:
        raise ConfigError(
            "all images of one class are of one group: nothing is left to validate on",
            hint="give more groups, or none at all",
        )
    splitter = StratifiedGroupKFold if groups is not None else StratifiedKFold
    aucs = []
    for seen, unseen in splitter(folds, shuffle=True, random_state=_SEED).split(
        features, labels, groups
    ):
        if len(set(labels[seen])) == 2 == len(set(labels[unseen])):
            head = _fitted(
                features[seen],
                labels[seen],
                classifier,
                c,
                None if weights is None else weights[seen],
            )
            aucs.append(
                float(roc_auc_score(labels[unseen], features[unseen] @ head.weight[0] + head.bias))
            )
    return aucs


def save_head(path: Path, head: Head) -> str:
    """Write a head as CLIP-D's is published, {"model": {"fc.weight", "fc.bias"}}; returns the
    file's SHA-256.
    """
    state = {"fc.weight": torch.from_numpy(head.weight), "fc.bias": torch.tensor([head.bias])}
    file = io.BytesIO()
    torch.save({"model": state}, file)
    _put(path, file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


def install_head(base: DetectorCard, weights: Path) -> Path:
    """Keep a fitted head in the cache as the own weights of a card whose head nobody publishes;
    where it lies.

    From then on the card scores with it, and so do ensembles that name the card. Another head takes
    its place; runs know which by its hash. Raises DetectorError for a card that has a head.
    """
    if not base.weights.fitted:
        raise DetectorError(f"{base.name} has a head of its own, which is not replaced")
    place = weight_files.cached_path(weight_files.parts_of(base)[0])
    _put(place, weights.read_bytes())
    return place


def _put(path: Path, data: bytes) -> None:
    Store.open(str(path.parent)).write(path.name, data)


class Fit(NamedTuple):
    """What the card of a head states: its classifier, the file of labels, how many real and fake
    images, the folds' AUC, what was seen.
    """

    classifier: Classifier
    labels: str
    real: int
    fake: int
    aucs: Sequence[float]
    seen: SeenNames = SeenNames((), (), False)


_NOTES = {
    "svm": (
        "The scores of a support vector machine rank images; they are no log-odds until they are calibrated.",
        "The validation says how the head does on images like these, not on other generators.",
    ),
    "logistic": (
        "The scores are not calibrated. The validation says how the head does on images like these, not on other generators.",
    ),
}


def write_card(
    path: Path, base: DetectorCard, *, name: str, weights: Path, sha256: str, fit: Fit
) -> DetectorCard:
    """Write the card of a head fitted for `base`: the same backbone, feature and preprocessing, the
    head's own weights beside it.

    Raises ConfigError, before anything is written, where the name is not one that a card can have.
    """
    assert base.backbone is not None
    trained_on = TrainingData(
        name=fit.labels,
        images=f"{fit.real} real and {fit.fake} fake",
        licence="unknown",
        **fit.seen._asdict(),
    )
    data = {
        "name": name,
        "title": f"{name}: a linear head, fitted to {fit.labels}, on {base.backbone.title}",
        "family": base.family,
        "architecture": {"name": fit.classifier, "arguments": dict(base.architecture.arguments)},
        "backbone": _named(base.backbone),
        "preprocessing": base.preprocessing.model_dump(mode="json"),
        "weights": {"uri": weights.name, "sha256": sha256, "format": "torch", "unwrap": ["model"]},
        "output": {"sign": 1},
        "calibration": None,
        "precision": base.precision,
        "size": base.size.model_dump() if base.size else None,
        "valid_range": base.valid_range.model_dump(mode="json"),
        "licence": f"the head is yours; its backbone: {base.backbone.licence}",
        "licence_note": base.backbone.licence_note,
        "terms": base.terms,
        "citation": f"touchstone detectors fit {base.name} --classifier {fit.classifier}",
        "source": base.backbone.source,
        "training_data": trained_on.model_dump(mode="json", exclude_defaults=True),
        "published": [_figure(fit)] if fit.aucs else [],
        "notes": list(_NOTES[fit.classifier]),
    }
    validate(data | {"backbone": base.backbone.model_dump()}, DetectorCard, where=str(path))
    path.write_text(
        yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8"
    )
    return load_card(path)


def _figure(fit: Fit) -> dict[str, Any]:
    spread = f"mean of {len(fit.aucs)} folds, {min(fit.aucs):.3f} to {max(fit.aucs):.3f}; no image was judged by a head that saw it"
    return {
        "set": f"{fit.labels}, cross-validated",
        "metric": "ROC AUC",
        "value": round(float(np.mean(fit.aucs)), 4),
        "n": fit.real + fit.fake,
        "verified": True,
        "source": "touchstone detectors fit",
        "note": spread,
    }


def _named(backbone: Backbone) -> str | dict[str, Any]:
    """A shipped backbone by name; any other as it is, with a local file by its whole path."""
    described = backbone.model_dump(mode="json")
    shipped = named_configs("backbones").get(backbone.name)
    if (
        shipped is not None
        and Backbone.model_validate(read_mapping(shipped)).model_dump(mode="json") == described
    ):
        return backbone.name
    beside = backbone.folder / backbone.weights.uri
    if beside.is_file():
        described["weights"]["uri"] = str(beside.resolve())
    return described


def _fitted(
    features: Features,
    labels: Labels,
    classifier: Classifier,
    c: float,
    weights: npt.NDArray[np.float64] | None,
) -> Head:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    centre = features.mean(axis=0, dtype=np.float64)
    centred = features - centre
    scale = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
    kind = LinearSVC if classifier == "svm" else LogisticRegression
    model = kind(C=c, class_weight="balanced", random_state=_SEED, max_iter=10_000).fit(
        centred / scale, labels, sample_weight=weights
    )
    weight = model.coef_ / scale
    return Head(weight.astype(np.float32), float(model.intercept_[0] - weight[0] @ centre))


def require_enough(labels: Labels) -> None:
    """Raises ConfigError where (n,) labels, 1 = fake, hold too few of a class for a head and its
    validation.
    """
    counts = {"real": int((labels == 0).sum()), "fake": int((labels == 1).sum())}
    few = [f"{count} {name}" for name, count in counts.items() if count < FEWEST_PER_CLASS]
    if few:
        raise ConfigError(
            f"too few images to fit a head: {' and '.join(few)}",
            hint=f"at least {FEWEST_PER_CLASS} of each class are needed",
        )


def _units(labels: Labels, groups: Groups | None, label: int) -> int:
    chosen = np.flatnonzero(labels == label)
    return len(chosen) if groups is None else len({groups[int(index)] for index in chosen})
