"""JPEGs that a GPU decodes, with stand-ins for nvJPEG: which files it sees, and that a decoder that moves scores is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ray_app.detectors import load_detector
from ray_app.ensembles import ensemble_of
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.nvjpeg import NvJpeg, require_parity
from tests.images import factory
from tests.scoring.eight import small_cards


def shifted(levels):
    """What a core makes of a file, as torchvision gives it, some levels brighter."""

    def decode(data):
        pixels = np.array(decode_image(bytes(data.numpy()), ImageLimits()).pixels)
        return (torch.from_numpy(pixels).permute(2, 0, 1).int() + levels).clamp(0, 255).to(torch.uint8)

    return decode


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
    nvjpeg = NvJpeg(shifted(3))
    plain = BatchDecoder(spec, StageClock()).complete(handed).pixels[0]
    beside = BatchDecoder(spec, StageClock(), beside=nvjpeg).complete(handed).pixels[0]
    assert np.array_equal(beside[0], np.clip(plain[0].astype(int) + 3, 0, 255))
    assert beside[1] is None
    assert np.array_equal(beside[2], plain[2])
    assert np.array_equal(beside[3], plain[3])
    assert nvjpeg.counts == {"nvjpeg": 1}


def test_a_decoder_that_moves_scores_is_refused_with_what_to_do():
    detector = load_detector("touchstone-tiny", precision="fp32")
    require_parity([detector], NvJpeg(shifted(1)))
    with pytest.raises(ConfigError, match="the score of touchstone-tiny moves from") as caught:
        require_parity([detector], NvJpeg(shifted(40)))
    assert "leave jpeg_decoder out" in caught.value.hint
