"""Golden values of MaskCLIP: the authors' network, run unedited on formula-filled weights (golden/maskclip.md), and its names and shapes.

Case A: `pattern_image` at the network's size. Case B: 360 × 480, resized by OpenCV. Mask: an ellipse; edge: its 7-wide outline; label:
fake. CPU, fp32, evaluation mode, torch 2.15. Tolerances: 2e-5 on logits, pixels, means and losses; 2e-5 relative on norms; 1e-4 on
single features; 2e-4 relative on norms of gradients; 20 pixels on the count above 0.5.
"""

from typing import NamedTuple


class Golden(NamedTuple):
    """`logits`: real, fake. `pixels`: (row, column, probability). `above`: pixels above 0.5. Norms are L2 over all elements.

    `taps`: norms of the seven ln_2 outputs of CLIP. `texts`: first four of each unit text. `tokens`: (row, column, first three channels)
    after the last MAE block. `fused`: norm before the text's `answer` (first four, norm) is added. `low`: mean and norm of the logit map.
    `head`: first four and norm of the image feature. `losses`: class, mask, edge, total.
    """

    logits: tuple
    pixels: tuple
    mean: float
    low_high: tuple
    above: int
    taps: tuple
    texts: tuple
    tokens: tuple
    fused: float
    answer: tuple
    low: tuple
    head: tuple
    losses: tuple


GOLDEN = {
    ("tiny256", "A"): Golden(
        logits=(0.27031, 0.973162),
        pixels=((0, 0, 0.391286), (32, 128, 0.295833), (128, 128, 0.357581), (160, 96, 0.335962), (255, 255, 0.415697)),
        mean=0.34872,
        low_high=(0.120763, 0.704558),
        above=1629,
        taps=(181.69662, 183.60485, 180.50464, 177.43609, 178.70782, 183.74203, 181.44816),
        texts=((-0.145408, -0.249872, 0.044117, 0.169763), (-0.185883, -0.255137, -0.059277, 0.054963)),
        tokens=((0, 0, (-3.07174, 4.11439, -1.58686)), (5, 9, (-6.59825, 4.0172, -3.66257)), (-1, -1, (-2.3282, 0.87046, -6.37737))),
        fused=360.086963,
        answer=((0.403336, -1.684542, -2.079449, 0.092017), 4.167161),
        low=(-0.637189, 50.849991),
        head=((-0.496336, -1.051667, 0.39962, -0.32719), 8.321763),
        losses=(0.402241, 0.51205, 0.370794, 1.285084),
    ),
    ("tiny256", "B"): Golden(
        logits=(0.295075, 1.029791),
        pixels=((0, 0, 0.262374), (32, 128, 0.17769), (128, 128, 0.225538), (160, 96, 0.178636), (255, 255, 0.3984)),
        mean=0.254081,
        low_high=(0.075381, 0.718499),
        above=91,
        taps=(181.34924, 183.69839, 180.38042, 177.29164, 178.70187, 183.78558, 181.47385),
        texts=((-0.145408, -0.249872, 0.044117, 0.169763), (-0.185883, -0.255137, -0.059277, 0.054963)),
        tokens=((0, 0, (-1.55259, -3.93302, -2.79044)), (5, 9, (-5.29952, -1.45992, -1.91042)), (-1, -1, (0.05702, 0.7242, -3.26503))),
        fused=327.008616,
        answer=((0.477221, -1.188262, -1.617125, 0.150311), 3.656412),
        low=(-1.100308, 76.917206),
        head=((-0.159621, -1.038932, 0.462183, -0.533112), 8.346765),
        losses=(0.3918, 0.424691, 0.272044, 1.088535),
    ),
    ("tiny512", "A"): Golden(
        logits=(0.356628, 0.910946),
        pixels=((0, 0, 0.434568), (64, 256, 0.321912), (256, 256, 0.392981), (320, 192, 0.361018), (511, 511, 0.341954)),
        mean=0.374227,
        low_high=(0.128118, 0.771076),
        above=8409,
        taps=(181.95672, 183.46177, 180.22718, 177.32505, 179.03289, 183.7889, 181.43688),
        texts=((-0.145408, -0.249872, 0.044117, 0.169763), (-0.185883, -0.255137, -0.059277, 0.054963)),
        tokens=((0, 0, (-2.24471, 4.64743, -2.07342)), (5, 9, (-6.5817, 6.07975, -4.18803)), (-1, -1, (-0.66677, 3.47795, -5.52935))),
        fused=730.122581,
        answer=((0.379305, -1.898434, -2.131612, 0.058684), 4.583165),
        low=(-0.52414, 88.254155),
        head=((-0.123967, -1.172125, 0.142134, -0.278982), 8.08503),
        losses=(0.453915, 0.534866, 0.177004, 1.165785),
    ),
    ("tiny512", "B"): Golden(
        logits=(0.28672, 1.000349),
        pixels=((0, 0, 0.472581), (64, 256, 0.329898), (256, 256, 0.31741), (320, 192, 0.373927), (511, 511, 0.413125)),
        mean=0.323396,
        low_high=(0.109036, 0.73678),
        above=2336,
        taps=(181.38099, 183.49678, 180.42773, 177.35241, 178.90813, 183.89763, 181.4066),
        texts=((-0.145408, -0.249872, 0.044117, 0.169763), (-0.185883, -0.255137, -0.059277, 0.054963)),
        tokens=((0, 0, (-4.41359, 1.22524, -1.74207)), (5, 9, (-9.52187, -0.44447, -3.63039)), (-1, -1, (-0.61058, -1.43287, -3.92759))),
        fused=705.589036,
        answer=((0.459602, -1.656697, -2.059464, 0.046111), 4.432775),
        low=(-0.755115, 112.5162),
        head=((-0.091212, -1.101705, 0.404659, -0.464321), 8.402914),
        losses=(0.398684, 0.482373, 0.242914, 1.123972),
    ),
    ("full", "A"): Golden(
        logits=(1.264072, 1.169921),
        pixels=((0, 0, 0.189564), (64, 256, 0.624117), (256, 256, 0.524127), (320, 192, 0.512418), (511, 511, 0.430616)),
        mean=0.535775,
        low_high=(0.156638, 0.857192),
        above=176521,
        taps=(514.18911, 513.65127, 514.81843, 512.41848, 513.36137, 511.46912, 517.11567),
        texts=((0.011656, -0.008932, 0.005328, -0.003115), (0.031645, 0.006628, 0.051135, 0.014034)),
        tokens=((0, 0, (3.25751, 3.28581, 0.21998)), (5, 9, (5.19812, 0.05265, -2.12791)), (-1, -1, (0.4393, -2.03291, -4.23665))),
        fused=1798.075408,
        answer=((-0.47574, -0.652596, -0.086894, -0.225482), 10.203824),
        low=(0.144633, 63.89901),
        head=((-0.581125, -0.724906, 0.523761, -0.383089), 24.4372),
        losses=(0.74133, 0.76803, 0.171637, 1.680997),
    ),
    ("full", "B"): Golden(
        logits=(1.392249, 0.958249),
        pixels=((0, 0, 0.223913), (64, 256, 0.495203), (256, 256, 0.559158), (320, 192, 0.530851), (511, 511, 0.44173)),
        mean=0.529534,
        low_high=(0.179711, 0.858073),
        above=168759,
        taps=(513.88517, 513.74193, 515.00011, 512.12371, 513.79417, 512.0318, 516.30027),
        texts=((0.011656, -0.008932, 0.005328, -0.003115), (0.031645, 0.006628, 0.051135, 0.014034)),
        tokens=((0, 0, (5.439, 2.40727, -1.69141)), (5, 9, (2.73797, 0.28543, -4.21607)), (-1, -1, (3.04919, 0.97616, -2.69696))),
        fused=1803.867393,
        answer=((-0.39631, -0.650414, 0.343744, -0.2758), 10.21726),
        low=(0.118727, 62.461072),
        head=((-0.802935, -1.061403, 0.484931, -0.100358), 24.453322),
        losses=(0.933509, 0.757113, 0.221417, 1.912039),
    ),
}

# Norms of the gradients of the total loss; all of the 332 trainable tensors have one. The last is over all of them.
GRADIENTS = {
    "tiny256": {
        "prompt_learner.ctx_pos": 21.6504612,
        "prompt_learner.ctx_neg": 21.12250137,
        "cls_aggregator.projector.0.weight": 2.97513914,
        "aggregator.text_projection.weight": 0.01668261,
        "aggregator.mask_decoder.predict.weight": 0.80665994,
        "aggregator.vit_model.pos_embed": 0.03032445,
        "aggregator.vit_model.patch_embed.proj.weight": 2.15959382,
        "aggregator.vit_model.blocks.0.attn.rel_pos_h": 0.00667741,
        "aggregator.fusion_layers.layer_1.channel_adjust.0.weight": 0.27375013,
        "all": 30.887637,
    },
    "tiny512": {
        "prompt_learner.ctx_pos": 20.78825569,
        "prompt_learner.ctx_neg": 20.31262207,
        "cls_aggregator.projector.0.weight": 3.26745272,
        "aggregator.text_projection.weight": 0.02079366,
        "aggregator.mask_decoder.predict.weight": 1.20152128,
        "aggregator.vit_model.pos_embed": 0.03382322,
        "aggregator.vit_model.patch_embed.proj.weight": 3.17788148,
        "aggregator.vit_model.blocks.0.attn.rel_pos_h": 0.00542563,
        "aggregator.fusion_layers.layer_1.channel_adjust.0.weight": 0.49138954,
        "all": 30.231114,
    },
}

# What the small networks differ in from the published one; they have the same 778 names.
SMALL = {
    "vision": {"width": 128, "heads": 2, "embed_dim": 64},
    "text": {"width": 64, "heads": 4, "embed_dim": 64},
    "mae_width": 96,
    "decoder_width": 32,
}
ARGUMENTS = {"full": {}, "tiny512": SMALL, "tiny256": {**SMALL, "image_size": 256}}

# tiny512 on two images, the pattern (fake) and the pattern upside down (real, no mask): logits, mask means, three pixels of the second
# image, and the losses.
PAIR_LOGITS = ((0.356628, 0.910946), (0.689174, 1.348552))
PAIR_MEANS = (0.374227, 0.273742)
PAIR_PIXELS = ((0, 0, 0.217669), (256, 256, 0.228975), (511, 511, 0.194253))
PAIR_LOSSES = (0.765071, 0.430165, 0.088502, 1.283738)

# tiny512, case A with other targets: class, mask, edge, total.
REAL_LOSSES = (1.008232, 0.475089, 0.0, 1.483321)
FULL_MASK_LOSSES = (0.453915, 1.001693, 0.0, 1.455609)

# Parameters and tensors of the published network's parts.
PARTS = {
    "clip": (427_616_513, 446),
    "aggregator": (114_209_985, 323),
    "aggregator.vit_model": (85_856_256, None),
    "aggregator.fusion_layers": (22_068_480, None),
    "aggregator.mask_decoder": (6_088_385, None),
    "aggregator.text_projection": (196_864, None),
    "cls_aggregator": (4_986_880, 7),
    "prompt_learner": (15_360, 2),
}


def _affine(name, rows, *columns):
    return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}


def _clip_blocks(prefix, count, width):
    shapes = {}
    for block in (f"{prefix}transformer.resblocks.{layer}" for layer in range(count)):
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= _affine(f"{block}.attn.out_proj", width, width) | _affine(f"{block}.ln_1", width) | _affine(f"{block}.ln_2", width)
        shapes |= _affine(f"{block}.mlp.c_fc", 4 * width, width) | _affine(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes


def _clip():
    shapes = {"positional_embedding": (77, 768), "text_projection": (768, 768), "logit_scale": (), "token_embedding.weight": (49408, 768)}
    shapes |= _affine("ln_final", 768) | _clip_blocks("", 12, 768)
    shapes |= {"visual.class_embedding": (1024,), "visual.positional_embedding": (257, 1024), "visual.proj": (1024, 768)}
    shapes |= {"visual.conv1.weight": (1024, 3, 14, 14)} | _affine("visual.ln_pre", 1024) | _affine("visual.ln_post", 1024)
    return shapes | _clip_blocks("visual.", 24, 1024)


def _vit():
    shapes = {"pos_embed": (1, 197, 768)} | _affine("patch_embed.proj", 768, 3, 16, 16)
    for block in range(12):
        shapes |= _affine(f"blocks.{block}.norm1", 768) | _affine(f"blocks.{block}.norm2", 768)
        shapes |= _affine(f"blocks.{block}.attn.qkv", 2304, 768) | _affine(f"blocks.{block}.attn.proj", 768, 768)
        shapes |= {f"blocks.{block}.attn.rel_pos_{axis}": (63 if block in (2, 5, 8, 11) else 27, 64) for axis in "hw"}
        shapes |= _affine(f"blocks.{block}.mlp.fc1", 3072, 768) | _affine(f"blocks.{block}.mlp.fc2", 768, 3072)
    return shapes


def _fusion():
    shapes = {}
    for layer in (f"layer_{block}" for block in range(1, 8)):
        shapes |= _affine(f"{layer}.channel_adjust.0", 768, 1024, 1, 1) | _affine(f"{layer}.channel_adjust.1", 768)
        for name in ("query_proj", "key_proj", "value_proj", "output_proj.0"):
            shapes |= _affine(f"{layer}.{name}", 768, 768)
        shapes |= _affine(f"{layer}.output_proj.1", 768)
    return shapes


def _decoder():
    shapes = _affine("to_q", 256, 256) | _affine("to_kv", 512, 256) | _affine("proj", 256, 256)
    shapes |= {
        "stages.0.0.weight": (768, 384, 2, 2),
        "stages.0.0.bias": (384,),
        "stages.0.3.weight": (384, 192, 2, 2),
        "stages.0.3.bias": (192,),
    }
    shapes |= _affine("stages.0.1", 384) | {"stages.1.0.weight": (768, 384, 2, 2), "stages.1.0.bias": (384,)}
    for stage, first, channels in ((0, 4, 192), (1, 1, 384), (2, 0, 768), (3, 1, 768)):
        shapes |= _affine(f"stages.{stage}.{first}", 256, channels, 1, 1) | _affine(f"stages.{stage}.{first + 1}", 256)
        shapes |= _affine(f"stages.{stage}.{first + 2}", 256, 256, 3, 3) | _affine(f"stages.{stage}.{first + 3}", 256)
    return shapes | _affine("linear_fuse", 256, 1024, 1, 1) | _affine("norm", 256) | _affine("predict", 1, 256, 1, 1)


def published_shapes():
    """Every name and shape of the authors' state dict (specs/localization.md §1.4)."""
    attention = {"in_proj_weight": (3072, 1024), "in_proj_bias": (3072,), "out_proj.weight": (1024, 1024), "out_proj.bias": (1024,)}
    parts = {
        "clip": _clip(),
        "aggregator.vit_model": _vit(),
        "aggregator.fusion_layers": _fusion(),
        "aggregator.mask_decoder": _decoder(),
        "aggregator": _affine("text_projection", 256, 768),
        "cls_aggregator.layers.0": {f"multihead_attn.{name}": shape for name, shape in attention.items()} | _affine("layer_norm", 1024),
        "cls_aggregator": {"projector.0.weight": (768, 1024)},
        "prompt_learner": {"ctx_pos": (1, 10, 768), "ctx_neg": (1, 10, 768)},
    }
    return {f"{part}.{name}": shape for part, shapes in parts.items() for name, shape in shapes.items()}
