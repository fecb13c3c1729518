"""Golden values of the CLIP detectors, measured with the authors' own code and transforms on a
formula-filled tower and head.

Image `HxW` is `pattern_image(H, W)`. Made with Pillow 12.3, torch 2.15, torchvision 0.29.2,
open_clip 3.3.
"""

from tests.detectors.golden import Tensor

AT_224, AT_336 = (3, 224, 224), (3, 336, 336)

# By detector and image: the prepared tensor.
PREPARED = {
    "clip-d-10k-plus": {
        "640x480": Tensor(
            AT_224,
            0.18773661,
            0.9302647,
            (-1.55868769, -1.43693399, 0.62435007, 0.12013142, 0.43948925),
        ),
        "97x61": Tensor(
            AT_224,
            0.19615522,
            1.05593251,
            (1.53617871, -0.62651443, -0.76921648, -1.0039475, 0.52480966),
        ),
    },
    "unifd": {
        "640x480": Tensor(
            AT_224,
            0.18712392,
            1.08694948,
            (-0.24482933, -1.51197278, 1.53443432, 0.95224166, -1.05361784),
        ),
        "97x61": Tensor(
            AT_224,
            -1.45496055,
            0.7192241,
            (-1.79226255, -0.52146006, -1.48021984, -1.79226255, -1.48021984),
        ),
    },
    "unifd:squash256-crop224": {
        "640x480": Tensor(
            AT_224,
            0.18767568,
            0.84240916,
            (-1.03314435, -1.43693399, 0.35416883, 0.98143852, 1.02251196),
        ),
        "97x61": Tensor(
            AT_224,
            0.23448527,
            1.0349026,
            (-0.3470183, -0.62651443, 0.75233066, 1.72595823, 1.20737278),
        ),
    },
    "clip-cues": {
        "640x480": Tensor(
            AT_336,
            0.1894107,
            0.9278602,
            (-1.47109711, -1.48195732, 0.90875137, 0.61647785, 0.39682904),
        ),
        "97x61": Tensor(
            AT_336,
            0.19622309,
            1.03479112,
            (1.53617871, -0.64152223, -0.76921648, -0.9747507, 0.53902972),
        ),
    },
    "clip-d-10k-plus:thumb1024": {
        "1100x1500": Tensor(
            AT_224,
            0.18780888,
            0.60158187,
            (0.55808419, 0.40902159, 0.4110491, 0.0617376, 0.38260898),
        ),
    },
}

# The logit of 97x61 (fp32, CPU, batch 1). What was measured with the published head, which is not
# part of this repository: `test_published_files`.
LOGITS = {"clip-d-10k-plus": -0.03132489, "unifd": 1.25329828, "clip-cues": -0.9866544}
