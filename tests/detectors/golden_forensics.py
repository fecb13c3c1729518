"""Golden values of SAFE, FreqNet, DRCT and AIDE, measured with the authors' own code and transforms, unedited, on formula-filled weights.

Image `HxW` is `pattern_image(H, W)`. Log-odds of fake: fp32, CPU, batch 1. Made with Pillow 12.3, torch 2.15, torchvision 0.29.2.
SAFE: Ouxiang-Li/SAFE at 722620a, `Get_Transforms` (crop 256, eval) and `models.resnet.resnet50`, with pytorch_wavelets 1.3.0.
FreqNet: chuangchuangtan's 2c6bd02, as henrifola/FreqNet-DeepfakeDetection has it, `binary_dataset` (no_crop) and `networks.freqnet`.
DRCT: beibuwandeluori/DRCT at 01aa7d0, `create_val_transforms(224, is_crop=True)` with albumentations 1.3.1, and `get_models` with an
embedding of 1,024.
AIDE: shilinyan99/AIDE at 6725b71, `TestDataset` and `AIDE_Model` on open_clip 3.3, with fewer layers.
"""

from tests.detectors.golden import Tensor

AT_224, AT_256 = (3, 224, 224), (3, 256, 256)

# Of the whole filled state dict under published names: tensors, elements, sum, sum of absolute values; and the parameters among them.
FILLED = {
    "safe": (146, 1_448_410, 10368.795436, 75725.3310, 1_438_274),
    "freqnet": (156, 1_860_440, 10383.551991, 146150.8079, 1_850_433),
}

# FreqNet's filled 1 × 1 convolutions are as many times as large: at their usual size nothing of the image would reach its logit.
GAIN = {"freqnet": ("weight realconv imagconv", 3.0)}

PREPARED = {
    "safe": {
        "300x400": Tensor(AT_256, 0.49995772, 0.28980892, (0.28627452, 0.27450982, 0.47058824, 0.3137255, 0.50196081)),
        "97x61": Tensor(AT_256, 0.04518399, 0.16780654, (0.0, 0.32156864, 0.0, 0.0, 0.0)),
        "301x227": Tensor(AT_256, 0.44341515, 0.31558196, (0.0, 0.26666668, 0.0, 0.80392158, 0.82745099)),
    },
    "freqnet": {
        "300x400": Tensor(AT_256, 0.22740595, 1.13035238, (-2.03228021, -0.77521002, -0.2706753, 0.81042898, 2.09969521)),
        "97x131": Tensor(AT_256, 0.22695297, 1.21893796, (-2.11790395, 1.1330533, -1.76958609, -0.6451751, 0.16505454)),
        "301x227": Tensor(AT_256, 0.22761758, 1.19247879, (-2.06652975, -0.82773101, 0.94936836, -1.67266035, -0.32296288)),
    },
}

# DRCT's networks, thin: a ConvNeXt with depths (1, 1, 2, 1), widths (16, 32, 48, 64); a CLIP of two layers 64 wide, its projection 768.
THIN = {
    "drct-convnext-b": {"width": 1024, "depths": [1, 1, 2, 1], "dims": [16, 32, 48, 64]},
    "drct-clip-vit-l14": {"width": 64, "layers": 2, "heads": 1, "embed_dim": 768},
}
CROPPED = {
    "97x61": Tensor(AT_224, -1.72486345, 0.84953237, (-2.11790395, -0.60013998, -1.80444443, -2.11790395, -1.80444443)),
    "301x227": Tensor(AT_224, 0.22218815, 1.29153223, (2.09478545, -0.89775902, 1.50710237, 1.83791411, 1.68139434)),
    "225x300": Tensor(AT_224, 0.22789988, 1.29264139, (-1.94665635, 2.20098019, -0.75869274, 0.57068235, 0.11276691)),
}
THIN_LOG_ODDS = {
    "drct-convnext-b": {
        "300x400": 1.85159898,
        "640x480": 1.82768667,
        "97x61": 2.71420956,
        "224x224": 1.88253391,
        "301x227": 2.16608858,
        "225x300": 2.07597256,
    },
    "drct-clip-vit-l14": {
        "300x400": 0.48585302,
        "640x480": 0.5852071,
        "97x61": -0.14851956,
        "224x224": 0.41547722,
        "301x227": 0.49833247,
        "225x300": 0.466941,
    },
}

# The same of the ConvNeXt at full size. (Of CLIP at full size they were compared by hand.)
FULL_LOG_ODDS = {"300x400": -1.88638914, "97x61": -1.61601281, "301x227": -2.44517708, "225x300": -1.86943889}

LOG_ODDS = {
    "safe": {
        "300x400": -0.45618126,
        "640x480": -0.48731464,
        "1024x768": -0.51795721,
        "97x61": -0.24303368,
        "224x224": -0.39097244,
        "301x227": -0.41424179,
        "97x131": -0.26456624,
    },
    "freqnet": {
        "300x400": 1.75602746,
        "640x480": 1.72558868,
        "1024x768": 1.44331253,
        "97x61": 0.43582478,
        "224x224": 2.79742599,
        "301x227": 2.01921344,
        "97x131": 0.71278274,
    },
    "freqnet:native": {
        "97x61": 3.27179456,
        "97x131": 4.08140278,
        "224x224": 3.23895502,
        "301x227": 3.48632193,
    },
}

# What SAFE's network makes of a whole image first (the authors' other transform, `source`): the diagonal detail at the image's size.
DETAIL = {
    "97x61": Tensor((3, 97, 61), -0.00057562, 0.06002, (0.0, -1e-08, 4e-08, -0.12088757, 4e-08)),
    "301x227": Tensor((3, 301, 227), -0.00106421, 0.07762846, (0.0, 0.0, 1e-08, -9.343e-05, -0.0)),
    "224x224": Tensor((3, 224, 224), -0.00099589, 0.07465014, (0.0, 0.0, -0.50196075, 1e-08, -0.0)),
    "97x131": Tensor((3, 97, 131), -0.00113955, 0.06769497, (0.0, 0.0, 0.0, 0.0, -0.07655612)),
}

# What FreqNet makes of the native image first, and what its cut across 64 channels makes of the filled first convolution of the image.
HIGH = {
    "97x61": Tensor((3, 97, 61), 0.10791698, 0.25840845, (0.0, 0.04482576, 1.23308134, 0.0, 0.27032435)),
    "301x227": Tensor((3, 301, 227), 0.11985645, 0.2788183, (0.0, 0.0, 0.08274533, 0.54846376, 0.0)),
    "224x224": Tensor((3, 224, 224), 0.11998086, 0.27889521, (0.0, 0.02550347, 0.0, 0.0, 0.29567349)),
    "97x131": Tensor((3, 97, 131), 0.10886987, 0.26354017, (0.0, 0.0, 0.0, 0.03238801, 1.85635471)),
}
ACROSS = {
    "97x61": Tensor((64, 97, 61), 1.16478794, 1.76077336, (0.0, 1.77998471, 0.0, 2.74527645, 0.0)),
    "97x131": Tensor((64, 97, 131), 1.16492473, 1.76603907, (0.0, 0.0, 0.13135576, 0.0, 0.0)),
}

# AIDE's network, thin (elements: 23,805,886), and what `patch_grades` has to choose: of 33x47 there is one patch alone.
AIDE_THIN = {"layers": [1, 1, 1, 1], "depths": [1, 1, 1, 0], "dims": [8, 16, 24, 3072]}
AIDE_SIZE = (260, 23_805_886, 23_767_196)
AIDE_LOG_ODDS = {
    "300x400": 0.16776888,
    "97x61": 0.18408608,
    "224x224": 0.18443862,
    "301x227": 0.13106525,
    "33x47": 0.18390179,
}
# Of the five images that go into its networks, in order, the last the whole one: mean and deviation, ImageNet-normalised.
AIDE_SEEN = {
    "301x227": (
        (0.1071291, 1.11264783),
        (0.06249523, 1.17944106),
        (0.20495959, 1.08791387),
        (0.2184185, 1.29487201),
        (0.22767452, 1.19245019),
    ),
    "97x61": (
        (0.1071291, 1.11264783),
        (0.41858291, 1.24737186),
        (0.0586832, 1.10089298),
        (0.22541714, 1.31379559),
        (0.22860747, 1.22652953),
    ),
}
