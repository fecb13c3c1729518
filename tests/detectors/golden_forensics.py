"""Golden values of DRCT and AIDE, and of what SAFE and FreqNet do first: the authors' own code,
unedited, on formula-filled weights.

Image `HxW` is `pattern_image(H, W)`. Log-odds of fake: fp32, CPU, batch 1. Made with Pillow 12.3,
torch 2.15, torchvision 0.29.2. DRCT: beibuwandeluori/DRCT at 01aa7d0, `create_val_transforms(224,
is_crop=True)` with albumentations 1.3.1, and `get_models` with an embedding of 1,024. AIDE:
shilinyan99/AIDE at 6725b71, `TestDataset` and `AIDE_Model` on open_clip 3.3, with fewer layers.
"""

from tests.detectors.golden import Tensor

AT_224 = (3, 224, 224)

# DRCT's networks, thin: a ConvNeXt with depths (1, 1, 2, 1), widths (16, 32, 48, 64); a CLIP of two
# layers 64 wide, its projection 768.
THIN = {
    "drct-convnext-b": {"width": 1024, "depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64]},
    "drct-clip-vit-l14": {"width": 64, "layers": 2, "heads": 1, "embed_dim": 768},
}
CROPPED = {
    "97x61": Tensor(
        AT_224,
        -1.72486345,
        0.84953237,
        (-2.11790395, -0.60013998, -1.80444443, -2.11790395, -1.80444443),
    ),
    "301x227": Tensor(
        AT_224,
        0.22218815,
        1.29153223,
        (2.09478545, -0.89775902, 1.50710237, 1.83791411, 1.68139434),
    ),
}
THIN_LOG_ODDS = {
    "drct-convnext-b": {"640x480": 1.82768667, "97x61": 2.71420956, "225x300": 2.07597256},
    "drct-clip-vit-l14": {"640x480": 0.5852071, "97x61": -0.14851956, "225x300": 0.466941},
}

# The same of the ConvNeXt at full size. (Of CLIP at full size they were compared by hand.)
FULL_LOG_ODDS = {"97x61": -1.61601281, "301x227": -2.44517708}

# What SAFE's network makes of a whole image first (the authors' other transform, `source`): the
# diagonal detail at the image's size.
DETAIL = {
    "97x61": Tensor((3, 97, 61), -0.00057562, 0.06002, (0.0, -1e-08, 4e-08, -0.12088757, 4e-08)),
    "224x224": Tensor((3, 224, 224), -0.00099589, 0.07465014, (0.0, 0.0, -0.50196075, 1e-08, -0.0)),
}

# What FreqNet makes of the native image first, and what its cut across 64 channels makes of the
# filled first convolution of 97x61.
HIGH = {
    "97x61": Tensor(
        (3, 97, 61), 0.10791698, 0.25840845, (0.0, 0.04482576, 1.23308134, 0.0, 0.27032435)
    ),
    "224x224": Tensor(
        (3, 224, 224), 0.11998086, 0.27889521, (0.0, 0.02550347, 0.0, 0.0, 0.29567349)
    ),
}
ACROSS = Tensor((64, 97, 61), 1.16478794, 1.76077336, (0.0, 1.77998471, 0.0, 2.74527645, 0.0))

# AIDE's network, thin, and what `patch_grades` has to choose: of 33x47 there is one patch alone.
AIDE_THIN = {"layers": [1, 1, 1, 1], "depths": [1, 1, 1, 0], "dims": [8, 16, 24, 3072]}
AIDE_LOG_ODDS = {"97x61": 0.18408608, "301x227": 0.13106525, "33x47": 0.18390179}
# Of the five images that go into its networks of 97x61, in order, the last the whole one: mean and
# deviation, ImageNet-normalised.
AIDE_SEEN = (
    (0.1071291, 1.11264783),
    (0.41858291, 1.24737186),
    (0.0586832, 1.10089298),
    (0.22541714, 1.31379559),
    (0.22860747, 1.22652953),
)
