"""Load a detector, and score images with it: `load_detector` and `Detector`.

A detector is a network with a card, its YAML description. `build_network` builds the network of a
card with random weights. `load_network` also loads its weights. A network returns logits or a
`Prediction`. `Detector.read` converts these to a `BatchPrediction`, which has log-odds of fake.

A family is the code that builds similar networks. Its module is imported only if a card needs it.
Other packages can add families: an entry point in the group `touchstone.families` names a module
with a function `build(card)`.
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
    EmbeddingHook,
    Precision,
    ResolvedPrecision,
    forbid_tf32,
    lower_to_bf16,
    resolve_precision,
)
from ray_app.detectors.preprocessing import (
    Pixels,
    Preprocessing,
    RequestedResize,
    ResizeMode,
    choose_resize,
)
from ray_app.detectors.private_api import keep_freed_memory
from ray_app.detectors.registry import ENTRY_POINTS, FAMILIES
from ray_app.errors import DetectorError

BACKBONE = "backbone"  # The submodule that several detectors may share.


def build_network(card: DetectorCard) -> nn.Module:
    """Build the network of a detector card in evaluation mode, with random weights.

    Nothing is downloaded. The network maps pixels (N, 3, H, W) to logits or a `Prediction`. Its
    last linear layer is treated as the head, which stays in fp32 (see `lower_to_bf16`).

    A family is the code that builds similar networks, and the card names it. Raises DetectorError
    if a family of another package cannot be imported, or if the network cannot be built from the
    card's arguments.
    """
    network_class: Any = None
    try:
        module = _import_family(card)
        network_class = getattr(module, FAMILIES.get(card.family, "").partition(":")[2], None)
        network: nn.Module = (
            module.build(card)
            if network_class is None
            else network_class(**card.architecture.arguments)
        )
    except (
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        message = f"{card.family} cannot build {card.architecture.name or 'its network'}: {error}"
        hint = "check architecture.name and architecture.arguments in the card"
        if network_class is not None:
            hint = f"use only these keys in architecture.arguments: {', '.join(inspect.signature(network_class).parameters) or 'none'}"
        raise DetectorError(f"{card.name}: {message}", hint=hint) from error
    return network.eval().requires_grad_(False)


def build_bare_network(card: DetectorCard) -> nn.Module:
    """Build the network of a detector card without weight data, on torch's meta device.

    The result shows the keys and shapes that a weight file must have, at little cost. If a network
    cannot be built on the meta device, it has random weights instead. Raises DetectorError if the
    network cannot be built at all.
    """
    try:
        with torch.device("meta"):
            return build_network(card)
    except DetectorError:
        return build_network(card)


def load_network(
    card: DetectorCard, files: Sequence[tuple[weights.WeightSet, Path]] = ()
) -> nn.Module:
    """Build the network of a detector card and load its weights.

    If the card names a backbone (a network that several detectors share), the submodule `backbone`
    is loaded from the backbone's own file.

    The module of the card's family may define `published_keys(state, network)`, which renames the
    tensors of a file to those of the network. The network may define `attach(folder)`, which reads
    further files from the folder of its weights. If the network has `reads_its_own_weights = True`,
    the main file is not read here, but only by `attach`.

    Args:
        card: The detector card.
        files: The weights and their main files, from `weights.resolve_parts`. If empty, the files
            are found and, if missing, downloaded.

    Returns:
        The network in evaluation mode.

    Raises:
        DetectorError: If the network cannot be built, if a file is missing or unreadable, or if one
            of its keys or shapes does not fit. The message names it.
    """
    network = build_network(card)
    (head, path), *shared = files or weights.resolve_parts(card)
    for part, file in shared:
        load_backbone(card, network, file, part)
    if not getattr(network, "reads_its_own_weights", False):
        state = rename_keys(card, read_state_dict(path, head.weights), network)
        load_strictly(
            network,
            state,
            where=f"{head.owner}: {path}",
            without=f"{BACKBONE}." if shared else None,
        )
    if callable(attach := getattr(network, "attach", None)):
        attach(path.parent)
    return network


def load_backbone(
    card: DetectorCard, network: nn.Module, path: Path, part: weights.WeightSet
) -> None:
    """Load a network's submodule `backbone` from the file of its weights.

    Args:
        card: The detector card.
        network: The network with the submodule.
        path: The main file of the backbone's weights.
        part: The backbone's weight set, which states the format of the file.

    Raises:
        DetectorError: If the file is unreadable, or if a key or shape does not fit. The message
            names it.
    """
    backbone = network.get_submodule(BACKBONE)
    state = rename_keys(card, read_state_dict(path, part.weights), backbone)
    load_strictly(backbone, state, where=f"{part.owner}: {path}")


def rename_keys(
    card: DetectorCard, state: Mapping[str, torch.Tensor], network: nn.Module
) -> Mapping[str, torch.Tensor]:
    """Rename the tensors of a weight file to the names that a network uses.

    Only a family of networks whose module defines `published_keys` renames tensors. For any other
    family, `state` is returned.

    Args:
        card: The detector card, which names the family.
        state: The tensors of the file.
        network: The network that the file belongs to: that of the card, or its backbone.

    Returns:
        The tensors with the new names.

    Raises:
        DetectorError: If the family cannot rename the tensors.
    """
    published_keys = getattr(_import_family(card), "published_keys", None)
    return published_keys(state, network) if callable(published_keys) else state


def _import_family(card: DetectorCard) -> ModuleType:
    if card.family in FAMILIES:
        return importlib.import_module(FAMILIES[card.family].partition(":")[0])
    point = next(iter(entry_points(group=ENTRY_POINTS, name=card.family)), None)
    if point is None:
        raise DetectorError(f"{card.name}: no package on {platform.node()} has the family {card.family!r}",
                            hint="install it on every node of the cluster")  # fmt: skip
    try:
        module: ModuleType = point.load()
    except Exception as error:  # A third-party module may raise any exception on import.
        raise DetectorError(
            f"{card.name}: cannot import the family {card.family!r} ({point.value}): {error}"
        ) from error
    return module


# Pixels per batch of images of one size on a GPU, if images keep their size. A larger batch makes a
# CPU no faster.
GROUP_PIXELS = 2**22


class Prediction(NamedTuple):
    """The output of a detector's network for a batch of N images.

    A network that only classifies may return its logits alone instead.

    Attributes:
        logits: Logits (N, 1 or 2). NaN if the text reply of a network states no verdict.
        masks: The probability that a pixel was altered. Either a tensor (N, H, W) in the size of
            the network's input, or a list with one (h, w) uint8 mask or None per image, 255 for
            probability 1. None for networks without masks.
        replies: A text per image. None for networks that do not reply with text.
        failures: Per image, the reason why it has no score, or None if it has one. None instead of
            a tuple for networks that report no failures of single images.
    """

    logits: torch.Tensor
    masks: torch.Tensor | Sequence[torch.Tensor | None] | None = None
    replies: tuple[str, ...] | None = None
    failures: tuple[str | None, ...] | None = None


class BatchPrediction(NamedTuple):
    """The output of a detector for a batch of N images.

    Attributes:
        scores: Log-odds of fake (N,), float32. NaN means no score.
        masks: The probability that a pixel was altered, as uint8, 255 for probability 1. Either a
            tensor (N, H, W), or a list with one (h, w) mask or None per image. None for detectors
            without masks.
        replies: A text per image. None for networks that do not reply with text.
        embeddings: Inputs of the network's last linear layer (N, d), float32. None unless
            `Detector.keep_embeddings` was called.
        failures: Per image, the reason why it has no score, or None if it has one. None instead of
            a tuple for networks that report no failures of single images.
    """

    scores: torch.Tensor
    masks: torch.Tensor | Sequence[torch.Tensor | None] | None = None
    replies: tuple[str, ...] | None = None
    embeddings: torch.Tensor | None = None
    failures: tuple[str | None, ...] | None = None


class Detector:
    """Score images with one network on one device.

    All batches have the same shape: a smaller batch is padded with black images. The score of an
    image therefore does not depend on the other images. If the card keeps the size of images
    (`card.preprocessing.shape` is None), a batch has images of one size instead: one image on a
    CPU, up to 4 Mi pixels on a GPU.

    Args:
        card: The detector card.
        network: The network with its weights.
        fake: Index of the logit that means fake.
        device: Device, such as "cpu" or "cuda:0".
        precision: "bf16" or "fp32".
        resize: "exact" or "fast", see `Preprocessing.with_resize`.
        slots: Images per batch, if all images have the same size.
        weights_sha256: SHA-256 of the weights, for `fingerprint`.
        compiled: Whether to compile the network with `torch.compile`.
        group_pixels: Pixels per batch if images keep their size. None selects the default of the
            device.

    Attributes:
        network: The network on the device.
        preprocessing: The preprocessing of the card, with the kernel of `resize`.
        normalise: Module that converts pixels to the input of `read`.
        fingerprint: All settings that affect a score, as plain JSON.
        kinds: The fields of `BatchPrediction` that this detector can fill, such as "scores" and
            "masks".
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
        self.preprocessing = card.preprocessing.with_resize(resize)
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
        self._hook: EmbeddingHook | None = None
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
        """Resize and crop an RGB image to the network's input, (height, width, 3) uint8.

        Raises InputError if the resized image would not fit into memory.
        """
        return self.preprocessing.prepare(image)

    def keep_embeddings(self) -> None:
        """Make `read` also return embeddings: the inputs of the network's last linear layer.

        Raises DetectorError if the network has no linear layer. If the input of that layer is not a
        single vector per image, the next call of `read` raises DetectorError.
        """
        self._hook = self._hook or EmbeddingHook(self.card.name, self.network)

    @property
    def keeps_embeddings(self) -> bool:
        """Whether `read` returns embeddings."""
        return self._hook is not None

    def score(self, pixels: Pixels | torch.Tensor) -> npt.NDArray[np.float32]:
        """Return the log-odds of fake per image: (N, height, width, 3) uint8 → (N,) float32.

        N may be any number. `pixels` are images from `prepare`. NaN and infinity of the network
        are returned unchanged, so check for them. In a scoring run, an image gets the status
        `detector_failed` only if no detector has a finite score for it. Raises ValueError if type
        or shape of `pixels` is not that of the card.
        """
        images = torch.as_tensor(pixels)
        self._check(images)
        batch_size = (
            self.slots
            if self.card.preprocessing.shape
            else self.batch_size_for(images.shape[2], images.shape[1])
        )
        parts = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        scores = [self.read(self.normalise(self._pad(part))).scores[: len(part)] for part in parts]
        merged: npt.NDArray[np.float32] = (
            torch.cat([*scores, torch.empty(0, device=self.device)]).cpu().numpy()
        )
        return merged

    @torch.inference_mode()
    def read(self, normalised: torch.Tensor) -> BatchPrediction:
        """Run the network on normalised pixels, without waiting for a GPU to finish.

        `normalised` (N, 3, H, W) float32 is the output of the module `Detector.normalise`.
        """
        with torch.autocast(
            self._device_type,
            dtype=torch.bfloat16,
            enabled=self.precision == "bf16",
            cache_enabled=False,
        ):
            output = self.network(normalised)
        prediction = output if isinstance(output, Prediction) else Prediction(output)
        masks = prediction.masks
        return BatchPrediction(
            log_odds(self.card, self._fake, prediction.logits.float(), len(normalised)),
            (masks.float() * 255).round().to(torch.uint8)
            if isinstance(masks, torch.Tensor)
            else masks,
            prediction.replies,
            None if self._hook is None else self._hook.take_embedding(prediction.logits),
            prediction.failures,
        )

    def batch_size_for(self, width: int, height: int) -> int:
        """Return how many images of this size, in pixels, form a batch. It is at least 1.

        Call it only if the card keeps the size of images (`card.preprocessing.shape` is None). For
        any other card, a batch has `slots` images.
        """
        return max(1, self._group_pixels // max(width * height, 1))

    def _check(self, images: torch.Tensor) -> None:
        shape = self.card.preprocessing.shape
        if (
            images.dtype != torch.uint8
            or images.ndim != 4
            or images.shape[3] != 3
            or (shape is not None and images.shape[1:3] != shape)
        ):
            expected = f"(N, {shape[0]}, {shape[1]}, 3)" if shape else "(N, height, width, 3)"
            raise ValueError(
                f"{self.card.name}: expected uint8 {expected}, got {images.dtype} {tuple(images.shape)}"
            )

    def _pad(self, part: torch.Tensor) -> torch.Tensor:
        if self.card.preprocessing.shape is None or len(part) == self.slots:
            return part
        return torch.cat([part, part.new_zeros(self.slots - len(part), *part.shape[1:])])


class Normalise(nn.Module):
    """Normalise pixels x to (x / 255 − mean) / std, with a card's mean and std per channel.

    (N, H, W, 3) uint8 → (N, 3, H, W) float32 in channels-last memory. Batches may be on any device.
    The result is on the module's device. Equal preprocessings give equal tensors.

    Args:
        preprocessing: The preprocessing of a card, which has mean and std.
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
        """Normalise a batch of pixels: (N, H, W, 3) uint8 → (N, 3, H, W) float32."""
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
    """Convert logits to log-odds of fake.

    Args:
        card: The detector card, for the sign and the number of logits.
        fake: Index of the logit that means fake.
        logits: Logits (count, 1 or 2).
        count: Number of images.

    Returns:
        Log-odds of fake (count,).

    Raises:
        DetectorError: If the shape of the logits is not that of the card.
    """
    if logits.shape != (count, 1 if card.output.sign is not None else 2):
        raise DetectorError(
            f"{card.name}: the card requires logits of shape {(count, card.output.logits)}, got {tuple(logits.shape)}"
        )
    if card.output.sign is not None:
        return logits[:, 0] * card.output.sign
    return logits[:, fake] - logits[:, 1 - fake]


def load_detector(
    name_or_path_or_card: str | Path | DetectorCard,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
    resize: RequestedResize = "auto",
    slots: int | None = None,
    offline: bool | None = None,
    compiled: bool = False,
) -> Detector:
    """Load a detector, ready to score.

    Args:
        name_or_path_or_card: A shipped name, the path or URL of a card, or a card.
        device: Device, such as "cpu", "cuda", or "cuda:0".
        precision: "fp32", "bf16", or "auto". "auto" means bf16 if the device multiplies bf16 faster
            than fp32 and the card allows bf16, else fp32.
        resize: "exact", "fast", or "auto", which is "fast" in bf16 and "exact" in fp32. See
            `Preprocessing.with_resize`.
        slots: Images per batch. None means 4 on a CPU and 64 on a GPU.
        offline: Whether to use only weights on this machine or on the mirror that
            $TOUCHSTONE_WEIGHTS_MIRROR names. None reads $TOUCHSTONE_OFFLINE and $HF_HUB_OFFLINE.
        compiled: Whether to compile the network with `torch.compile`. Compiling takes about a
            minute and makes long runs on a GPU faster.

    Returns:
        The detector.

    Raises:
        ConfigError: If the card does not exist or is invalid.
        StorageError: If the URL of the card is unreachable.
        DetectorError: If the weights, the network, or the device is unusable, or if `compiled` is
            set on a CPU.
    """
    card = (
        name_or_path_or_card
        if isinstance(name_or_path_or_card, DetectorCard)
        else load_card(name_or_path_or_card)
    )
    device_type = _check_device(device)
    if device_type == "cpu":
        keep_freed_memory()
    if compiled and device_type != "cuda":
        raise DetectorError(f"{card.name}: compiled requires a GPU, got device {device}")
    files = weights.resolve_parts(card, offline)
    fake = fake_index(card, checkpoint_config(card, files[0][1]))
    resolved = resolve_precision(precision, device, card.precision)
    return Detector(
        card, load_network(card, files), fake=fake, device=device,
        precision=resolved, resize=choose_resize(resize, resolved), slots=slots or default_slots(device),
        weights_sha256=weights.combine_digests([weights.verify_part(*file) for file in files]), compiled=compiled,
    )  # fmt: skip


def _check_device(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise DetectorError(f"unknown device {device!r}", hint="use cpu, cuda, or cuda:0") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise DetectorError(
            f"{device}: torch finds no GPU on this machine",
            hint="use --device cpu, or install torch with CUDA",
        )
    return kind


def fake_index(card: DetectorCard, checkpoint: Mapping[str, Any]) -> int:
    """Return the index of the logit that means fake. It is 0 if there is only one logit.

    If the card states no index, it states the label that means fake. The index is the position of
    this label in the labels of the logits. The labels are those of the checkpoint or, if the
    checkpoint has none, of the card.

    Args:
        card: The detector card.
        checkpoint: The configuration that was published with the checkpoint. May be empty.

    Returns:
        The index, 0 or 1.

    Raises:
        DetectorError: If the label is missing, or if card and checkpoint contradict each other.
    """
    _require_agreement(card.architecture.arguments, checkpoint, card.name)
    if card.output.sign is not None:
        return 0
    checkpoint_labels = checkpoint.get("id2label")
    labels = (
        tuple(str(checkpoint_labels[key]) for key in sorted(checkpoint_labels, key=int))
        if checkpoint_labels
        else card.output.labels
    )
    try:
        index = card.output.index_among(labels)
        if card.output.labels and index != card.output.index_among(card.output.labels):
            raise ValueError(
                f"`fake` has index {1 - index} by the card ({', '.join(card.output.labels)}), {index} by the checkpoint ({', '.join(labels)})"
            )
    except ValueError as error:
        raise DetectorError(
            f"{card.name}: cannot tell which logit is fake: {error}",
            hint="correct `output` in the card",
        ) from None
    return index


def _require_agreement(
    card_values: Mapping[str, Any], checkpoint: Mapping[str, Any], where: str
) -> None:
    for key, value in card_values.items():
        checkpoint_value = checkpoint.get(key, value)
        if isinstance(value, Mapping) and isinstance(checkpoint_value, Mapping):
            _require_agreement(value, checkpoint_value, f"{where}.{key}")
        elif not isinstance(value, Mapping) and checkpoint_value != value:
            raise DetectorError(
                f"{where}: {key} is {value} on the card, but {checkpoint_value} in the checkpoint's own configuration",
                hint=f"correct {key} in the card, or use the checkpoint that the card was written for",
            )
