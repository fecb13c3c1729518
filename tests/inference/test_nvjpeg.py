"""JPEGs that a GPU decodes, with stand-ins for nvJPEG: which files it sees, when scores forbid it, and by what runs are known then."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ray_app.detectors import load_card, load_detector
from ray_app.ensembles import ensemble_of
from ray_app.ensembles.card import Settings
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import BatchDecoder, StageClock, make_spec
from ray_app.inference.nvjpeg import NvJpeg, made_jpegs, on_gpu, ordinary_size, require_parity
from ray_app.inference.spec import with_jpeg_decoder
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.identity import resolve, scoring_identity
from ray_app.scoring.run import layout_for
from tests.scoring.eight import small_cards


def exact(data):
    """What a core makes of a file, as torchvision gives it."""
    pixels = np.array(decode_image(bytes(data.numpy()), ImageLimits()).pixels)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def shifted(levels):
    def decode(data):
        return (exact(data).int() + levels).clamp(0, 255).to(torch.uint8)

    return decode


def smoothed(data):
    made = exact(data).int()
    return ((made + made.roll(1, 2)) // 2).to(torch.uint8)


def broken(data):
    raise RuntimeError("nvjpegDecode failed: 8")


def jpeg(mode="RGB", size=(90, 70), **options):
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def test_an_ordinary_jpeg_is_decoded():
    nvjpeg, data = NvJpeg(exact), jpeg()
    image = nvjpeg(data)
    expected = decode_image(data, ImageLimits())
    assert np.array_equal(np.asarray(image.pixels), np.asarray(expected.pixels))
    assert (image.facts.sha256, image.facts.width, image.facts.height) == (expected.facts.sha256, 90, 70)
    assert nvjpeg.counts == {"nvjpeg": 1}


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def twelve_bits():
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 4] = 12
    return bytes(data)


OTHERS = {
    "grey": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "rgb inside": jpeg(keep_rgb=True),
    "twelve bits": twelve_bits(),
    "png": png(),
    "no image": b"\xff\xd8\xff no image",
    "nothing": b"",
    "large": jpeg(size=(9000, 6000), quality=5),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_out_of_the_ordinary_never_reaches_it(kind):
    def never(data):
        raise AssertionError("native code saw it")

    assert NvJpeg(never)(OTHERS[kind]) is None


def test_what_it_cannot_decode_or_makes_another_size_of_is_left_to_the_core():
    assert NvJpeg(broken)(jpeg()) is None
    assert NvJpeg(lambda data: exact(data)[:, 1:])(jpeg()) is None


def test_torchvision_decodes_what_we_hand_it():
    """The call itself, on the device that is here."""
    data = jpeg(subsampling="4:4:4")
    image = NvJpeg(on_gpu("cpu"))(data)
    apart = np.asarray(image.pixels).astype(int) - np.asarray(decode_image(data, ImageLimits()).pixels)
    assert np.abs(apart).max() <= 2


@pytest.fixture(scope="module")
def detector():
    """Prefers no precision: what bf16 may move, a decoder may."""
    return load_detector("touchstone-tiny", precision="fp32")


def test_a_decoder_that_scores_bear_is_admitted(detector):
    require_parity([detector], NvJpeg(exact))


def test_a_decoder_that_moves_scores_is_refused_with_what_to_do(detector):
    with pytest.raises(ConfigError, match="the score of touchstone-tiny moves from") as caught:
        require_parity([detector], NvJpeg(smoothed))
    assert "leave jpeg_decoder out" in caught.value.hint


def test_a_card_in_fp32_allows_less(detector):
    strict = load_detector(load_card("touchstone-tiny").model_copy(update={"precision": "fp32"}), precision="fp32")
    require_parity([detector], NvJpeg(shifted(1)))
    with pytest.raises(ConfigError, match=r"allows \(0\.0001\)"):
        require_parity([strict], NvJpeg(shifted(1)))


def test_a_decoder_that_does_not_work_here_is_refused(detector):
    with pytest.raises(ConfigError, match="does not decode"):
        require_parity([detector], NvJpeg(broken))


def test_the_made_jpegs_are_ordinary():
    assert [ordinary_size(data) for _, data in made_jpegs()] == [(160, 120)] * 2 + [(257, 193)] * 2 + [(224, 224)] * 2 + [(203, 311)] * 2


def spec_of(name="corvi2023", **changes):
    card = next(card for card in small_cards() if card.name == name)
    ensemble = ensemble_of([card.name]).model_copy(update=changes)
    return make_spec(ensemble, cards=[card], limits=ImageLimits(), device="cuda", precision="fp32", slots=4)


def test_files_that_decoded_on_a_core_are_decoded_again_beside_the_gpu():
    spec = spec_of()
    handed = BatchDecoder(spec, StageClock(), hand_over=True).decode([(0, jpeg()), (1, jpeg()[:900]), (2, png()), (3, jpeg("L"))])
    assert [outcome.status for outcome in handed.outcomes] == [Status.OK, Status.TRUNCATED_IMAGE, Status.OK, Status.OK]
    nvjpeg, fetched = NvJpeg(shifted(3)), []
    plain = BatchDecoder(spec, StageClock()).complete(handed).pixels[0]
    beside = BatchDecoder(spec, StageClock(), beside=nvjpeg).complete(handed).pixels[0]
    fetched = [beside[slot] for slot in range(4)]
    assert nvjpeg.counts == {"nvjpeg": 1}  # the cut file never came, the others are not its own
    assert np.array_equal(fetched[0], np.clip(plain[0].astype(int) + 3, 0, 255))
    assert fetched[1] is None
    assert np.array_equal(fetched[2], plain[2])
    assert np.array_equal(fetched[3], plain[3])


def test_runs_are_known_by_it_and_others_as_before():
    spec = spec_of()
    before = scoring_identity(spec, digest=lambda card: "0")
    assert "jpeg_decoder" not in before
    after = scoring_identity(with_jpeg_decoder(spec, "nvjpeg"), digest=lambda card: "0")
    assert after == before | {"jpeg_decoder": "nvjpeg"}


def test_it_is_refused_where_nothing_is_decoded_beside_the_gpu():
    with pytest.raises(ConfigError, match="resizes every image on a core"):
        with_jpeg_decoder(spec_of("tiny-ladeda"), "nvjpeg")


def test_it_is_refused_where_a_calibration_knows_another():
    calibrated = spec_of(settings=Settings(precision={}, resize="exact", decoders=()))
    with pytest.raises(ConfigError, match="its calibration does not hold"):
        with_jpeg_decoder(calibrated, "nvjpeg")
    assert with_jpeg_decoder(calibrated, "nvjpeg", waived=True).jpeg_decoder == "nvjpeg"


def test_it_is_refused_without_a_gpu():
    config = ScoreConfig(source=("x",), detectors=("corvi2023",), jpeg_decoder="nvjpeg", device="cpu")
    spec = resolve(config).spec(gpus=0)
    assert spec.jpeg_decoder == "nvjpeg"
    with pytest.raises(ConfigError, match="decodes on a GPU, and the run has none"):
        layout_for(config, spec, 4, 0, 2**34)
