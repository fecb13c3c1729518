"""The `fatformer` family: CLIP with adapters that look at Haar bands of its patches, compared with
prompts that look at the image.

Under the authors' key names. Source: Liu et al., CVPR 2024 (arXiv 2312.16649). Their file holds
both towers of CLIP, shared parts of them once more under other names, and the wavelet's filters;
see `published_keys`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.families import clip_tower

# Where the text of a class ends: start, eight learned words, "real" or "fake", the full stop, end.
# The embedded words are in the file.
END = 11
AGAIN = {
    "image_encoder.": "clip_model.visual.",
    "text_encoder.": "clip_model.",
    "logit_scale": "clip_model.logit_scale",
}
UNUSED = "clip_model.token_embedding.weight"
FILTERS = (".dwt_transform.", ".idwt_transform.")


class FatFormer(nn.Module):
    """(N, 3, H, W), normalised → (N, 2), real and fake.

    `tower` and `text`: arguments of CLIP's towers. `adapters`: so many blocks of the tower have
    one, evenly spaced, the last always. `bottleneck`: width of an adapter's inside. `prompts`:
    learned words per class.
    """

    def __init__(
        self,
        *,
        tower: Mapping[str, Any],
        text: Mapping[str, int],
        adapters: int,
        bottleneck: int = 64,
        prompts: int = 8,
    ) -> None:
        super().__init__()
        visual = clip_tower.VisionTower(**tower)
        self.clip_model = clip_tower.Clip(
            visual, quick_gelu=bool(tower["quick_gelu"]), **{"vocabulary": 0, **text}
        )
        del self.clip_model.token_embedding  # the prompts' fixed words lie embedded in the file
        blocks, heads = visual.transformer.resblocks, int(tower.get("heads", 16))
        every = len(blocks) // adapters
        for place in range(every - 1, every * adapters, every):
            blocks[place] = AdaptedBlock(
                visual.widths["class-token"], heads, bool(tower["quick_gelu"]), bottleneck
            )
        width, context = (
            self.clip_model.positional_embedding.shape[1],
            len(self.clip_model.positional_embedding),
        )
        self.language_guided_alignment = ImagePrompts(width, context, prompts)
        self.text_guided_interactor = nn.MultiheadAttention(width, 12, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compare class token and patches with what the prompts of both classes become in sight of
        the image.
        """
        model, count = self.clip_model, len(pixels)
        tokens, _, _ = model.visual.transformer(model.visual.embed(pixels))
        image = clip_tower.project(model.visual.ln_post(tokens), model.visual.proj)
        prompts = self.language_guided_alignment(image).flatten(0, 1)
        texts = torch.unflatten(
            model(prompts, torch.full((len(prompts),), END, device=pixels.device)), 0, (count, 2)
        )
        seen, _ = self.text_guided_interactor(image[:, 1:], texts, texts, need_weights=False)
        patches = _refined(self, image[:, 1:] + seen).float().mean(dim=1)
        texts = functional.normalize(texts.float(), dim=-1)
        either = functional.normalize(image[:, 0], dim=-1) + functional.normalize(patches, dim=-1)
        logits: torch.Tensor = model.logit_scale.exp() * (texts * either[:, None]).sum(-1)
        return logits


class ImagePrompts(nn.Module):
    """An image's tokens (N, tokens, width) → the words of both classes (N, 2, context, width):
    fixed ones, and learned ones that have looked at the image. The name `patch_basaed_enhancer` is
    the file's.
    """

    token_prefix: torch.Tensor
    token_suffix: torch.Tensor

    def __init__(self, width: int, context: int, prompts: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(clip_tower.drawn(prompts, width, std=0.02))
        self.register_buffer("token_prefix", clip_tower.drawn(2, 1, width, std=0.02))
        self.register_buffer(
            "token_suffix", clip_tower.drawn(2, context - 1 - prompts, width, std=0.02)
        )
        self.patch_basaed_enhancer = nn.MultiheadAttention(width, 12, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        count = len(image)
        words = self.ctx.expand(count, -1, -1)
        seen, _ = self.patch_basaed_enhancer(words, image, image, need_weights=False)
        words = _refined(self, words + seen)
        fixed = (part.expand(count, -1, -1, -1) for part in (self.token_prefix, self.token_suffix))
        prefix, suffix = fixed
        return torch.cat([prefix, words[:, None].expand(-1, 2, -1, -1), suffix], dim=2)


class AdaptedBlock(clip_tower.ClipBlock):
    """A block of CLIP's with an adapter beside its MLP; both see what the attention left."""

    def __init__(self, width: int, heads: int, quick_gelu: bool, bottleneck: int) -> None:
        super().__init__(width, heads, quick_gelu)
        self.forgery_aware_adapter = Adapter(width, bottleneck)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's output, and the output of `ln_2`."""
        tokens = tokens + self.attn(self.ln_1(tokens), mask)
        normed = self.ln_2(tokens)
        return tokens + self.mlp(normed) + self.forgery_aware_adapter(tokens), normed


class Adapter(nn.Module):
    """(N, 1 + patches, width) → what is added to it: a bottleneck per token, and the patches' Haar
    bands that have attended to each other.

    The published names say it the other way round: `intra_band` attends over the four bands of one
    place, `inter_band` over the places of one band.
    """

    def __init__(self, width: int, bottleneck: int, heads: int = 8) -> None:
        super().__init__()
        self.freq_scale = nn.Parameter(torch.zeros(1))
        self.first_conv_layer = nn.Conv1d(width, bottleneck, 1)
        self.second_conv_layer = nn.Conv1d(bottleneck, width, 1)
        self.dwt_norm = nn.GroupNorm(128, width)
        self.intra_band, self.inter_band = (
            clip_tower.Attention(width, heads),
            clip_tower.Attention(width, heads),
        )
        self.norm_intra, self.norm_inter, self.norm3 = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See the class."""
        narrow = functional.relu(self.first_conv_layer(tokens.transpose(1, 2)))
        added = 0.1 * self.second_conv_layer(narrow).transpose(1, 2)
        frequencies = self.freq_scale * self._frequencies(tokens[:, 1:])
        return torch.cat([added[:, :1], added[:, 1:] + frequencies], dim=1)

    def _frequencies(self, patches: torch.Tensor) -> torch.Tensor:
        count, places = patches.shape[:2]
        side = math.isqrt(places)
        bands = haar_bands(
            torch.unflatten(patches.transpose(1, 2), 2, (side, side)).float()
        ).flatten(3)
        bands = self.dwt_norm(bands).permute(0, 2, 3, 1)  # (N, 4, places / 4, width)
        across = torch.unflatten(
            self.intra_band(bands.transpose(1, 2).flatten(0, 1)), 0, (count, -1)
        ).transpose(1, 2)
        bands = self.norm_intra(bands + across)
        bands = self.norm_inter(
            bands + torch.unflatten(self.inter_band(bands.flatten(0, 1)), 0, (count, 4))
        )
        bands = self.norm3(bands + self.linear2(functional.relu(self.linear1(bands))))
        squares = torch.unflatten(bands.permute(0, 3, 1, 2), 3, (side // 2, side // 2))
        return haar_image(squares).flatten(2).transpose(1, 2)


def haar_bands(image: torch.Tensor) -> torch.Tensor:
    """One level of the Haar transform, (N, C, 2 H, 2 W) → (N, C, 4, H, W): mean, rows' difference,
    columns' difference, diagonal.
    """
    upper, lower = image[..., ::2, :], image[..., 1::2, :]
    a, b, c, d = upper[..., ::2], upper[..., 1::2], lower[..., ::2], lower[..., 1::2]
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2


def haar_image(bands: torch.Tensor) -> torch.Tensor:
    """The image (N, C, 2 H, 2 W) of which `haar_bands` makes these bands."""
    mean, rows, columns, diagonal = bands.unbind(dim=2)
    upper = torch.stack(
        [mean + rows + columns + diagonal, mean + rows - columns - diagonal], dim=-1
    ).flatten(-2)
    lower = torch.stack(
        [mean - rows + columns - diagonal, mean - rows - columns + diagonal], dim=-1
    ).flatten(-2)
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2) / 2


def _refined(part: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Norm, two layers with a residual around them, norm: what follows both cross-attentions."""
    tokens = part.norm1(tokens)
    refined: torch.Tensor = part.norm2(tokens + part.linear2(functional.relu(part.linear1(tokens))))
    return refined


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """A file's tensors without those that stand there twice, the Haar wavelet's filters and the
    embedding of words that nothing reads.

    A second copy that differs from the first, or a filter that is not Haar's, stays, so that the
    loader tells it.
    """
    return {
        key: tensor
        for key, tensor in state.items()
        if key != UNUSED and not _is_second(key, tensor, state) and not _is_haar(key, tensor)
    }


def _is_second(key: str, tensor: torch.Tensor, state: Mapping[str, torch.Tensor]) -> bool:
    again = next(
        (first + key.removeprefix(name) for name, first in AGAIN.items() if key.startswith(name)),
        None,
    )
    return again is not None and again in state and torch.equal(state[again], tensor)


def _is_haar(key: str, tensor: torch.Tensor) -> bool:
    if not any(part in key for part in FILTERS):
        return False
    first = math.sqrt(0.5)
    second = first if key.rpartition(".")[2][1] == "0" else -first
    return tensor.numel() == 2 and torch.allclose(
        tensor.flatten().float(), torch.tensor([first, second])
    )
