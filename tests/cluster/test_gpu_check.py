"""The setup command that refuses a node whose GPU is of no use, on buses and drivers that are
written down here.
"""

import subprocess
import sys

import pytest
import torch

from ray_app.cluster import gpu_check

OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.90.07  Fri May 31 09:35:42 UTC 2024\nGCC version:  gcc version 12.2.0\n"
NEW = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"
HEAD = f"this node has an NVIDIA GPU that torch {torch.__version__} cannot use: "


@pytest.fixture
def node(tmp_path):
    """What a node shows of itself, `problem` what is said of it."""

    class Node:
        pci, driver, device = tmp_path / "pci", tmp_path / "version", tmp_path / "nvidiactl"

        def add(self, name, vendor, kind):
            (self.pci / name).mkdir(parents=True)
            (self.pci / name / "vendor").write_text(f"{vendor}\n")
            (self.pci / name / "class").write_text(f"{kind}\n")

        def problem(self):
            return gpu_check.gpu_problem(self.pci, self.driver, self.device)

    return Node()


def test_node_without_a_gpu_or_with_a_usable_one_is_let_in(node, monkeypatch):
    assert node.problem() is None
    node.add("0000:00:05.0", "0x1d0f", "0x030000")
    node.add("0000:00:06.0", "0x10de", "0x068000")  # a switch between GPUs
    assert node.problem() is None
    command = "import sys; from ray_app.cluster import gpu_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], timeout=100).returncode == 0
    node.add("0000:00:1e.0", "0x10de", "0x030200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert node.problem() is None


def test_unusable_gpu_is_reported_with_reason_and_fix(node, monkeypatch):
    node.add("0000:00:1e.0", "0x10de", "0x030200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    said = [node.problem()]
    for version in (OLD, NEW):
        node.driver.write_text(version)
        said.append(node.problem())
    node.device.touch()
    said.append(node.problem())
    monkeypatch.setattr(torch.version, "cuda", None)
    said.append(node.problem())
    parts = (
        "no NVIDIA driver is loaded; name another ImageId",
        "its CUDA 13.2 needs driver 580 or later, and the driver is 550.90.07; name another ImageId",
        "the host needs the NVIDIA container toolkit",
        "nvidia-smi",
        "built without CUDA; install it from PyPI",
    )
    for line, part in zip(said, parts, strict=True):
        assert line.startswith(HEAD)
        assert part in line
        assert "\n" not in line
