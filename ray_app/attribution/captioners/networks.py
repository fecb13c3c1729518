"""What captioning networks share: the network's interface (`CaptionNetwork`), its weights, generation (`likeliest`) and batches of pixels
(`PixelDescriber`).

What a network says of one image never depends on its batch: batches always have the same number of rows, filled up where fewer are left.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ray_app.attribution.captioners import registry, tokenizer
from ray_app.attribution.cards import DescriberCard
from ray_app.detectors.detector import Normalise
from ray_app.errors import DetectorError

SLOTS = 8  # rows of a batch where the card says nothing
_BUFFERS = (
    "position_ids",
    ".attn.bias",
    ".attn.masked_bias",
    ".crossattention.bias",
    ".crossattention.masked_bias",
)  # of older files, which no network reads


class CaptionNetwork(Protocol):
    """A network that was trained, or can be, to say a text about what it is given."""

    @property
    def body(self) -> nn.Module:
        """What the file of its weights holds."""
        ...

    def __call__(self, given: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        """`given` (n, …), and `spoken` (n, L) numbers of which the first begins the text → logits (n, L, V) of the next one each."""
        ...

    def asked(self, given: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        """The transformers model to generate with, and what to give it."""
        ...


def load_body(network: CaptionNetwork, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load weights of which every key and shape fits; of tensors that are one in the network, the file may hold one.

    Raises DetectorError that names what does not fit.
    """
    body = network.body
    own = body.state_dict()
    state = _todays_names(state, body)
    state = {key: tensor for key, tensor in state.items() if key in own or not key.endswith(_BUFFERS)}
    held = {own[key].data_ptr() for key in state if key in own}
    missing = [key for key in own if key not in state and own[key].data_ptr() not in held]
    faults = {
        "missing": missing,
        "unexpected": [key for key in state if key not in own],
        "of another shape": [key for key in state if key in own and own[key].shape != state[key].shape],
    }
    if any(faults.values()):
        message = "; ".join(f"{len(keys)} {fault} ({', '.join(keys[:3])})" for fault, keys in faults.items() if keys)
        raise DetectorError(f"{where}: the weights do not fit the network: {message}", hint="check architecture in the card")
    body.load_state_dict(dict(state), strict=False)


def _todays_names(state: Mapping[str, torch.Tensor], body: nn.Module) -> Mapping[str, torch.Tensor]:
    """A published file's tensors as transformers calls them today."""
    from transformers import PreTrainedModel

    from ray_app.detectors.families.transformers import published_keys

    return published_keys(state, body) if isinstance(body, PreTrainedModel) else state


def body_state(network: CaptionNetwork) -> dict[str, torch.Tensor]:
    """Weights as a file holds them: each tensor once, contiguous, on the CPU."""
    seen: set[int] = set()
    state = {}
    for key, tensor in network.body.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            state[key] = tensor.detach().to("cpu").contiguous()
    return state


def likeliest(
    network: CaptionNetwork, given: torch.Tensor, words: tokenizer.CaptionTokenizer, card: DescriberCard
) -> list[registry.Caption]:
    """What a network says of each row of `given`: beams, no repeated n-grams, at most so many tokens, as the card says.

    Likelihood: the mean of the log-probabilities of its tokens, the end included, as the network gave them before the search forbade
    repetitions; None where one of them is no number.
    """
    from transformers import GenerationConfig

    model, inputs = network.asked(given)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, num_beams=card.beams, no_repeat_ngram_size=card.no_repeat, max_new_tokens=card.most_tokens,
        bos_token_id=words.begin, decoder_start_token_id=words.begin, eos_token_id=words.end, pad_token_id=words.pad,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Passing `no_repeat_ngram_size`")  # of a prefix, in which there are no words to repeat
        found = model.generate(**inputs, generation_config=config)
        scores = model.compute_transition_scores(found.sequences, found.logits, getattr(found, "beam_indices", None), normalize_logits=True)
    return _described(found.sequences[:, -scores.shape[1] :].tolist(), scores.float().tolist(), words)


def _described(
    spoken: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], words: tokenizer.CaptionTokenizer
) -> list[registry.Caption]:
    found = []
    for ids, chances in zip(spoken, scores, strict=True):
        length = ids.index(words.end) + 1 if words.end in ids else len(ids)
        mean = float(np.mean(chances[:length]))
        found.append(registry.Caption(words.text(ids), min(mean, 0.0) if np.isfinite(mean) else None))
    return found


def in_batches(
    given: npt.NDArray[Any], slots: int, describe: Callable[[npt.NDArray[Any]], Sequence[registry.Caption]]
) -> list[registry.Caption]:
    """What `describe` says of (n, …) in batches of exactly `slots` rows; the last is filled up with zeros."""
    captions: list[registry.Caption] = []
    for start in range(0, len(given), slots):
        part = given[start : start + slots]
        full = np.zeros((slots, *given.shape[1:]), given.dtype)
        full[: len(part)] = part
        captions += describe(full)[: len(part)]
    return captions


def read_weights(card: DescriberCard, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a card's file under their published names. Raises DetectorError."""
    from ray_app.detectors.weights import read_state_dict

    return read_state_dict(path, card.weights)


class PixelDescriber:
    """A network on its `device`, ready to describe images; `slots`: images that go through it at once where the card says nothing."""

    def __init__(self, card: DescriberCard, network: CaptionNetwork, words: tokenizer.CaptionTokenizer, device: str, slots: int) -> None:
        assert card.preprocessing is not None, "its card says so"
        self.card, self._network, self._words, self._device = card, network, words, device
        self._slots = card.batch or slots
        self._normalise = Normalise(card.preprocessing).to(device)

    def describe(self, given: npt.NDArray[Any]) -> Sequence[registry.Caption]:
        """(n, H, W, 3) uint8, prepared as the card says → the likeliest text of each. Raises DetectorError for other shapes."""
        if given.ndim != 4 or given.shape[3] != 3:
            raise DetectorError(f"{self.card.name}: pixels of shape {given.shape}, not (n, H, W, 3)")
        return in_batches(given, self._slots, self._captions)

    def _captions(self, pixels: npt.NDArray[Any]) -> Sequence[registry.Caption]:
        images = self._normalise(torch.from_numpy(pixels).to(self._device)).contiguous()
        return likeliest(self._network, images, self._words, self.card)
