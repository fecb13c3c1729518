"""examples/imdlbenco_adapter.py and IMDLBenCo's own test script draw equal masks. Builds an
environment; needs PyPI.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_app import load_detector
from ray_app.detectors.callables.addition import CallableAddition, add_callable
from tests.detectors.callables.other_python import (
    EXAMPLES,
    other_python,
    python_of,
    run_code,
    write_image,
)

pytestmark = pytest.mark.slow
NEEDED = ("imdlbenco==0.1.45", "albumentations==1.3.0", "qudida", "opencv-python-headless", "fvcore", "iopath", "yacs", "termcolor",
          "portalocker", "tabulate", "grad-cam", "ttach", "appdirs", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver",
          "pyparsing")  # fmt: skip
# Seeded weights as its training script keeps them, its normalisations fitted to noise; the work is
# the published network's own.
SEED = """
import argparse, sys, torch
from IMDLBenCo import MODELS
name, side, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
torch.manual_seed(sum(name.encode()))
model = MODELS.get(name)(**options).train()
with torch.no_grad():
    for _ in range(2):
        noise, nothing = torch.randn(2, 3, side, side), torch.zeros(2, 1, side, side)
        model(image=noise, mask=nothing, edge_mask=nothing, label=torch.zeros(2))
    for parameter in model.parameters():
        parameter += parameter.std(unbiased=False) * 0.2 * torch.randn_like(parameter)
torch.save({"model": model.state_dict(), "epoch": 0, "args": argparse.Namespace(model=name)}, f"{name}.pth")
"""
# What its script to save masks does: files by its dataset, through its loop; beside the pictures
# that this writes, masks as they are.
SAVE = """
import json, sys, types, numpy, torch
from IMDLBenCo import MODELS
from IMDLBenCo.datasets import JsonDataset
from IMDLBenCo.training_scripts.tester.tester import inference_and_save_one_epoch
name, side, pads, options, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "pad", eval(sys.argv[4]), sys.argv[5:]
json.dump([[path, "Negative"] for path in paths], open("images.json", "w"))
data = JsonDataset("images.json", is_padding=pads, is_resizing=not pads, output_size=(side, side), edge_width=7)
model, raw = MODELS.get(name)(**options), []
model.load_state_dict(torch.load(f"{name}.pth", weights_only=False)["model"])
model.register_forward_hook(lambda model, given, output: raw.append(output["pred_mask"][0, 0].numpy()))
wanted = types.SimpleNamespace(no_model_eval=False, if_padding=pads, if_resizing=not pads, output_dir="saved", distributed=False)
inference_and_save_one_epoch(model, torch.utils.data.DataLoader(data, batch_size=1), torch.device("cpu"), args=wanted)
numpy.savez("raw.npz", *raw)
"""
# Which need no other download: the sides of their squares, and their own arguments. PSCC_Net labels
# images; Mesorch does not.
MODELS = {"Mesorch": (512, {}), "PSCC_Net": (256, {"pretrain_path": ""})}


@pytest.fixture(scope="module")
def benco(tmp_path_factory):
    """A folder with a Python that has IMDLBenCo."""
    folder = tmp_path_factory.mktemp("benco")
    other_python(folder, *NEEDED)
    return folder


def adapter_with(constants):
    """Return the example with other constants, as a user edits a copy."""
    text = (EXAMPLES / "imdlbenco_adapter.py").read_text(encoding="utf-8")
    for name, value in constants.items():
        text, count = re.subn(
            rf"^({name}(: [^=]+)?) = .*$",
            lambda found, to=value: f"{found[1]} = {to!r}",
            text,
            flags=re.MULTILINE,
        )
        assert count == 1
    return text


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "pads"), [("Mesorch", False), ("Mesorch", True), ("PSCC_Net", False)]
)
def test_masks_equal_those_of_its_own_script(benco, tmp_path, same_last_bits, name, pads):
    side, options = MODELS[name]
    sizes = [(301, 227), (512, 384)] + [(700, 640)] * (not pads)
    paths = [write_image(tmp_path / f"{n}.png", size, n) for n, size in enumerate(sizes)]
    run_code(benco, SEED, name, str(side), repr(options))
    run_code(benco, SAVE, name, str(side), "pad" if pads else "resize", repr(options), *paths)
    module = f"{name.lower()}_{'pads' if pads else 'resizes'}"
    constants = {"NAME": name, "CHECKPOINT": f"{name}.pth", "ARGUMENTS": options}
    constants |= {"IMAGE_SIZE": side, "PADS": pads, "EDGE_MASK_WIDTH": 7}
    (benco / f"{module}.py").write_text(adapter_with(constants))
    wanted = CallableAddition(
        f"{module}:Detector", python=python_of(benco), folder=benco, name=module.replace("_", "-"), scores="probability",
        images="pil", licence="own", limit_s=300,
    )  # fmt: skip
    added = add_callable(wanted)
    rows, raw = list(load_detector(added.path).score(paths)), np.load(benco / "raw.npz")
    labels = (
        json.loads((benco / "saved" / "pred_label_combined.json").read_text())
        if name == "PSCC_Net"
        else {}
    )
    for path, row, theirs in zip(paths, rows, raw.values(), strict=True):
        (ours,), (score,) = row.masks.values(), row.scores.values()
        image, file = Image.open(path), Path(path).name
        theirs = theirs[: image.height, : image.width] if pads else theirs
        assert np.array_equal(ours, np.rint(255 * theirs))
        assert np.ptp(ours) > 3, "flat masks would prove nothing"
        saved = np.asarray(Image.open(benco / "saved" / "pred" / file), np.int16)
        # If a mask is made smaller, ours is averaged as well.
        if image.width > side or pads:
            stretched = Image.fromarray(ours).resize(image.size, Image.Resampling.BILINEAR)
            assert np.abs(saved - np.asarray(stretched)).max() <= 2
        expected = torch.logit(torch.tensor(labels.get(file, float(theirs.max())))).item()
        assert score == pytest.approx(expected, abs=1e-4)
    assert added.opened.identity["files"].keys() == {f"{name}.pth"}
