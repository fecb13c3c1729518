"""JPEGs that a GPU decodes, with a stand-in for nvJPEG: which files it sees."""

import io

import numpy as np
import torch
from PIL import Image

from ray_app.ensembles import ensemble_of
from ray_app.errors import Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.nvjpeg import NvJpeg
from tests.images import factory
from tests.scoring.eight import small_cards


def brighter(data):
    """What a core makes of a file, as torchvision gives it, three levels brighter."""
    pixels = np.array(decode_image(bytes(data.numpy()), ImageLimits()).pixels)
    return (torch.from_numpy(pixels).permute(2, 0, 1).int() + 3).clamp(0, 255).to(torch.uint8)


def jpeg(mode="RGB"):
    pixels = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG")
    return file.getvalue()


def test_ordinary_jpegs_are_decoded_beside_the_gpu_and_everything_else_on_a_core():
    [card] = [card for card in small_cards() if card.name == "corvi2023"]
    spec = make_spec(ensemble_of([card.name]), cards=[card], limits=ImageLimits(), device="cuda", precision="fp32", slots=4)
    files = [jpeg(), jpeg()[:900], factory.png(), jpeg("L")]
    handed = BatchDecoder(spec, StageClock(), hand_over=True).decode(list(enumerate(files)))
    assert [outcome.status for outcome in handed.outcomes] == [Status.OK, Status.TRUNCATED_IMAGE, Status.OK, Status.OK]
    nvjpeg = NvJpeg(brighter)
    plain = BatchDecoder(spec, StageClock()).complete(handed).pixels[0]
    beside = BatchDecoder(spec, StageClock(), beside=nvjpeg).complete(handed).pixels[0]
    assert np.array_equal(beside[0], np.clip(plain[0].astype(int) + 3, 0, 255))
    assert beside[1] is None
    assert np.array_equal(beside[2], plain[2])
    assert np.array_equal(beside[3], plain[3])
    assert nvjpeg.counts == {"nvjpeg": 1}
