"""Golden values of MaskCLIP: the authors' network, run unedited on formula-filled weights
(golden/maskclip.md).

Case A: `pattern_image` at the network's size. Case B: 360 × 480, resized by OpenCV. Mask: an
ellipse; edge: its 7-wide outline; label: fake. CPU, fp32, evaluation mode, torch 2.15. Tolerances:
2e-5 on logits, pixels, means and losses; 2e-4 relative on norms of gradients; 20 pixels on the
count above 0.5.
"""

from typing import NamedTuple


class Golden(NamedTuple):
    """`logits`: real, fake. `pixels`: (row, column, probability). `above`: pixels above 0.5.
    `losses`: class, mask, edge, total.
    """

    logits: tuple
    pixels: tuple
    mean: float
    low_high: tuple
    above: int
    losses: tuple


GOLDEN = {
    ("tiny256", "B"): Golden(
        logits=(0.295075, 1.029791),
        pixels=(
            (0, 0, 0.262374),
            (32, 128, 0.17769),
            (128, 128, 0.225538),
            (160, 96, 0.178636),
            (255, 255, 0.3984),
        ),
        mean=0.254081,
        low_high=(0.075381, 0.718499),
        above=91,
        losses=(0.3918, 0.424691, 0.272044, 1.088535),
    ),
    ("full", "A"): Golden(
        logits=(1.264072, 1.169921),
        pixels=(
            (0, 0, 0.189564),
            (64, 256, 0.624117),
            (256, 256, 0.524127),
            (320, 192, 0.512418),
            (511, 511, 0.430616),
        ),
        mean=0.535775,
        low_high=(0.156638, 0.857192),
        above=176521,
        losses=(0.74133, 0.76803, 0.171637, 1.680997),
    ),
}

# Of tiny256 on case A: norms of the gradients of the total loss; all of the 332 trainable tensors
# have one. The last is over all of them.
GRADIENTS = {
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
}

# What the small networks differ in from the published one; they have the same 778 names, by which
# `fill` makes their weights.
SMALL = {
    "vision": {"width": 128, "heads": 2, "embed_dim": 64},
    "text": {"width": 64, "heads": 4, "embed_dim": 64},
    "mae_width": 96,
    "decoder_width": 32,
}
ARGUMENTS = {"full": {}, "tiny512": SMALL, "tiny256": {**SMALL, "image_size": 256}}

# tiny512 on two images, the pattern (fake) and the pattern upside down (real, no mask): logits,
# mask means, three pixels of the second image, and the losses.
PAIR_LOGITS = ((0.356628, 0.910946), (0.689174, 1.348552))
PAIR_MEANS = (0.374227, 0.273742)
PAIR_PIXELS = ((0, 0, 0.217669), (256, 256, 0.228975), (511, 511, 0.194253))
PAIR_LOSSES = (0.765071, 0.430165, 0.088502, 1.283738)

# tiny512, case A with other targets: class, mask, edge, total.
REAL_LOSSES = (1.008232, 0.475089, 0.0, 1.483321)
FULL_MASK_LOSSES = (0.453915, 1.001693, 0.0, 1.455609)
