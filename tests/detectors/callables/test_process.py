"""Callables: a crash, a hang, an exception or a wrong answer costs the images that it met, and
nothing else.
"""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app import load_detector
from ray_app.cli.main import main
from ray_app.detectors.callables.addition import CallableAddition, add_callable
from ray_app.detectors.callables.process import (
    CallableProcess,
    read_identity,
    require_device,
    require_startable,
)
from ray_app.errors import DetectorError
from tests.detectors.callables.strange import added, card_path, of_width
from tests.make.cards import write_ensemble
from tests.make.forking import run_in_fork
from tests.make.networks.fill import with_part

# What a stranger might write; the width of an image says what becomes of it.
MODULE = """
import os, signal

def by_width(images):
    scores = []
    for image in images:
        width = image.shape[1]
        if width == 101: os.kill(os.getpid(), signal.SIGSEGV)
        if width == 102: signal.pause()
        if width == 103: raise ValueError("no such width\\nsecond line")
        if width == 104: scores.append(0.0)
        scores.append(float("nan") if width == 105 else width / 100)
        print("noise on stdout")
    return scores

def on_device(images, device):
    return [float(len(device))] * len(images)

class OnDevice:
    def __init__(self, device="nowhere"): self.device = device
    def __call__(self, images): return [float(len(self.device))] * len(images)

def brightness(pictures):
    return [sum(picture.convert("L").resize((1, 1)).getdata()) / 255 for picture in pictures]

def two(images):
    return [2.0] * len(images)

def nearly(images):
    return [2.0 if image.shape[1] == 9 else 0.5 for image in images]

def reaching(images):
    import socket
    socket.create_connection(("example.org", 80))

class Loaded:
    def __init__(self): self.shift = 0.5
    def __call__(self, images): return [float(image[0, 0, 0]) + self.shift for image in images]

class Small:
    max_side_px = 300
    def __call__(self, images):
        if max(images[0].shape) > 300: raise ValueError("too large")
        return [image.shape[1] / 100 for image in images]

class Weighted:
    weight_files = ("weights.pth",)
    def __init__(self):
        from their_package import SHIFT
        self.shift = SHIFT
    def __call__(self, images): return [float(image[0, 0, 0]) + self.shift for image in images]
"""


def opened(card):
    return CallableProcess(card, read_identity(card, card.folder))


def scores(process, images):
    return [one if isinstance(one, str) else one.score for one in process.score(images)]


def test_each_failure_costs_the_image_that_it_met(own_place):
    card = added(own_place, "by_width")
    with opened(card) as process:
        found = scores(process, of_width(50, 101, 60, 103, 104, 105, 70))
        assert [one for one in found if not isinstance(one, str)] == pytest.approx([0.5, 0.6, 0.7])
        assert found[1:2] + found[3:6] == [
            "its process died of SIGSEGV",
            "ValueError: no such width",
            "it returned 2 scores for 1 image",
            "its score is nan",
        ]
        before = process.pid
        assert scores(process, of_width(80)) == [0.8]
        assert process.pid == before is not None
    with opened(with_part(card, "process", limit_s=0.5)) as hasty:
        assert scores(hasty, of_width(102)) == ["its process took longer than 0.5 s"]


def test_probabilities_become_bounded_log_odds(own_place):
    card = added(own_place, "brightness", scores="probability", images="pil")
    levels = [np.full((9, 9, 3), value, np.uint8) for value in (0, 51, 255)]
    with opened(card) as process:
        dark, grey, white = scores(process, levels)
    assert grey == pytest.approx(math.log(0.2 / 0.8), abs=1e-6)
    assert (dark, white) == (pytest.approx(-36.74, abs=0.01), pytest.approx(36.74, abs=0.01))
    with opened(added(own_place, "nearly", scores="probability", name="wrong")) as process:
        assert scores(process, of_width(9)) == [
            "its score is 2, but the card states that scores are probabilities"
        ]
    with pytest.raises(DetectorError, match="its score is 2, but the card states") as told:
        added(own_place, "two", scores="probability", name="wronger")
    assert "--scores log-odds" in told.value.hint


def test_pixels_arrive_as_they_are_and_a_class_is_made_once(own_place):
    detector = load_detector(card_path(own_place, added(own_place, "Loaded").name))
    picture = Image.fromarray(np.full((31, 17, 3), 201, np.uint8))
    assert next(iter(detector.score(picture).scores.values())) == 201.5


@pytest.mark.parametrize("function", ["on_device", "OnDevice"])
def test_callable_gets_the_device_of_the_command(own_place, function):
    card = added(own_place, function)
    assert card.process.takes_device
    require_device(card, "cuda:0")
    with CallableProcess(card, read_identity(card, card.folder), "cuda:0") as process:
        assert scores(process, of_width(5)) == [len("cuda:0")]


def test_callable_without_a_device_refuses_a_chosen_gpu(own_place, tmp_path, capsys):
    card = added(own_place, "two")
    for device in ("auto", "cpu"):
        require_device(card, device)
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    ensemble = write_ensemble(tmp_path / "mine.yaml", [card.name])
    picture = str(tmp_path / "image.png")
    for command in (
        ["check", picture, "--detector", card.name, "--device", "cuda"],
        [
            "score",
            picture,
            "--detector",
            card.name,
            "--out",
            str(tmp_path / "run"),
            "--set",
            "device=cuda",
        ],
        ["serve", "--ensemble", str(ensemble), "--set", "device=cuda"],
    ):
        assert main(command) == 4
        told = capsys.readouterr().err
        assert "device cuda was chosen, but strange:two has no parameter `device`" in told
        assert "choose device cpu, or add the parameter" in told


def test_a_changed_source_is_another_detector(own_place):
    card = added(own_place, "two")
    (own_place / "strange.py").write_text(MODULE + "\n# changed\n")
    with (
        opened(card) as process,
        pytest.raises(DetectorError, match="the detector has changed: source was") as told,
    ):
        process.open()
    assert f"touchstone detectors add callable:strange:two --as {card.name}" in told.value.hint
    assert told.value.hint.endswith(
        f"--folder {own_place} --scores log-odds --pictures arrays --limit-s {card.process.limit_s:g} --licence own"
    )


def test_callable_that_cannot_start_is_refused(own_place):
    card = added(own_place, "two")
    (own_place / "strange.py").unlink()
    for change, said in (
        ({"python": "/nowhere/python"}, "cannot run /nowhere/python"),
        ({"folder": "/nowhere"}, "No such file or directory"),
        ({"python": "/bin/false"}, "ended with exit code 1"),
        ({}, "has no module strange"),
    ):
        with pytest.raises(DetectorError, match=said) as told:
            require_startable(with_part(card, "process", **change))
        assert told.value.hint


def test_callable_cannot_reach_a_host_offline(own_place, monkeypatch):
    monkeypatch.setenv("TOUCHSTONE_OFFLINE", "1")
    with pytest.raises(DetectorError, match="no network: this machine is offline"):
        added(own_place, "reaching")


def test_interpreter_and_weight_files_are_in_the_identity(own_place):
    """The interpreter has a path of modules of its own; a card is refused once the content of its
    weight files changes.
    """
    (own_place / "weights.pth").write_bytes(b"seeded")
    elsewhere = own_place / "packages"
    elsewhere.mkdir()
    (elsewhere / "their_package.py").write_text("SHIFT = 0.25")
    python = own_place / "other-python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={elsewhere} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    card = added(own_place, "Weighted", python=str(python))
    assert card.valid_range.max_side_px is None
    assert read_identity(card, card.folder)["files"] == {
        "weights.pth": hashlib.sha256(b"seeded").hexdigest()
    }
    with opened(card) as process:
        assert scores(process, of_width(9)) == [7.25]
    (own_place / "weights.pth").write_bytes(b"others")
    with (
        opened(card) as process,
        pytest.raises(DetectorError, match="the detector has changed: files was"),
    ):
        process.open()


def test_callable_with_a_largest_side_is_added_within_it(own_place):
    card = added(own_place, "Small")
    assert card.valid_range.max_side_px == 300
    assert (card.golden[0].width, card.golden[0].height, card.golden[0].logit) == (300, 300, 3.0)


def test_forked_process_starts_its_own_child(own_place):
    with opened(added(own_place, "two", name="left")) as process:
        images = [np.full((9, width, 3), 100, np.uint8) for width in (30, 40)]
        expected, pid = scores(process, images), process.pid
        in_fork = run_in_fork(lambda: (scores(process, images[::-1]), process.pid))
        assert in_fork[0] == expected[::-1]
        assert in_fork[1] != pid == process.pid
        assert scores(process, images) == expected


def test_a_child_dies_with_its_parent(own_place):
    """SIGKILL leaves the parent no chance to say so; the child sees that nobody holds the other
    end.
    """
    added(own_place, "two", name="left")
    code = f"""
import signal
from pathlib import Path
from ray_app.detectors import load_card
from ray_app.detectors.callables.process import CallableProcess
process = CallableProcess(load_card({str(card_path(own_place, "left"))!r}), None)
process.open()
print(process.pid, flush=True)
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while is_alive(child):
        assert time.monotonic() < deadline, "the child lives on"
        os.sched_yield()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_module_of_the_folder_never_replaces_an_installed_one(own_place):
    for name in ("PIL", "colorsys", "json"):
        (own_place / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
    card = added(own_place, "brightness", images="pil", scores="probability")
    with CallableProcess(card, None) as process:
        (found,) = process.score([np.full((8, 8, 3), 255, np.uint8)])
    assert found.score == pytest.approx(36.7, abs=0.1)
    with pytest.raises(DetectorError, match="the module json has no by_width") as told:
        add_callable(CallableAddition("json:by_width", folder=own_place, licence="own"))
    assert told.value.hint.startswith(
        "rename your module: Python already has a module of that name, "
    )


def test_commands_find_the_card_and_name_what_failed(own_place, monkeypatch, capsys):
    monkeypatch.chdir(own_place)
    command = "detectors add callable:strange:by_width --licence own --as strange --json"
    assert main(command.split()) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 6.4
    assert main(["detectors", "verify", "strange"]) == 0
    assert "golden      ok" in capsys.readouterr().out
    assert main(["detectors", "list", "--json"]) == 0
    entry = next(one for one in json.loads(capsys.readouterr().out) if one["name"] == "strange")
    assert (entry["weights"], entry["family"]) == ("here", "callable")
    Image.new("RGB", (103, 80), (9, 9, 9)).save("bad.png")
    Image.effect_noise((90, 80), 60).convert("RGB").save("good.png")
    main(["check", "bad.png", "good.png", "--detector", "strange", "--json"])
    found = map(json.loads, capsys.readouterr().out.splitlines())
    rows = {Path(row["uri"]).name: row for row in found}
    assert rows["bad.png"]["status"] == "detector_failed"
    assert "strange: ValueError: no such width" in rows["bad.png"]["detail"]
    assert rows["good.png"]["scores"]["strange"] == pytest.approx(0.9)
