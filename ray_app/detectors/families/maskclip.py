"""Build the `maskclip` family: CLIP classifies an image, and a MAE encoder finds altered pixels.

`MaskClip` is the network. Its state dict has the 778 keys of the authors' code. CLIP is frozen.
`losses`, `trainable_parameters`, and `initialise` are for training. `MaskDecoder` turns tokens into
a mask.
Source: OpenSDI, CVPR 2025.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ray_app.detectors.checkpoints import load_strictly
from ray_app.detectors.detector import Prediction
from ray_app.detectors.families import clip_tower, mae
from ray_app.errors import DetectorError

EPS = 1e-6
HEADS = 8

# The layers of CLIP with outputs that go to the MAE encoder: one to each of the seven blocks after
# block 0, in this order.
TAPS = (2, 4, 8, 12, 16, 20, 23)

# CLIP's token ids: start, "X" (a placeholder per learned vector), "an", "image", ".", end. Zeros
# pad the context.
START, PLACEHOLDER, CLASS_TEXT, END = 49406, 343, (550, 2867, 269), 49407
PROMPT_STD = 0.02

EDGE_WEIGHT = 20.0
# Parts of the names of trainable parameters. All others belong to CLIP.
LEARNING = ("aggregator", "prompt", "vit_model")

# Unused keys of `mae_pretrain_vit_base.pth`, below the key `model`.
MAE_UNUSED = ("cls_token", "norm.weight", "norm.bias")
# Integers among the tensors of OpenAI's own file.
CLIP_UNUSED = ("input_resolution", "context_length", "vocab_size")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W), at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise features. Shape and memory layout stay."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MaskDecoder(nn.Module):
    """Decode a token map (N, tokens_width, G, G) to log-odds (N, 1, 4G, 4G) of altered pixels.

    Maps of four sizes are computed from the tokens and fused. A text feature attends to the fused
    map, and the result of this attention is added at every position. The defaults have 6,088,385
    parameters.

    Args:
        tokens_width: Channels of the token map.
        width: Channels of the decoder, and length of the text feature.
    """

    def __init__(self, tokens_width: int = 768, width: int = 256) -> None:
        super().__init__()
        half, quarter = tokens_width // 2, tokens_width // 4
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        twice = [nn.ConvTranspose2d(tokens_width, half, 2, stride=2), ChannelNorm(half), nn.GELU()]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *scaled,
                nn.Conv2d(channels, width, 1),
                ChannelNorm(width),
                nn.Conv2d(width, width, 3, padding=1),
                ChannelNorm(width),
            )
            for scaled, channels in (
                ([*twice, nn.ConvTranspose2d(half, quarter, 2, stride=2)], quarter),
                ([nn.ConvTranspose2d(tokens_width, half, 2, stride=2)], half),
                ([], tokens_width),
                ([nn.MaxPool2d(2)], tokens_width),
            )
        )
        self.linear_fuse = nn.Conv2d(len(self.stages) * width, width, 1)
        self.norm = ChannelNorm(width)
        self.dropout = nn.Dropout(0.1)
        self.predict = nn.Conv2d(width, 1, 1)

    def forward(self, tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the log-odds (N, 1, 4G, 4G) that a position was altered.

        `tokens` are (N, tokens_width, G, G), and `text` is the text feature (width).
        """
        fused = mae.fused_maps(
            (stage(tokens) for stage in self.stages),
            self.linear_fuse,
            [4 * side for side in tokens.shape[2:]],
        )
        features = self.dropout(
            self.norm(fused + self.attend_to_text(fused, text)[:, :, None, None])
        )
        return mae.predicted_in_fp32(self.predict, features)

    def attend_to_text(self, fused: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Attend to all positions of a map, with a text feature as the only query.

        Args:
            fused: The map (N, width, H, W).
            text: The text feature (width).

        Returns:
            The output of the attention (N, width).
        """
        tokens = fused.flatten(2).transpose(1, 2)
        key, value = torch.unflatten(self.to_kv(tokens), -1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query = self.to_q(text).view(1, HEADS, 1, -1).expand(len(fused), -1, -1, -1)
        attended = functional.scaled_dot_product_attention(query, key, value)
        output: torch.Tensor = self.proj(attended.flatten(1))
        return output


class MaskClip(nn.Module):
    """MaskCLIP: pixels (N, 3, S, S), normalised for CLIP → logits (N, 2) and masks (N, S, S).

    The logits are those of real and fake. The masks have the probabilities that a pixel was
    altered. The defaults are the published sizes: 546,828,738 parameters with S = 512.

    Args:
        image_size: Side S of the image in pixels.
        vision: Arguments of CLIP's vision tower. None uses its defaults.
        text: Arguments of CLIP's text tower. None uses its defaults.
        mae_width: Width of the MAE encoder's tokens.
        mae_heads: Heads per block of the MAE encoder.
        decoder_width: Channels of the decoder.
        prompts: Number of learned vectors per class.
    """

    def __init__(
        self,
        *,
        image_size: int = 512,
        vision: Mapping[str, int] | None = None,
        text: Mapping[str, int] | None = None,
        mae_width: int = 768,
        mae_heads: int = 12,
        decoder_width: int = 256,
        prompts: int = 10,
    ) -> None:
        super().__init__()
        self.clip = clip_tower.Clip(
            clip_tower.VisionTower(quick_gelu=True, taps=TAPS, **(vision or {})),
            quick_gelu=True,
            **(text or {}),
        )
        clip_width, embed_dim = self.clip.visual.widths.values()
        self.aggregator = Aggregator(
            mae.MaeVit(image_size=image_size, width=mae_width, heads=mae_heads),
            clip_width,
            self.clip.text_projection.shape[1],
            decoder_width,
        )
        self.prompt_learner = PromptLearner(prompts, self.clip.token_embedding.embedding_dim)
        self.cls_aggregator = ClassTokens(clip_width, embed_dim)
        self._known_texts: tuple[object, torch.Tensor] | None = None

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """Return logits (N, 2) and masks (N, S, S) for pixels (N, 3, S, S), normalised for CLIP."""
        logits, mask_logits = self.logits(pixels)
        return Prediction(logits, mask_logits.sigmoid())

    def logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (N, 2) of real and fake, and the mask's logits (N, S, S), for training.

        `pixels` are (N, 3, S, S), normalised for CLIP.
        """
        side = self._clip_size()
        resized = functional.interpolate(
            pixels, size=(side, side), mode="bilinear", align_corners=True
        )
        taps = self.clip.visual(resized).taps
        text_features = self.text_features()
        mask_logits = self.aggregator(pixels, [tap[:, 1:] for tap in taps], text_features[1])
        return self.cls_aggregator(
            torch.stack([tap[:, 0] for tap in taps], dim=1), text_features
        ), mask_logits

    def text_features(self) -> torch.Tensor:
        """Return CLIP's features of the texts for real and fake, (2, embed_dim), of unit length.

        They do not depend on the images, so they are cached until a weight changes.
        """
        if self.training or (torch.is_grad_enabled() and self.prompt_learner.ctx_pos.requires_grad):
            self._known_texts = None
            return self._embed_texts()
        state = self._text_state()
        if self._known_texts is None or self._known_texts[0] != state:
            # A compiled graph may overwrite its earlier outputs, so this runs outside of it. Without
            # torch._dynamo there is no graph, and `disable` would import the compiler.
            disable: Any = torch.compiler.disable
            embed = (
                disable(self._embed_texts) if "torch._dynamo" in sys.modules else self._embed_texts
            )
            with torch.inference_mode(False), torch.no_grad():
                self._known_texts = (state, embed())
        return self._known_texts[1]

    def _embed_texts(self) -> torch.Tensor:
        embedded, end = self.prompt_learner(self.clip.token_embedding)
        return functional.normalize(self.clip(embedded, end), dim=-1)

    def _text_state(self) -> object:
        """Return a value that changes if a weight of the texts is written to, moved, or cast."""
        parts = [
            self.prompt_learner,
            *(part for name, part in self.clip.named_children() if name != "visual"),
        ]
        weights = [
            *self.clip.parameters(recurse=False),
            *(weight for part in parts for weight in part.parameters()),
        ]
        versions = tuple(
            (w.data_ptr(), 0 if w.is_inference() else w._version, w.dtype) for w in weights
        )
        return versions, torch.is_autocast_enabled(weights[0].device.type)

    def _clip_size(self) -> int:
        tower = self.clip.visual
        return math.isqrt(len(tower.positional_embedding) - 1) * int(tower.conv1.kernel_size[0])


class PromptLearner(nn.Module):
    """Two texts for CLIP, one for real and one for fake: learned vectors, then "an image.".

    Args:
        prompts: Number of learned vectors per class.
        width: Width of the vectors.
        context: Number of tokens of a text.
    """

    tokens: torch.Tensor

    def __init__(self, prompts: int = 10, width: int = 768, context: int = 77) -> None:
        super().__init__()
        self.ctx_pos = nn.Parameter(clip_tower.drawn(1, prompts, width, std=PROMPT_STD))
        self.ctx_neg = nn.Parameter(clip_tower.drawn(1, prompts, width, std=PROMPT_STD))
        token_ids = [START, *[PLACEHOLDER] * prompts, *CLASS_TEXT, END]
        self.end = len(token_ids) - 1
        self.register_buffer(
            "tokens", torch.tensor(token_ids + [0] * (context - len(token_ids))), persistent=False
        )

    def forward(self, embedding: nn.Embedding) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both texts as embedded tokens, for `TextTower`.

        Args:
            embedding: CLIP's embedding of token ids.

        Returns:
            The embedded texts (2, context, width), real then fake, and the position (2,) of the end
                token in each.
        """
        learned = torch.cat([self.ctx_neg, self.ctx_pos])
        embedded = embedding(self.tokens).expand(2, -1, -1)
        first_fixed = 1 + learned.shape[1]
        return torch.cat([embedded[:, :1], learned, embedded[:, first_fixed:]], dim=1), torch.full(
            (2,), self.end, device=embedded.device
        )


class Aggregator(nn.Module):
    """Find altered pixels: pixels (N, 3, S, S) and CLIP's tokens → the mask's logits (N, S, S).

    A MAE encoder computes tokens of the image. After seven of its blocks, the output of a
    cross-attention with CLIP's patch tokens is added (`ClipToMae`). A `MaskDecoder` turns the
    tokens into the mask. It also gets CLIP's text feature of the class fake.

    Args:
        vit_model: The MAE encoder.
        clip_width: Width of CLIP's patch tokens.
        embed_dim: Width of the text features.
        decoder_width: Channels of the decoder.
    """

    def __init__(
        self, vit_model: mae.MaeVit, clip_width: int, embed_dim: int, decoder_width: int
    ) -> None:
        super().__init__()
        width = vit_model.pos_embed.shape[-1]
        self.vit_model = vit_model
        self.text_projection = nn.Linear(embed_dim, decoder_width)
        self.fusion_layers = nn.ModuleDict(
            {f"layer_{block}": ClipToMae(clip_width, width) for block in range(1, 1 + len(TAPS))}
        )
        self.mask_decoder = MaskDecoder(width, decoder_width)

    def forward(
        self, pixels: torch.Tensor, patches: list[torch.Tensor], fake_text: torch.Tensor
    ) -> torch.Tensor:
        """Return the mask's logits (N, S, S), the log-odds that a pixel was altered.

        Args:
            pixels: Pixels (N, 3, S, S).
            patches: CLIP's patch tokens (N, P, clip_width), for each of the seven layers in `TAPS`.
            fake_text: CLIP's text feature of the class fake, (embed_dim).

        Returns:
            The logits.
        """
        tokens = self.vit_model.embed(pixels)
        for index, block in enumerate(self.vit_model.blocks):
            tokens = block(tokens)
            if f"layer_{index}" in self.fusion_layers:
                tokens = tokens + self.fusion_layers[f"layer_{index}"](tokens, patches[index - 1])
        low = self.mask_decoder(tokens.permute(0, 3, 1, 2), self.text_projection(fake_text))
        return functional.interpolate(
            low, size=pixels.shape[2:], mode="bilinear", align_corners=True
        )[:, 0]


class ClipToMae(nn.Module):
    """Cross-attention from CLIP's patch tokens to MAE tokens (N, G, G, width).

    CLIP's patch tokens, resized to G × G, are the queries. The MAE tokens are keys and values. The
    attention is over the whole map. Its output has the shape of the MAE tokens, to which the caller
    adds it.

    Args:
        clip_width: Width of CLIP's patch tokens.
        width: Width of the MAE tokens.
    """

    def __init__(self, clip_width: int, width: int) -> None:
        super().__init__()
        self.channel_adjust = nn.Sequential(nn.Conv2d(clip_width, width, 1), ChannelNorm(width))
        self.query_proj = nn.Linear(width, width)
        self.key_proj = nn.Linear(width, width)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width, eps=1e-5))

    def forward(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Return the values to add to the MAE tokens.

        Args:
            tokens: MAE tokens (N, G, G, width).
            patches: CLIP's patch tokens (N, P, clip_width) of a square grid, which is resized to G
                × G.

        Returns:
            The values, with the shape of `tokens`.
        """
        side = math.isqrt(patches.shape[1])
        context = torch.unflatten(patches.transpose(1, 2), 2, (side, side))
        # The published code enlarges before it convolves. Both steps are linear, and there are four
        # times fewer patches before the enlargement.
        narrow = functional.interpolate(
            self.channel_adjust[0](context),
            size=tokens.shape[1:3],
            mode="bilinear",
            align_corners=False,
        )
        context = self.channel_adjust[1](narrow).flatten(2).transpose(1, 2)
        flat_tokens = tokens.flatten(1, 2)
        query, key, value = (
            self._heads(self.query_proj(context)),
            self._heads(self.key_proj(flat_tokens)),
            self._heads(self.value_proj(flat_tokens)),
        )
        attended, _ = mae.headwise_attention(self, query, key, value, None)
        output: torch.Tensor = self.output_proj(attended.flatten(2))
        return output.view_as(tokens)

    def _heads(self, features: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(features, -1, (HEADS, -1)).transpose(1, 2)


class ClassTokens(nn.Module):
    """Classify an image by CLIP's class tokens of seven layers: (N, 7, width) → logits (N, 2).

    The class tokens attend to each other. Their mean is compared with the text features of real and
    fake.

    Args:
        width: Width of the class tokens.
        embed_dim: Width of the text features.
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ClassTokenLayer(width)])
        self.projector = nn.Sequential(nn.Linear(width, embed_dim, bias=False))

    def forward(self, tokens: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, 2) of real and fake.

        A logit is the dot product of the mean class token and a text feature. It is neither scaled
        nor a cosine, because the mean is not normalised.

        Args:
            tokens: CLIP's class tokens of seven layers (N, 7, width).
            texts: Text features of real and fake (2, embed_dim).

        Returns:
            The logits.
        """
        for layer in self.layers:
            tokens = layer(tokens)
        return clip_tower.project(self.projector(tokens.mean(1)), texts.T)


class ClassTokenLayer(nn.Module):
    """Self-attention of class tokens, with a norm after the residual.

    (N, 7, width) → the same shape.

    Args:
        width: Width of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.multihead_attn = clip_tower.Attention(width, HEADS)
        self.layer_norm = nn.LayerNorm(width, eps=1e-5)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Apply the attention to class tokens (N, 7, width). The shape stays."""
        normed: torch.Tensor = self.dropout(self.layer_norm(tokens + self.multihead_attn(tokens)))
        return normed


class Losses(NamedTuple):
    """Losses of a batch in the training of `MaskClip`.

    Attributes:
        detection: Cross-entropy of the class, real or fake.
        mask: Binary cross-entropy of the mask, the mean over all pixels.
        edge: Binary cross-entropy of the mask at the edges of altered areas, times 20.
    """

    detection: torch.Tensor
    mask: torch.Tensor
    edge: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Sum of the three losses."""
        return self.detection + self.mask + self.edge


def losses(
    logits: torch.Tensor,
    mask_logits: torch.Tensor,
    labels: torch.Tensor,
    masks: torch.Tensor,
    edges: torch.Tensor | None = None,
) -> Losses:
    """Compute the losses of a batch for the training of `MaskClip`.

    They are computed from logits and in fp32, so that mixed precision is safe. The edge term is the
    mean over all pixels of all images, including those without an edge.

    Args:
        logits: Class logits (N, 2) of `MaskClip.logits`.
        mask_logits: Mask logits (N, S, S) of `MaskClip.logits`.
        labels: Labels (N,) int64, 1 = fake.
        masks: Masks (N, S, S) of 0 and 1, 1 = altered.
        edges: Edges of altered areas (N, S, S) of 0 and 1. None leaves out the edge term.

    Returns:
        The losses.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        pixels = functional.binary_cross_entropy_with_logits(
            mask_logits.float(), masks.float(), reduction="none"
        )
        edge = pixels.new_zeros(()) if edges is None else EDGE_WEIGHT * (pixels * edges).mean()
        return Losses(functional.cross_entropy(logits.float(), labels), pixels.mean(), edge)


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Freeze CLIP, make all other parameters trainable, and return the trainable ones by name.

    With the published sizes, the trainable parameters are 332 tensors with 119,212,225 numbers.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(part in name for part in LEARNING))
    return {
        name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad
    }


def initialise(
    network: MaskClip, mae_state: Mapping[str, torch.Tensor], clip_state: Mapping[str, torch.Tensor]
) -> None:
    """Load the published MAE encoder and CLIP into a new `MaskClip`, before you train it.

    The tables of relative positions become zero. The learned vectors of the prompts are drawn from
    a normal distribution. All other parameters keep their values.

    Args:
        network: The network, which is changed in place.
        mae_state: Tensors of the published MAE encoder.
        clip_state: Tensors of CLIP, 446 with OpenAI's names.

    Raises:
        DetectorError: If a key is missing, unexpected, or has another shape. The message names it.
    """
    encoder = network.aggregator.vit_model
    positions = (".rel_pos_h", ".rel_pos_w")
    tables = {
        key: torch.zeros_like(tensor)
        for key, tensor in encoder.state_dict().items()
        if key.endswith(positions)
    }
    mae_state = {key: tensor for key, tensor in mae_state.items() if key not in MAE_UNUSED}
    if position_keys := sorted(tables.keys() & mae_state.keys()):
        raise DetectorError(
            f"the MAE weights must be the published encoder, but contain {len(position_keys)} relative positions, such as {position_keys[0]}",
            hint="use mae_pretrain_vit_base.pth here, or set a MaskCLIP checkpoint as the weights of a MaskCLIP card instead",
        )
    load_strictly(encoder, {**mae_state, **tables}, "MAE")
    load_strictly(
        network.clip,
        {key: tensor for key, tensor in clip_state.items() if key not in CLIP_UNUSED},
        "CLIP",
    )
    for prompt in network.prompt_learner.parameters():
        nn.init.normal_(prompt, std=PROMPT_STD)
