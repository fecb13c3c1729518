"""Tiny pipelines of the real classes, with random seeded components, saved as diffusers saves them.
They make noise, and all code runs.
"""

import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxInpaintPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

SIDE = 32
_LETTERS = list(string.printable.strip())


def tiny_sd3(folder: Path, *, edits: bool = False) -> Path:
    """StableDiffusion3Pipeline, or the one that `edits`; latents of 16 channels at a half of the
    image's size.
    """
    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=16, pos_embed_max_size=32,
    )  # fmt: skip
    pipeline = (StableDiffusion3InpaintPipeline if edits else StableDiffusion3Pipeline)(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(16), text_encoder=_clip(True),
        tokenizer=_clip_tokenizer(folder), text_encoder_2=_clip(True), tokenizer_2=_clip_tokenizer(folder), text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip
    return _saved(pipeline, folder)


def tiny_flux(folder: Path, *, edits: bool = False) -> Path:
    """FluxPipeline, or the one that `edits`; its latents are packed in squares of two."""
    torch.manual_seed(2)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    pipeline = (FluxInpaintPipeline if edits else FluxPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(4), text_encoder=_clip(False), tokenizer=_clip_tokenizer(folder),
        text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(), transformer=transformer,
    )  # fmt: skip
    return _saved(pipeline, folder)


def tiny_inpainting(folder: Path, *, checker: bool = False) -> Path:
    """StableDiffusionInpaintPipeline; with `checker`, its safety checker blanks whatever it sees."""
    torch.manual_seed(3)
    pipeline = StableDiffusionInpaintPipeline(
        vae=_vae(4), text_encoder=_clip(False), tokenizer=_clip_tokenizer(folder), unet=_unet(cross=32),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=_always_unsafe() if checker else None,
        feature_extractor=CLIPImageProcessor(size=30, crop_size=30),
        requires_safety_checker=checker,
    )  # fmt: skip
    return _saved(pipeline, folder)


def tiny_image_to_image(folder: Path) -> Path:
    """StableDiffusionPipeline, which diffusers also makes an image-to-image pipeline of."""
    torch.manual_seed(5)
    pipeline = StableDiffusionPipeline(
        vae=_vae(4), text_encoder=_clip(False), tokenizer=_clip_tokenizer(folder), unet=_unet(cross=32, in_channels=4),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return _saved(pipeline, folder)


def tiny_xl_inpainting(folder: Path) -> Path:
    """StableDiffusionXLInpaintPipeline, whose noise is mixed with the image below a strength of 1."""
    return _tiny_xl(StableDiffusionXLInpaintPipeline, folder, in_channels=9)


def tiny_xl(folder: Path) -> Path:
    """StableDiffusionXLPipeline."""
    return _tiny_xl(StableDiffusionXLPipeline, folder, in_channels=4)


def _tiny_xl(kind, folder: Path, in_channels: int) -> Path:
    torch.manual_seed(4)
    unet = _unet(
        cross=64, in_channels=in_channels, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        transformer_layers_per_block=(1, 1), use_linear_projection=True, attention_head_dim=(2, 4),
    )  # fmt: skip
    pipeline = kind(
        vae=_vae(4), text_encoder=_clip(False), text_encoder_2=_clip(True), tokenizer=_clip_tokenizer(folder),
        tokenizer_2=_clip_tokenizer(folder), unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip
    return _saved(pipeline, folder)


def _saved(pipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=SIDE,
        use_quant_conv=channels == 4, use_post_quant_conv=channels == 4, shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip


def _unet(*, cross: int, **more) -> UNet2DConditionModel:
    given = {"attention_head_dim": 8, "in_channels": 9, **more}
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=SIDE // 2, out_channels=4, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, **given,
    )  # fmt: skip


def _clip(projected: bool):
    config = CLIPTextConfig(
        vocab_size=len(_LETTERS) * 2 + 2, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval() if projected else CLIPTextModel(config).eval()


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *_LETTERS,
        *(letter + "</w>" for letter in _LETTERS),
    ]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_LETTERS) + 3,
            d_model=32,
            d_kv=8,
            d_ff=37,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {
        token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *_LETTERS])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )


def _always_unsafe() -> StableDiffusionSafetyChecker:
    config = CLIPConfig(
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 30,
                       "patch_size": 15},
        projection_dim=16,
    )  # fmt: skip
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-10.0)  # every likeness is above its threshold
    checker.special_care_embeds_weights.data.fill_(-10.0)
    return checker
