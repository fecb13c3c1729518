"""A decoder that really dies, or never ends, inside a run: it costs one member its status, and
nobody else anything.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.make.archives import write_photo
from tests.make.runs import ROOT, rows_of, run_score
from tests.make.waiting import kill_family

LIMIT_S = 4.0

# A `sitecustomize`, which Python imports whenever it starts: in the driver, in workers and in their
# decoder children.
DEADLY = """
import ctypes, sys, time
from importlib.machinery import PathFinder

def spoil(module):
    decode = module.decode_jpeg

    def dangerous(data, *rest, **named):
        if b"makes the decoder crash" in data:
            ctypes.string_at(0)
        if b"makes the decoder hang" in data:
            time.sleep(3600)
        return decode(data, *rest, **named)

    module.decode_jpeg = dangerous

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "simplejpeg":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), spoil(module))
        return spec

sys.meta_path.insert(0, Finder())
"""


def make_deadly_photos(tmp_path, count, *, crash, hang):
    """Write photographs, and return their folder and the environment in which two of them kill the
    decoder.
    """
    photos, site = tmp_path / "photos", tmp_path / "site"
    photos.mkdir()
    for index in range(count):
        write_photo(photos / f"{index:02}.jpg", index)
    for name, words in ((crash, b"makes the decoder crash"), (hang, b"makes the decoder hang")):
        (photos / name).write_bytes((photos / name).read_bytes() + words)
    site.mkdir()
    (site / "sitecustomize.py").write_text(DEADLY)
    return photos, {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_crash_and_hang_of_a_decoder_cost_one_member_each(tmp_path):
    photos, environment = make_deadly_photos(tmp_path, 16, crash="05.jpg", hang="11.jpg")
    limit = f"cluster.decode_limit_s={LIMIT_S}"
    words = ["--ensemble", "tiny", "--set", "block_members=8", "--set", limit]
    out = ["--out", str(tmp_path / "run")]
    process = run_score(str(photos), *out, *words, environment=environment)
    try:
        _, errors = process.communicate(timeout=250)
    finally:
        kill_family(process)
    assert process.returncode == 0, errors
    rows = {os.path.basename(uri): row for uri, row in rows_of(tmp_path / "run").items()}
    assert len(rows) == 16
    bad = {name: row for name, row in rows.items() if row["status"] != "ok"}
    assert {name: (row["status"], row["detail"]) for name, row in bad.items()} == {
        "05.jpg": ("decoder_crashed", "the decoder process died of SIGSEGV"),
        "11.jpg": ("decode_timeout", f"longer than {LIMIT_S:g} s"),
    }
    assert all(row["verdict"] for name, row in rows.items() if name not in bad)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_plan_survives_a_crash_and_a_hang(tmp_path):
    photos, environment = make_deadly_photos(tmp_path, 8, crash="03.jpg", hang="05.jpg")
    command = [sys.executable, "-m", "ray_app.cli", "plan", str(photos), "--ensemble", "tiny", "--json",
               "--set", f"cluster.decode_limit_s={LIMIT_S}"]  # fmt: skip
    environment = os.environ | environment
    planned = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    statuses = json.loads(planned.stdout)["probe"]["statuses"]
    assert statuses == {"ok": 6, "decoder_crashed": 1, "decode_timeout": 1}
