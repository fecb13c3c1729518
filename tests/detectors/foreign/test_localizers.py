"""Localizers of other packages: any callable that gives masks, and models in the form of IMDLBenCo's registry."""

import io
import json
import math
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ray_app import load_detector
from ray_app.detectors.card_sections import formula_image
from ray_app.detectors.foreign import addition, child, process
from ray_app.detectors.foreign.addition import ForeignAddition as Wanted
from ray_app.detectors.foreign.addition import KnownDetector, add_foreign
from ray_app.errors import DetectorError

# The width of an image says what becomes of it.
MODULE = """
import os, signal
import numpy as np

def both(images):
    given = []
    for image in images:
        height, width = image.shape[:2]
        if width == 101: os.kill(os.getpid(), signal.SIGKILL)
        mask = np.linspace(0, 1, height * width).reshape(height, width)
        given.append({
            102: (mask.T, 1.0), 103: (mask * 255, 1.0), 104: (mask * np.nan, 1.0), 105: (mask[None], 1.0),
            106: (np.zeros((1025, 1025)), 1.0), 107: 1.0, 108: (mask, float("nan")), 109: mask * 0.75,
        }.get(width, (mask, width / 100)))
    return given

def alone(images): return [np.full((64, 64), 0.75, np.float16) for image in images]
def turned(images): return [np.zeros((image.shape[1], image.shape[0])) for image in images]
def bright(images): return [(np.full(image.shape[:2], 200, np.uint8), 0.5) for image in images]
"""
# As much of IMDLBenCo as our program asks of it, in its form.
BENCO = {
    "__init__.py": """
class Registry:
    def __init__(self): self.module_dict = {}
    def get(self, name): return self.module_dict[name]
    def register_module(self): return lambda kind: self.module_dict.setdefault(kind.__name__, kind)
MODELS, POSTFUNCS = Registry(), Registry()
""",
    "datasets/__init__.py": "",
    "datasets/abstract_dataset.py": """
import numpy as np, torch
class AbstractDataset(torch.utils.data.Dataset):
    def __init__(self, path, is_padding=False, is_resizing=False, output_size=(1024, 1024), common_transforms=None, edge_width=None,
                 img_loader=None, post_funcs=None):
        assert is_padding != is_resizing
        (self.tp_path, self.gt_path), self.is_padding, self.output_size = self._init_dataset_path(path), is_padding, output_size
        self.edge_width, self.img_loader, self.post_funcs = edge_width, img_loader, post_funcs
    def __getitem__(self, index):
        assert self.gt_path[index] == "Negative"
        picture = self.img_loader(self.tp_path[index])
        if self.is_padding:
            picture = picture.crop((0, 0, *self.output_size))
        else:
            picture = picture.resize(self.output_size)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        data = {"image": image, "mask": torch.zeros(1, *self.output_size), "label": 0, "name": self.tp_path[index]}
        if self.edge_width: data["edge_mask"] = data["mask"]
        if self.post_funcs: self.post_funcs(data)
        return data
""",
}
OWN = """
import torch
from IMDLBenCo import MODELS, POSTFUNCS

@MODELS.register_module()
class Tiny(torch.nn.Module):
    def __init__(self, labels: bool = False):
        super().__init__()
        self.labels, self.layer = labels, torch.nn.Conv2d(3, 1, 3, padding=1)
    def forward(self, image, mask, label, edge_mask, shift, *args, **kwargs):
        assert mask.shape == edge_mask.shape == (1, 1, *image.shape[2:]) and label.tolist() == [0]
        found = torch.sigmoid(self.layer(image) + shift)
        return {"backward_loss": found.mean(), "pred_mask": found, "pred_label": found.mean((1, 2, 3)) if self.labels else None}

@POSTFUNCS.register_module()
def tiny_post_func(data): data["shift"] = torch.tensor(0.25)
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config" / "config.yaml"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("IMDLBenCo", "own_models")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "strange.py").write_text(MODULE)
    return tmp_path


@pytest.fixture
def benco(own_place):
    """A folder with a package in IMDLBenCo's form, a module of one's own that registers a model, and its weights."""
    for name, text in BENCO.items():
        (own_place / "IMDLBenCo" / name).parent.mkdir(parents=True, exist_ok=True)
        (own_place / "IMDLBenCo" / name).write_text(text)
    (own_place / "own_models.py").write_text(OWN)
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(3, 1, 3, padding=1)
    torch.save({"model": {f"layer.{key}": value for key, value in layer.state_dict().items()}, "epoch": 3}, own_place / "tiny.pth")
    return own_place


def added(folder, function, **given):
    return add_foreign(Wanted("callable", f"strange:{function}", folder=folder, licence="own", **given)).card


def of_width(*widths):
    return [np.full((20, width, 3), 7, np.uint8) for width in widths]


def test_each_failure_costs_its_own_mask(own_place):
    card = added(own_place, "both")
    assert card.masks
    with process.ForeignProcess(card, None) as opened:
        good, *bad, unscored, alone, last = opened.score(of_width(50, 101, 102, 103, 104, 105, 106, 108, 109, 60))
        assert bad == [
            "its process died of SIGKILL",
            "its mask is 102 × 20, its image 20 × 102 (height × width)",
            "its mask has values from 0 to 255",
            "its mask has values from nan to nan",
            "its mask is 1 × 20 × 105, its image 20 × 105 (height × width)",
            "its mask is 1025 × 1025, its image 20 × 106 (height × width)",
        ]
        assert unscored == "its score is nan"
        assert np.array_equal(good.mask, np.rint(np.linspace(0, 255, 1000)).reshape(20, 50))
        assert (good.score, last.score, last.mask.shape) == (0.5, 0.6, (20, 60))
        assert alone.score == pytest.approx(math.log(3)), "the largest value of a mask alone is a probability, whatever scores are"


def test_a_row_has_its_mask_or_why_there_is_none(own_place):
    detector = load_detector(own_place / "config" / "detectors" / f"{added(own_place, 'both').name}.yaml")
    for width in (50, 60, 103, 107):
        Image.new("RGB", (width, 20), (9, 9, 9)).save(own_place / f"{width}.png")
    found = list(detector.score([own_place / f"{width}.png" for width in (50, 103, 107, 60)]))
    assert [one.status for one in found] == ["ok", "detector_failed", "detector_failed", "ok"]
    assert [[mask.shape for mask in one.masks.values()] for one in found] == [[(20, 50)], [], [], [(20, 60)]]
    assert "its mask has values from 0 to 255" in found[1].detail
    assert "it gives a mask of some images, and of others none" in found[2].detail


@pytest.mark.parametrize(("function", "said"), [("turned", "its mask is 1024 × 1024"), ("bright", "its mask has values from 200 to 200")])
def test_what_is_no_mask_is_said_when_it_is_added(own_place, function, said):
    with pytest.raises(DetectorError) as told:
        added(own_place, function)
    assert "a mask has" in told.value.hint
    assert said in told.value.message or function == "turned"


def test_a_mask_alone_is_scored_by_its_largest_value(own_place):
    card = added(own_place, "alone")
    assert card.golden[0].logit == pytest.approx(math.log(3))
    assert "largest value in its mask" in card.notes[-1]


def answer(said, numbers):
    text = json.dumps(said).encode()
    return child.ANSWER.pack(len(text), len(numbers)) + text + numbers


@pytest.mark.parametrize("shape", [(4, 6), (5, 5), (2**32 - 1, 2**32 - 1), (0, 7)])
def test_no_more_is_read_of_masks_than_they_may_have(shape):
    numbers = struct.pack("<dII", 1.0, *shape) + bytes(20)
    with pytest.raises(ValueError, match=r"no answer|reshape"):
        process._believed(io.BytesIO(answer({}, numbers)), [(5, 4)])
    most = child.ANSWER.pack(2, 16 + child.MOST_SQUARE**2 + 1)
    with pytest.raises(ValueError, match="no answer"):
        process._believed(io.BytesIO(most), [(5, 4)])
    _, (found,) = process._believed(io.BytesIO(answer({}, struct.pack("<dII", 1.0, 4, 5) + bytes(20))), [(5, 4)])
    assert (found.score, found.mask.shape) == (1.0, (4, 5))


def test_a_model_of_the_registry_is_its_own_forward(benco, monkeypatch):
    """In a child, by another interpreter; its mask is that of the square, the weights' file and the module are part of what it is."""
    python = benco / "benco-python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={benco} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    options = {"checkpoint_path": "tiny.pth", "image_size": 48, "edge_mask_width": 7}
    done = add_foreign(Wanted("imdlbenco", "own_models:Tiny", python=str(python), folder=benco, options=options, licence="own"))
    assert done.opened.identity["files"].keys() == {"tiny.pth"}
    assert len(done.opened.identity["source"]) == 64
    picture = Image.fromarray(formula_image(61, 40))
    row = load_detector(done.path).score(picture)
    expected = own_forward(benco, np.asarray(picture.resize((48, 48))))
    assert np.array_equal(next(iter(row.masks.values())), np.rint(255 * expected))
    assert next(iter(row.scores.values())) == pytest.approx(torch.logit(torch.tensor(expected.max())).item(), abs=1e-5)


def own_forward(folder, pixels):
    state = torch.load(folder / "tiny.pth")["model"]
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 255
    logits = torch.nn.functional.conv2d(image, state["layer.weight"], state["layer.bias"], padding=1)
    return torch.sigmoid(logits + 0.25)[0, 0].numpy()


def asked(target="own_models:Tiny", **options):
    return child._imdlbenco(
        {"target": target, "device": "cpu", "options": {"checkpoint_path": "tiny.pth", "edge_mask_width": 7, **options}}
    )


def test_a_filled_up_image_has_its_own_part_of_the_mask(benco, monkeypatch):
    monkeypatch.chdir(benco)
    monkeypatch.syspath_prepend(benco)
    ask, _ = asked(image_size=64, if_padding=True, labels=True)
    ((mask, score),) = ask([formula_image(61, 40)])
    filled = np.zeros((64, 64, 3), np.uint8)
    filled[:40, :61] = formula_image(61, 40)
    expected = own_forward(benco, filled)
    assert np.abs(mask.numpy() - expected[:40, :61]).max() == 0
    assert score == pytest.approx(expected.mean())
    with pytest.raises(ValueError, match="more than the 64 px"):
        ask([formula_image(65, 40)])


def test_what_a_registry_cannot_give_is_said(benco, monkeypatch):
    monkeypatch.chdir(benco)
    monkeypatch.syspath_prepend(benco)
    with pytest.raises(child.UnusableError, match="has no model Large") as told:
        asked("own_models:Large")
    assert told.value.hint == "it has Tiny"
    with pytest.raises(child.UnusableError, match="needs weights"):
        child._imdlbenco({"target": "Tiny", "device": "cpu", "options": {}})
    with pytest.raises(TypeError, match="depth"):
        asked(depth=3)


def test_what_is_known_of_its_models_can_be_read():
    from ray_app.config import config_root, read_mapping, validate

    for name, described in read_mapping(config_root() / "imdlbenco.yaml").items():
        known = validate({"source": "here", **described}, KnownDetector, where=name)
        assert known.options.keys() <= child.BENCO.keys()


def test_what_is_filled_up_says_how_large_an_image_may_be():
    for name, options, side in (("IML_ViT", {}, 1024), ("IML_ViT", {"image_size": 512}, 512), ("unknown", {"if_padding": True}, 512)):
        wanted = Wanted("imdlbenco", name, options=options, python="python")
        assert addition._described("one", wanted, addition._known(wanted))["valid_range"] == {"max_side_px": side}
