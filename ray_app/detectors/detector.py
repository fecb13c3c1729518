"""`Detector`: prepared pixels → log-odds of fake, on one device (`load_detector`); `Prediction` is
what networks give, `BatchPrediction` what it makes of it.

From a card to its network: `build_network`, `load_network`. A family's module is imported when a
card needs it, never before.

One from outside this tree is found by its entry point in the group `touchstone.families`: a module
with `build(card)`.
"""

import importlib
import inspect
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from ray_app.detectors import weights
from ray_app.detectors.card import DetectorCard, default_slots, load_card
from ray_app.detectors.checkpoints import checkpoint_config, load_strictly, read_state_dict
from ray_app.detectors.precision import (
    Precision,
    ResolvedPrecision,
    Tap,
    forbid_tf32,
    lower_to_bf16,
    resolve_precision,
)
from ray_app.detectors.preprocessing import Pixels, Preprocessing, ResizeMode
from ray_app.detectors.private_api import keep_freed_memory
from ray_app.detectors.registry import ENTRY_POINTS, FAMILIES
from ray_app.errors import DetectorError

BACKBONE = "backbone"  # the submodule that several detectors may share


def build_network(card: DetectorCard) -> nn.Module:
    """The card's network in evaluation mode, randomly initialised: (N, 3, H, W) → logits or a
    Prediction. No network access.

    Its last linear layer is taken for the head (see `precision`). Raises DetectorError, also for
    whatever a family's constructor or its library, as it is imported, too, says against the card's
    arguments.
    """
    kind: Any = None
    try:
        module = _module(card)
        kind = getattr(module, FAMILIES.get(card.family, "").partition(":")[2], None)
        network: nn.Module = (
            module.build(card) if kind is None else kind(**card.architecture.arguments)
        )
    except (
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        named = f"{card.family} cannot build {card.architecture.name or 'its network'}: {error}"
        hint = "check architecture.name and architecture.arguments in the card"
        if kind is not None:
            hint = f"architecture.arguments may hold: {', '.join(inspect.signature(kind).parameters) or 'none'}"
        raise DetectorError(f"{card.name}: {named}", hint=hint) from error
    return network.eval().requires_grad_(False)


def bare_network(card: DetectorCard) -> nn.Module:
    """The card's network without values, or with random ones where a family from outside needs some
    while it is built.
    """
    try:
        with torch.device("meta"):
            return build_network(card)
    except DetectorError:
        return build_network(card)


def load_network(
    card: DetectorCard, files: Sequence[tuple[weights.WeightSet, Path]] = ()
) -> nn.Module:
    """The card's network with its weights: every key and shape of every file fits, or DetectorError
    says which does not.

    The submodule `backbone` comes from the backbone's own file where the card names one. A family
    may also have `published_keys(state, network)`, where the file's names need not be the
    network's; a network may have `attach(folder)`, for what lies beside its weights, and
    `reads_its_own_weights`, where another engine loads them. `files`: where the weights are (see
    `weights.resolved`), which finds them if left out.
    """
    network = build_network(card)
    (own, path), *shared = files or weights.resolved(card)
    for part, file in shared:
        load_backbone(card, network, file, part)
    if not getattr(network, "reads_its_own_weights", False):
        state = own_keys(card, read_state_dict(path, own.weights), network)
        load_strictly(
            network, state, where=f"{own.owner}: {path}", without=f"{BACKBONE}." if shared else None
        )
    if callable(attach := getattr(network, "attach", None)):
        attach(path.parent)
    return network


def load_backbone(
    card: DetectorCard, network: nn.Module, path: Path, part: weights.WeightSet
) -> None:
    """Load a network's submodule `backbone` from that part's file: every key and shape fits, or
    DetectorError says which does not.
    """
    backbone = network.get_submodule(BACKBONE)
    state = own_keys(card, read_state_dict(path, part.weights), backbone)
    load_strictly(backbone, state, where=f"{part.owner}: {path}")


def own_keys(
    card: DetectorCard, state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """A file's tensors under the names of the network, or of its backbone, where the card's family
    knows that files have others.

    Raises DetectorError.
    """
    published_keys = getattr(_module(card), "published_keys", None)
    return published_keys(state, network) if callable(published_keys) else state


def _module(card: DetectorCard) -> ModuleType:
    if card.family in FAMILIES:
        return importlib.import_module(FAMILIES[card.family].partition(":")[0])
    point = next(iter(entry_points(group=ENTRY_POINTS, name=card.family)), None)
    if point is None:
        raise DetectorError(f"{card.name}: no package on {platform.node()} has the family {card.family!r}",
                            hint="install it on every node of the cluster")  # fmt: skip
    try:
        module: ModuleType = point.load()
    except Exception as error:  # whatever a stranger's module raises when it is imported
        raise DetectorError(
            f"{card.name}: the family {card.family!r}, which is {point.value}, does not load: {error}"
        ) from error
    return module


# images of one size that a GPU takes at once where sizes are kept; a core gains nothing by it
GROUP_PIXELS = 2**22


class Prediction(NamedTuple):
    """A network's answer for a batch; a network that only classifies gives its logits alone.

    `logits`: (N, 1 or 2); NaN where a reply says neither. `masks`: (N, H, W) probabilities that a
    pixel was altered, at the network's own size, or one (h, w) uint8 each, 255 = 1. `replies`: one
    text per image, where it has words. `failures`: why one has no score.
    """

    logits: torch.Tensor
    masks: torch.Tensor | Sequence[torch.Tensor | None] | None = None
    replies: tuple[str, ...] | None = None
    failures: tuple[str | None, ...] | None = None


class BatchPrediction(NamedTuple):
    """A detector's answer for a batch; every field is a kind of output, kept under its name (see
    `inference.decision`).

    `scores`: (N,) float32 log-odds of fake, NaN = none. `masks`: uint8, round(255 p), (N, H, W) or
    one each. `replies`: one text per image. `embeddings`: (N, d) float32, of a detector that keeps
    them. `failures`: per image why it has no score, of one that says so.
    """

    scores: torch.Tensor
    masks: torch.Tensor | Sequence[torch.Tensor | None] | None = None
    replies: tuple[str, ...] | None = None
    embeddings: torch.Tensor | None = None
    failures: tuple[str | None, ...] | None = None


class Detector:
    """One network on one device, with its card.

    `slots` is the number of images in every batch that the network sees: fewer are filled up with
    black ones, so that shapes are static and a score does not depend on how many images came with
    it. Where a card keeps the size of every image (`card.preprocessing.shape` is None), images of
    one size go together instead: one by one on a CPU, up to 4 Mi pixels on a GPU. `fingerprint`
    holds all that decides a score; it is plain JSON. `kinds`: the fields of a `BatchPrediction`
    that are never None, but for the embeddings, which are given once they are requested.
    """

    def __init__(
        self,
        card: DetectorCard,
        network: nn.Module,
        *,
        fake: int,
        device: str,
        precision: ResolvedPrecision,
        resize: ResizeMode,
        slots: int,
        weights_sha256: str,
        compiled: bool = False,
        group_pixels: int | None = None,
    ) -> None:
        self._group_pixels = group_pixels or (
            0 if torch.device(device).type == "cpu" else GROUP_PIXELS
        )
        self.card, self.device, self.precision, self.resize, self.slots = (
            card,
            device,
            precision,
            resize,
            slots,
        )
        self._fake, self._device_type = fake, torch.device(device).type
        self.kinds = (
            "scores",
            *(["masks"] if card.masks else []),
            *(["replies"] if card.replies else []),
            "embeddings",
        )
        self.kinds += ("failures",) if card.process else ()
        if precision == "bf16":
            network = lower_to_bf16(network, device)
        elif torch.device(device).type == "cuda":
            forbid_tf32()
        network = network.to(device).to(memory_format=torch.channels_last)
        compiled_network: Any = (
            torch.compile(network, mode="reduce-overhead") if compiled else network
        )
        self.network: nn.Module = compiled_network
        self.normalise = Normalise(card.preprocessing).to(device)
        self._tap: Tap | None = None
        self.fingerprint: dict[str, Any] = {
            "name": card.name,
            "weights": weights_sha256,
            "architecture": card.architecture_facts,
            "preprocessing": card.preprocessing.model_dump(mode="json"),
            "fake": card.output.sign if card.output.sign is not None else fake,
            "calibration": card.calibration.model_dump() if card.calibration else None,
            "precision": precision,
            "resize": resize,
            "slots": slots,
        }

    def prepare(self, image: Image.Image) -> Pixels:
        """One RGB image in the detector's geometry: (height, width, 3) uint8. Raises InputError."""
        return self.card.preprocessing.prepare(image, self.resize)

    def keep_embeddings(self) -> None:
        """From now on `read` also gives what the head is given. Raises DetectorError where the
        network has no head; `read` does where the head takes no single vector per image.
        """
        self._tap = self._tap or Tap(self.card.name, self.network)

    @property
    def keeps_embeddings(self) -> bool:
        """Whether `read` gives them."""
        return self._tap is not None

    def score(self, pixels: Pixels | torch.Tensor) -> npt.NDArray[np.float32]:
        """Log-odds of fake per image: (N, height, width, 3) uint8 → (N,) float32, for any N.

        NaN or infinity, where the network gives it, is handed on: the caller says `detector_failed`
        for that image.
        """
        images = torch.as_tensor(pixels)
        self._check(images)
        step = (
            self.slots
            if self.card.preprocessing.shape
            else self.together(images.shape[2], images.shape[1])
        )
        parts = [images[start : start + step] for start in range(0, len(images), step)]
        scores = [
            self.read(self.normalise(self._filled(part))).scores[: len(part)] for part in parts
        ]
        joined: npt.NDArray[np.float32] = (
            torch.cat([*scores, torch.empty(0, device=self.device)]).cpu().numpy()
        )
        return joined

    @torch.inference_mode()
    def read(self, normalised: torch.Tensor) -> BatchPrediction:
        """Run the network on what `normalise` gave; does not wait for a GPU to finish."""
        with torch.autocast(
            self._device_type,
            dtype=torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=False,
        ):
            given = self.network(normalised)
        prediction = given if isinstance(given, Prediction) else Prediction(given)
        masks = prediction.masks
        return BatchPrediction(
            log_odds(self.card, self._fake, prediction.logits.float(), len(normalised)),
            (masks.float() * 255).round().to(torch.uint8)
            if isinstance(masks, torch.Tensor)
            else masks,
            prediction.replies,
            None if self._tap is None else self._tap.taken(prediction.logits),
            prediction.failures,
        )

    def together(self, width: int, height: int) -> int:
        """How many images of one size go through the network at once where sizes are kept."""
        return max(1, self._group_pixels // max(width * height, 1))

    def _check(self, images: torch.Tensor) -> None:
        shape = self.card.preprocessing.shape
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or images.shape[3] != 3
            or (shape is not None and images.shape[1:3] != shape)
        ):
            wanted = f"(N, {shape[0]}, {shape[1]}, 3)" if shape else "(N, height, width, 3)"
            raise ValueError(
                f"{self.card.name}: expected uint8 {wanted}, got {images.dtype} {tuple(images.shape)}"
            )

    def _filled(self, part: torch.Tensor) -> torch.Tensor:
        if self.card.preprocessing.shape is None or len(part) == self.slots:
            return part
        return torch.cat([part, part.new_zeros(self.slots - len(part), *part.shape[1:])])


class Normalise(nn.Module):
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in channels-last memory: (x / 255 − mean) / std.

    Batches may be on any device; the result is on the module's. Equal preprocessings give equal
    tensors.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(preprocessing.mean, dtype=torch.float64),
            torch.tensor(preprocessing.std, dtype=torch.float64),
        )
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise a batch; see the class for shapes."""
        # Whole rows at once: broadcasting over three channels is five times slower.
        count, height, width, _ = pixels.shape
        rows = (
            pixels.to(self.scale.device, non_blocking=True)
            .reshape(count, height, 3 * width)
            .float()
        )
        return (
            torch.addcmul(self.shift.repeat(width), rows, self.scale.repeat(width))
            .view(pixels.shape)
            .permute(0, 3, 1, 2)
        )


def log_odds(card: DetectorCard, fake: int, logits: torch.Tensor, count: int) -> torch.Tensor:
    """(count, 1 or 2) logits → (count,) log-odds of fake, the logit at `fake`. Raises DetectorError
    where they are not as the card says.
    """
    if logits.shape != (count, 1 if card.output.sign is not None else 2):
        raise DetectorError(
            f"{card.name}: the network gives {tuple(logits.shape)}, the card says {(count, card.output.logits)}"
        )
    if card.output.sign is not None:
        return logits[:, 0] * card.output.sign
    return logits[:, fake] - logits[:, 1 - fake]


def load_detector(
    name_or_path_or_card: str | Path | DetectorCard,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
    resize: ResizeMode = "exact",
    slots: int | None = None,
    offline: bool | None = None,
    compiled: bool = False,
) -> Detector:
    """A detector by shipped name, by path of a card, or from a card, ready to score.

    `slots` defaults to 4 on a CPU and 64 on a GPU. `compiled` switches `torch.compile` on: it pays
    on a GPU for runs much longer than the minute it takes; it is refused on a CPU. Raises
    ConfigError for the card and DetectorError for weights, network or device.
    """
    card = (
        name_or_path_or_card
        if isinstance(name_or_path_or_card, DetectorCard)
        else load_card(name_or_path_or_card)
    )
    kind = _available(device)
    if kind == "cpu":
        keep_freed_memory()
    if compiled and kind != "cuda":
        raise DetectorError(
            f"{card.name}: torch.compile is for GPUs; on {device} it costs more than it gives"
        )
    files = weights.resolved(card, offline)
    fake = fake_index(card, checkpoint_config(card, files[0][1]))
    return Detector(
        card, load_network(card, files), fake=fake, device=device,
        precision=resolve_precision(precision, device, card.precision), resize=resize, slots=slots or default_slots(device),
        weights_sha256=weights.digest_of_all([weights.digest_of(*one) for one in files]), compiled=compiled,
    )  # fmt: skip


def _available(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise DetectorError(f"no device is called {device}", hint="cpu, cuda or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise DetectorError(
            f"{device}: torch sees no GPU here", hint="use --device cpu, or install torch with CUDA"
        )
    return kind


def fake_index(card: DetectorCard, checkpoint: Mapping[str, Any]) -> int:
    """Which logit is fake, by the checkpoint's own labels where it has some. Raises DetectorError
    where card and checkpoint differ.
    """
    _agree(card.architecture.arguments, checkpoint, card.name)
    if card.output.sign is not None:
        return 0
    named = checkpoint.get("id2label")
    labels = (
        tuple(str(named[key]) for key in sorted(named, key=int)) if named else card.output.labels
    )
    try:
        index = card.output.index_among(labels)
        if card.output.labels and index != card.output.index_among(card.output.labels):
            raise ValueError(
                f"the card has it at {1 - index} ({', '.join(card.output.labels)}), the checkpoint at {index} ({', '.join(labels)})"
            )
    except ValueError as error:
        raise DetectorError(
            f"{card.name}: which logit is fake? {error}", hint="correct `output` in the card"
        ) from None
    return index


def _agree(stated: Mapping[str, Any], checkpoint: Mapping[str, Any], where: str) -> None:
    for key, value in stated.items():
        found = checkpoint.get(key, value)
        if isinstance(value, Mapping) and isinstance(found, Mapping):
            _agree(value, found, f"{where}.{key}")
        elif not isinstance(value, Mapping) and found != value:
            raise DetectorError(
                f"{where}: the card says {key} = {value}, the checkpoint's own configuration says {found}"
            )
