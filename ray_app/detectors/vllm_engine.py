"""The `internvl` family on vLLM: the same dialogue, the same parser, batches scheduled by vLLM on a GPU.

Knows vLLM's offline interface (`LLM.generate`, `SamplingParams`; docs.vllm.ai, 0.20) and imports it only when it is asked for. It needs
the extra `vllm` and a GPU; this project's tests have neither, so only what stands around the engine is tested.
"""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ray_app.detectors.dialogue import Dialogue, Tokens, tokenise
from ray_app.detectors.internvl import prediction_of
from ray_app.detectors.prediction import Prediction
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.errors import DetectorError


class VllmInterrogator(nn.Module):
    """Asks vLLM about each image of a batch: (N, 3, H, W) → logits (N, 1), log-odds of fake, with the replies in mode `reply`.

    It has no parameters: `attach` lets vLLM read the weights' folder. Raises DetectorError without vLLM or without a GPU.
    """

    reads_its_own_weights = True

    def __init__(self, dialogue: Dialogue, preprocessing: Preprocessing, image_tokens: int, image_token_id: int) -> None:
        super().__init__()
        if importlib.util.find_spec("vllm") is None:
            raise DetectorError("engine vllm: vLLM is not installed", hint="pip install 'touchstone[vllm]'")
        if not torch.cuda.is_available():
            raise DetectorError("engine vllm: torch sees no GPU here", hint="leave the variant out: engine transformers runs on a CPU too")
        self.dialogue, self.preprocessing = dialogue, preprocessing
        self._image_tokens, self._image_token_id = image_tokens, image_token_id
        self._engine: Any = None
        self._tokens: Tokens | None = None

    def attach(self, files: Path) -> None:
        """Start vLLM on the folder that holds weights, configuration, tokenizer and processor. Raises DetectorError."""
        self._tokens = tokens = tokenise(self.dialogue, files, self._image_tokens, self._image_token_id)
        try:
            self._engine = importlib.import_module("vllm").LLM(
                model=str(files), trust_remote_code=False, dtype="bfloat16", seed=0, limit_mm_per_prompt={"image": 1},
                max_model_len=len(tokens.prompt) + self.dialogue.max_new_tokens,
                # `processed`: after every token but the answers' is ruled out, so that all of these come back, however unlikely.
                logprobs_mode="processed_logprobs", max_logprobs=len(tokens.fake) + len(tokens.real),
            )  # fmt: skip
        except Exception as error:  # vLLM lets the exceptions of every layer through
            raise DetectorError(
                f"engine vllm does not start on {files}: {error}", hint="free the GPU's memory, or see vLLM's log"
            ) from error

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Ask about each image; see the class for shapes."""
        if self._tokens is None:
            raise DetectorError("vLLM is not started", hint="attach() the folder that the weights lie in")
        tokens = self._tokens
        prompt = self.dialogue.prompt(self.dialogue.image[1])  # vLLM's processor repeats and brackets the token itself
        asked = [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images_of(pixels, self.preprocessing)]
        answers = [request.outputs[0] for request in self._engine.generate(asked, self._sampling(tokens), use_tqdm=False)]
        if self.dialogue.mode == "reply":
            return prediction_of([tokens.text(list(answer.token_ids)) for answer in answers], pixels.device)
        firsts = [{token: entry.logprob for token, entry in answer.logprobs[0].items()} for answer in answers]
        return Prediction(torch.tensor([[log_odds(first, tokens.fake, tokens.real)] for first in firsts], device=pixels.device))

    def _sampling(self, tokens: Tokens) -> Any:
        sampling = importlib.import_module("vllm").SamplingParams
        if self.dialogue.mode == "reply":
            return sampling(temperature=0, max_tokens=self.dialogue.max_new_tokens, stop_token_ids=[tokens.end])
        answers = [*tokens.fake, *tokens.real]
        return sampling(temperature=0, max_tokens=1, allowed_token_ids=answers, logprobs=len(answers))


def images_of(pixels: torch.Tensor, preprocessing: Preprocessing) -> list[Image.Image]:
    """The images that a normalised batch (N, 3, H, W) was made from, exactly: vLLM normalises by itself."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    levels = ((pixels.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(image) for image in levels.permute(0, 2, 3, 1).cpu().numpy()]


def log_odds(logprobs: Mapping[int, float], fake: list[int], real: list[int]) -> float:
    """Log-odds of fake from the log-probabilities of the answers' tokens; a token that is missing counts for nothing."""
    of_fake, of_real = (torch.tensor([logprobs.get(token, float("-inf")) for token in side]).logsumexp(0) for side in (fake, real))
    return float(of_fake - of_real)
