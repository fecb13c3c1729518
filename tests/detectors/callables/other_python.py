"""A Python of its own for a package that is none of our dependencies; torch and what else lies here
comes by a path file.
"""

import shutil
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_app.detectors.card_sections import generate_formula_image

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def other_python(folder, *needed):
    """The path of a Python in `folder` that has these packages from PyPI; skips where PyPI is out
    of reach.
    """
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(uv).is_file():
        pytest.skip("uv is not here, which makes the environment")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder / "venv")], check=True)
    own = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(own.stdout.strip()) / "zz_shared.pth").write_text(f"{site.getsitepackages()[0]}\n")
    installed = subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, "--no-deps", *needed],
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"PyPI is out of reach: {installed.stderr.strip().splitlines()[-1]}")
    return python


def python_of(folder):
    return str(folder / "venv" / "bin" / "python")


def run_code(folder, code, *words):
    """Run code by the Python in `folder`, and return its last line."""
    command = [python_of(folder), "-W", "ignore", "-c", code, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.rpartition("\n")[0].rpartition("\n")[2]


def write_image(path, size, seed):
    noise = np.random.default_rng(seed).integers(0, 128, (size[1], size[0], 3), np.uint8)
    Image.fromarray(generate_formula_image(*size) // 2 + noise).save(path)
    return str(path)
