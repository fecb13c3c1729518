"""Where MaskCLIP's weights come from: MAE and CLIP to begin a training, and a checkpoint of another input size.

Knows state dicts. Knows nothing about files. Constants: specs/localization.md §1.5.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.maskclip import PROMPT_STD, MaskClip
from ray_app.errors import DetectorError

MAE_UNUSED = ("cls_token", "norm.weight", "norm.bias")  # of `mae_pretrain_vit_base.pth`, key `model`
CLIP_UNUSED = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's own archive keeps among its tensors


def initialise(network: MaskClip, mae_state: Mapping[str, torch.Tensor], clip_state: Mapping[str, torch.Tensor]) -> None:
    """Load the published MAE encoder and CLIP (446 tensors under OpenAI's names), in place, to train from.

    Relative positions become zero, prompts are drawn from a normal distribution; fusion and decoder keep the values they were built with.
    Raises DetectorError that names a key which is missing, unexpected or of another shape.
    """
    encoder = network.aggregator.vit_model
    tables = {key: torch.zeros_like(tensor) for key, tensor in encoder.state_dict().items() if _is_table(key)}
    mae_state = {key: tensor for key, tensor in mae_state.items() if key not in MAE_UNUSED}
    if already := sorted(tables.keys() & mae_state.keys()):
        raise DetectorError(
            f"the MAE weights hold relative positions ({already[0]}, {len(already)} in all): not the published encoder",
            hint="give mae_pretrain_vit_base.pth; a MaskCLIP checkpoint is loaded by its card",
        )
    load_strictly(encoder, {**mae_state, **tables}, "MAE")
    load_strictly(network.clip, {key: tensor for key, tensor in clip_state.items() if key not in CLIP_UNUSED}, "CLIP")
    for prompt in network.prompt_learner.parameters():
        nn.init.normal_(prompt, std=PROMPT_STD)


def fit_relative_positions(state: Mapping[str, torch.Tensor], network: MaskClip) -> dict[str, torch.Tensor]:
    """A checkpoint of another input size for this network: tables of relative positions interpolated linearly, all else as it is.

    Only the global blocks' tables depend on the size (63 rows at 512 px). Loading stays strict: this is for those who mean it.
    """
    own = network.state_dict()
    return {key: _resized(tensor, len(own[key])) if key in own and _is_table(key) else tensor for key, tensor in state.items()}


def _is_table(key: str) -> bool:
    return key.endswith((".rel_pos_h", ".rel_pos_w"))


def _resized(table: torch.Tensor, rows: int) -> torch.Tensor:
    if len(table) == rows:
        return table
    return functional.interpolate(table.T[None], size=rows, mode="linear", align_corners=False)[0].T
