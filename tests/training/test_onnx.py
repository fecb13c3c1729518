"""ONNX files that onnxruntime reads for any number of images, and networks that are refused rather than exported wrongly."""

import copy
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ray_app.detectors import load_card, load_detector
from ray_app.errors import DetectorError
from ray_app.storage import Store
from ray_app.training.export import export
from ray_app.training.weight_files import OPSET, TOLERANCE, export_onnx, onnx_parity
from tests.training.made import made, picture
from tests.training.small_recipes import SIGLIP, SWIN, VIT

# As shallow as each family may be, since every layer is traced: a shifted window is in the second of swin's layers.
SHALLOW = {
    "vit": (VIT, {"depth": 1}),
    "swin": (SWIN, {"depths": [2, 1]}),
    "siglip": (SIGLIP, {"vision_config": SIGLIP["architecture"]["arguments"]["vision_config"] | {"num_hidden_layers": 1}}),
}


def shallow(kind):
    card, fewer = SHALLOW[kind]
    architecture = card["architecture"]
    return made(kind, card=card | {"architecture": architecture | {"arguments": architecture["arguments"] | fewer}})


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_any_number_of_images_gives_the_networks_logits(given, path):
    assert onnx_parity(given.network, given.card, path) <= TOLERANCE
    for count in (1, 2, 7):
        pixels = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected = given.network(pixels).numpy()
        np.testing.assert_allclose(session_of(path).run(["logits"], {"pixels": pixels.numpy()})[0], expected, atol=1e-4)
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import}[""] == OPSET


def test_a_recipe_that_asks_gets_the_file_beside_the_card(tmp_path):
    given = made("residual", export={"onnx": True})
    card = export(Store.open(str(tmp_path)), *given)
    path = tmp_path / "model.onnx"
    assert_any_number_of_images_gives_the_networks_logits(given, path)
    assert [file.name for file in tmp_path.glob("*.onnx*")] == ["model.onnx"], "its weights are inside"
    told = session_of(path).get_modelmeta().custom_metadata_map
    assert told["touchstone.card"] == card.name
    assert json.loads(told["touchstone.preprocessing"]) == card.preprocessing.model_dump(mode="json")
    detector = load_detector(tmp_path / "card.yaml", precision="fp32")
    pixels = detector.prepare(picture())[None]
    logits = session_of(path).run(["logits"], {"pixels": detector.normalise(torch.from_numpy(pixels)).contiguous().numpy()})[0]
    np.testing.assert_allclose(logits[:, 0] * card.output.sign, detector.score(pixels), atol=1e-4)
    other = copy.deepcopy(given.network)
    other.head.bias.data += 0.01
    with pytest.raises(DetectorError, match=r"differ by 0\.01"):
        onnx_parity(other, given.card, path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHALLOW)
def test_any_number_of_images_gives_the_logits_of_every_family(kind, tmp_path):
    given = shallow(kind)
    export_onnx(given.network, given.card, tmp_path / "model.onnx")
    assert_any_number_of_images_gives_the_networks_logits(given, tmp_path / "model.onnx")


def test_a_network_that_keeps_sizes_is_refused(tmp_path):
    card = load_card("corvi2023")
    with pytest.raises(DetectorError, match="keeps the size of every image"):
        export_onnx(torch.nn.Identity(), card, tmp_path / "model.onnx")


class Pairs(torch.nn.Module):
    """Of two images and no other number, as torch sees when it traces."""

    def forward(self, pixels):
        return (pixels + torch.zeros(2, 1, 1, 1)).mean((2, 3))


def test_a_network_for_one_size_of_batch_only_is_refused(tmp_path):
    with pytest.raises(DetectorError, match=r"one size of batch only|cannot export"):
        export_onnx(Pairs(), made("residual").card, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_stops_the_export_before_anything_is_written(tmp_path):
    with pytest.raises(DetectorError, match="not exported to ONNX: it gives a mask") as told:
        export(Store.open(str(tmp_path)), *made("maskclip", export={"onnx": True}))
    assert told.value.hint == "export.onnx: false"
    assert not list(tmp_path.iterdir())
