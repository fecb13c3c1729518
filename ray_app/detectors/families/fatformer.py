"""Build the `fatformer` family: CLIP with adapters, which compares an image with text prompts.

Adapters are small trained layers in CLIP's image tower. They process the Haar wavelet bands of the
patches. There is a prompt for real and a prompt for fake. Their learned tokens attend to the image.
Start at `FatFormer`.

The key names are the authors'. The authors' file contains duplicates of tensors under other names,
and the constant filters of the wavelet. `published_keys` removes both. Source: Liu et al., CVPR
2024 (arXiv 2312.16649).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.families import clip_tower

# Position of the end token: start, eight learned tokens, "real" or "fake", full stop, end. The
# embedded tokens are in the file.
END = 11
DUPLICATES = {
    "image_encoder.": "clip_model.visual.",
    "text_encoder.": "clip_model.",
    "logit_scale": "clip_model.logit_scale",
}
UNUSED = "clip_model.token_embedding.weight"
FILTERS = (".dwt_transform.", ".idwt_transform.")


class FatFormer(nn.Module):
    """FatFormer's network: pixels (N, 3, H, W), normalised → logits (N, 2) of real and fake.

    A logit is the similarity of the image to the prompt of a class, real or fake.

    Args:
        tower: The arguments of CLIP's vision tower.
        text: The arguments of CLIP's text tower.
        adapters: Number of blocks of the vision tower that have an adapter. They are evenly spaced
            and include the last block.
        bottleneck: Inner width of an adapter.
        prompts: Number of learned tokens per prompt.
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
        del self.clip_model.token_embedding  # The file has the fixed tokens embedded.
        blocks, heads = visual.transformer.resblocks, int(tower.get("heads", 16))
        every = len(blocks) // adapters
        for index in range(every - 1, every * adapters, every):
            blocks[index] = AdaptedBlock(
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
        """Score a batch of images: (N, 3, H, W), normalised → logits (N, 2) of real and fake."""
        model, count = self.clip_model, len(pixels)
        tokens, _, _ = model.visual.transformer(model.visual.embed(pixels))
        image = clip_tower.project(model.visual.ln_post(tokens), model.visual.proj)
        prompts = self.language_guided_alignment(image).flatten(0, 1)
        text_features = torch.unflatten(
            model(prompts, torch.full((len(prompts),), END, device=pixels.device)), 0, (count, 2)
        )
        attended, _ = self.text_guided_interactor(
            image[:, 1:], text_features, text_features, need_weights=False
        )
        patches = _refine(self, image[:, 1:] + attended).float().mean(dim=1)
        text_features = functional.normalize(text_features.float(), dim=-1)
        image_features = functional.normalize(image[:, 0], dim=-1) + functional.normalize(
            patches, dim=-1
        )
        logits: torch.Tensor = model.logit_scale.exp() * (
            text_features * image_features[:, None]
        ).sum(-1)
        return logits


class ImagePrompts(nn.Module):
    """Make a prompt for real and one for fake from an image's tokens.

    (N, tokens, width) → (N, 2, context, width). A prompt has fixed tokens and learned tokens. The
    learned tokens attend to the image. The name of this attention, `patch_basaed_enhancer`, is
    misspelt in the authors' file.

    Args:
        width: Width of the tokens.
        context: Tokens per prompt.
        prompts: Learned tokens per prompt.
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
        """Return the prompts for real and fake: (N, tokens, width) → (N, 2, context, width)."""
        count = len(image)
        learned = self.ctx.expand(count, -1, -1)
        attended, _ = self.patch_basaed_enhancer(learned, image, image, need_weights=False)
        learned = _refine(self, learned + attended)
        fixed = (part.expand(count, -1, -1, -1) for part in (self.token_prefix, self.token_suffix))
        prefix, suffix = fixed
        return torch.cat([prefix, learned[:, None].expand(-1, 2, -1, -1), suffix], dim=2)


class AdaptedBlock(clip_tower.ClipBlock):
    """CLIP block with an adapter (small trained layers) parallel to its MLP.

    The MLP and the adapter both get the output of the attention, and their outputs are added.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        quick_gelu: Whether the MLP has QuickGELU instead of GELU.
        bottleneck: Inner width of the adapter.
    """

    def __init__(self, width: int, heads: int, quick_gelu: bool, bottleneck: int) -> None:
        super().__init__(width, heads, quick_gelu)
        self.forgery_aware_adapter = Adapter(width, bottleneck)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the block's output, and the input of its MLP, which is the output of `ln_2`."""
        tokens = tokens + self.attn(self.ln_1(tokens), mask)
        normed = self.ln_2(tokens)
        return tokens + self.mlp(normed) + self.forgery_aware_adapter(tokens), normed


class Adapter(nn.Module):
    """Adapter of a CLIP block: tokens (N, 1 + patches, width) → the values to add to the tokens.

    It has a bottleneck for each token, and attention among the Haar wavelet bands of the patches.
    The published names are the reverse of what one expects: `intra_band` attends over the four
    bands of a position, `inter_band` over the positions of a band.

    Args:
        width: Width of the tokens.
        bottleneck: Inner width of the adapter.
        heads: Attention heads.
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
        """Return the values to add to the tokens: (N, 1 + patches, width) → the same shape."""
        narrow = functional.relu(self.first_conv_layer(tokens.transpose(1, 2)))
        added = 0.1 * self.second_conv_layer(narrow).transpose(1, 2)
        frequencies = self.freq_scale * self._frequencies(tokens[:, 1:])
        return torch.cat([added[:, :1], added[:, 1:] + frequencies], dim=1)

    def _frequencies(self, patches: torch.Tensor) -> torch.Tensor:
        count, n_positions = patches.shape[:2]
        side = math.isqrt(n_positions)
        bands = haar_bands(
            torch.unflatten(patches.transpose(1, 2), 2, (side, side)).float()
        ).flatten(3)
        bands = self.dwt_norm(bands).permute(0, 2, 3, 1)  # (N, 4, n_positions / 4, width)
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
    """Compute one level of the Haar transform: (N, C, 2 H, 2 W) → (N, C, 4, H, W).

    The bands are: mean, difference of rows, difference of columns, diagonal.
    """
    upper, lower = image[..., ::2, :], image[..., 1::2, :]
    a, b, c, d = upper[..., ::2], upper[..., 1::2], lower[..., ::2], lower[..., 1::2]
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2


def haar_image(bands: torch.Tensor) -> torch.Tensor:
    """Invert `haar_bands`: (N, C, 4, H, W) → (N, C, 2 H, 2 W)."""
    mean, rows, columns, diagonal = bands.unbind(dim=2)
    upper = torch.stack(
        [mean + rows + columns + diagonal, mean + rows - columns - diagonal], dim=-1
    ).flatten(-2)
    lower = torch.stack(
        [mean - rows + columns - diagonal, mean - rows - columns + diagonal], dim=-1
    ).flatten(-2)
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2) / 2


def _refine(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Apply norm, two layers with a residual, and norm, as after both cross-attentions."""
    tokens = module.norm1(tokens)
    refined: torch.Tensor = module.norm2(
        tokens + module.linear2(functional.relu(module.linear1(tokens)))
    )
    return refined


def published_keys(
    state: Mapping[str, torch.Tensor], network: nn.Module
) -> dict[str, torch.Tensor]:
    """Remove the tensors of a file that the network does not need.

    They are duplicates under another name, the constant Haar filters, and the unused token
    embedding. A duplicate that differs from the first copy stays, and so does a filter that is not
    Haar's, so that the loader reports them.
    """
    return {
        key: tensor
        for key, tensor in state.items()
        if key != UNUSED and not _is_duplicate(key, tensor, state) and not _is_haar(key, tensor)
    }


def _is_duplicate(key: str, tensor: torch.Tensor, state: Mapping[str, torch.Tensor]) -> bool:
    first_key = next(
        (
            prefix + key.removeprefix(name)
            for name, prefix in DUPLICATES.items()
            if key.startswith(name)
        ),
        None,
    )
    return first_key is not None and first_key in state and torch.equal(state[first_key], tensor)


def _is_haar(key: str, tensor: torch.Tensor) -> bool:
    if not any(part in key for part in FILTERS):
        return False
    first = math.sqrt(0.5)
    second = first if key.rpartition(".")[2][1] == "0" else -first
    return tensor.numel() == 2 and torch.allclose(
        tensor.flatten().float(), torch.tensor([first, second])
    )
