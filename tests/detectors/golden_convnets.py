"""Golden values of the convolutional detectors, measured with the authors' own code and transforms
on formula-filled weights.

Image `HxW` is `pattern_image(H, W)`. Logits: fp32, CPU, batch 1. Made with Pillow 12.3, torch 2.15,
torchvision 0.29.2. SAFE: Ouxiang-Li/SAFE at 722620a, `Get_Transforms` (crop 256, eval) and
`models.resnet.resnet50`, with pytorch_wavelets 1.3.0. FreqNet: chuangchuangtan's 2c6bd02, as
henrifola/FreqNet-DeepfakeDetection has it, `binary_dataset` (no_crop) and `networks.freqnet`.
"""

from tests.detectors.golden import Tensor

AT_224, AT_256 = (3, 224, 224), (3, 256, 256)


# FreqNet's filled 1 × 1 convolutions are as many times as large: at their usual size nothing of the
# image would reach its logit.
GAIN = {"freqnet": ("weight realconv imagconv", 3.0)}

# By geometry and image: the prepared tensor.
PREPARED = {
    "native": {
        "640x480": Tensor(
            (3, 640, 480),
            0.22640442,
            1.29024966,
            (-2.11790395, -1.75560224, -1.02013063, -1.45003867, 0.93193918),
        ),
        "97x61": Tensor(
            (3, 97, 61),
            0.22858686,
            1.28925812,
            (-2.11790395, -0.74019599, 2.43084955, 1.7351656, 1.7685405),
        ),
    },
    "thumb1024": {
        "1100x1500": Tensor(
            (3, 751, 1024),
            0.22659782,
            0.97553915,
            (-1.98090601, 0.32773119, 1.01908517, -0.18280679, 1.83825719),
        ),
    },
    "squash224": {
        "640x480": Tensor(
            AT_224,
            0.22658837,
            1.07054594,
            (-1.82678318, -1.68557417, 0.67050129, -1.0390445, 1.19337702),
        ),
        "97x61": Tensor(
            AT_224,
            0.22859718,
            1.25081876,
            (-2.11790395, -0.72268897, 2.46570802, 1.71804082, 1.82082808),
        ),
    },
    "squash256-crop224": {
        "640x480": Tensor(
            AT_224,
            0.22647834,
            0.9987861,
            (-1.22741687, -1.66806722, 0.44392177, 1.13579929, 1.26309383),
        ),
        "97x61": Tensor(
            AT_224,
            0.28179503,
            1.23083148,
            (-0.42255333, -0.72268897, 0.93193918, 2.00916171, 1.48967338),
        ),
    },
    "crop224": {
        "640x480": Tensor(
            AT_224,
            0.22582606,
            1.29250967,
            (-0.30268008, -1.75560224, 1.89054477, 1.10154974, -1.28156865),
        ),
        "97x61": Tensor(
            AT_224,
            -1.72486344,
            0.84953239,
            (-2.11790395, -0.60013998, -1.80444443, -2.11790395, -1.80444443),
        ),
    },
    "squash256": {
        "640x480": Tensor(
            AT_256,
            0.22654807,
            0.99834125,
            (-1.82678318, -1.66806722, 0.53106773, -1.2102921, 0.98422676),
        ),
        "97x61": Tensor(
            AT_256,
            0.22853594,
            1.22655342,
            (-2.11790395, -0.72268897, 2.43084955, 1.7351656, 1.78596961),
        ),
    },
    "crop256-clip": {
        "640x480": Tensor(
            AT_256,
            0.18802308,
            1.08536316,
            (0.14932826, -1.51197278, -0.92563713, 0.5142889, 0.96563166),
        ),
        "97x61": Tensor(
            AT_256,
            -1.50649945,
            0.63970679,
            (-1.79226255, -0.52146006, -1.48021984, -1.79226255, -1.48021984),
        ),
    },
    "crop256-raw": {
        "97x61": Tensor(AT_256, 0.04518399, 0.16780654, (0.0, 0.32156864, 0.0, 0.0, 0.0)),
        "301x227": Tensor(
            AT_256, 0.44341515, 0.31558196, (0.0, 0.26666668, 0.0, 0.80392158, 0.82745099)
        ),
    },
    "native-clip": {
        "97x61": Tensor(
            (3, 97, 61),
            0.18988021,
            1.08427324,
            (-1.79226255, -0.64152223, 1.9752562, 1.49238336, 1.43489385),
        ),
    },
}

# By card: its geometry, and by image the logit, of SAFE the log-odds of fake.
LOGITS = {
    "corvi2023": ("native", {"640x480": 0.79379416, "97x61": 0.59026384}),
    "corvi2023:thumb1024": ("thumb1024", {"1100x1500": 0.64574355}),
    "corvi2023:squash224": ("squash224", {"640x480": 0.77459902, "97x61": 0.6012516}),
    "corvi2023:squash256-crop224": (
        "squash256-crop224",
        {"640x480": 0.68820512, "97x61": 0.58278483},
    ),
    "cnndetection": ("crop224", {"640x480": 0.59476519, "97x61": 0.69127667}),
    "cnndetection:native": ("native", {"640x480": 0.7644248, "97x61": 0.28887379}),
    "cnndetection:squash256-crop224": (
        "squash256-crop224",
        {"640x480": 0.54456049, "97x61": 0.5157311},
    ),
    "npr": ("squash256", {"640x480": 1.9157052, "97x61": 0.43756288}),
    "npr:native": ("native", {"640x480": 2.2671721, "97x61": 1.40428507}),
    "npr:squash256-crop224": ("squash256-crop224", {"640x480": 1.94469798, "97x61": 0.44538721}),
    "ladeda9": ("squash256", {"640x480": 0.33321744, "97x61": 0.240318}),
    "ferretnet-s": ("crop256-clip", {"640x480": 0.46266785, "97x61": 0.20405211}),
    "ferretnet-s:native": ("native-clip", {"97x61": 0.34153345}),
    "safe": ("crop256-raw", {"640x480": -0.48731464, "97x61": -0.24303368, "301x227": -0.41424179}),
    "freqnet": ("squash256", {"640x480": 1.72558868, "97x61": 0.43582478, "301x227": 2.01921344}),
    "freqnet:native": ("native", {"97x61": 3.27179456, "301x227": 3.48632193}),
}

# What NPR's network makes of the prepared tensor first: the residual × 2/3. Of native images it is
# GRIP's form, too: even crop.
RESIDUALS = {
    ("npr", "640x480"): Tensor(
        AT_256, 0.00107705, 0.55261732, (0.0, 0.0, -0.03485839, -1.42706299, 0.0)
    ),
    ("npr:native", "97x61"): Tensor(
        (3, 96, 60), 0.00455269, 0.4783394, (0.0, 0.0, 0.20915031, 0.0, 0.02323898)
    ),
}

# What FerretNet's network makes of the prepared 640x480 first: each pixel minus the median of its
# neighbours.
MEDIAN = Tensor(
    AT_256, 0.02062599, 0.41892191, (0.14932826, -0.03001547, -0.92563713, 0.08759055, 0.14220065)
)

# Of 97x61 without the global pool: a logit per cell of Corvi2023, per patch of LaDeDa9.
MAPS = {
    "corvi2023": Tensor(
        (1, 13, 8),
        0.59026373,
        0.32755025,
        (0.17335103, 0.58427852, 0.49301761, 0.99022484, 0.35383785),
    ),
    "ladeda9": Tensor(
        (1, 31, 31),
        0.24031808,
        0.0235602,
        (0.25301814, 0.2468017, 0.24127556, 0.24568038, 0.24778472),
    ),
}

# By residual: what LaDeDa9 and Tiny-LaDeDa make of the prepared 97x61 first (raw: nothing), and the
# logit of Tiny-LaDeDa with filled weights.
TINY = {
    "npr": (
        Tensor(AT_256, 0.00053997, 0.22427337, (0.0, 0.0, 0.01742887, 0.10274851, 0.0)),
        0.04531871,
    ),
    "left_diag": (
        Tensor(
            AT_256,
            -0.00299041,
            1.32780812,
            (-0.01712465, -0.15756321, -0.01742887, -0.35961998, -0.36601257),
        ),
        0.18478516,
    ),
    "raw": (PREPARED["squash256"]["97x61"], 0.32052237),
    "right_diag": (
        Tensor(
            AT_256,
            0.00515391,
            1.93678277,
            (-8.42024231, 0.26260483, -9.67111206, 0.77061319, 0.47058845),
        ),
        0.26442015,
    ),
    "x_grad": (
        Tensor(
            AT_256,
            0.00145792,
            0.90342789,
            (-6.33658695, 0.07002789, -7.27511978, 0.27399576, 0.06971657),
        ),
        0.10526423,
    ),
    "y_grad": (
        Tensor(
            AT_256,
            0.00544067,
            2.03857684,
            (-6.30233765, 0.28011197, -7.24026203, 0.75348949, 0.55773425),
        ),
        0.27064049,
    ),
}
