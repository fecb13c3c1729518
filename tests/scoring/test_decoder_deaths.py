"""A decoder that really dies, or never ends, inside a run: it costs one member its status, and nobody else anything."""

import os
import subprocess
import sys
import time

import pytest

from ray_app.errors import MEANING, Status
from tests.scoring.conftest import ROOT, kill_family, rows_of
from tests.scoring.spoiled import spoiled
from tests.scoring.test_run_more import save_photo

LIMIT_S = 4.0

DEADLY = """
import ctypes, time

decode = module.decode_jpeg

def dangerous(data, *rest, **named):
    if b"makes the decoder crash" in data:
        ctypes.string_at(0)
    if b"makes the decoder hang" in data:
        time.sleep(3600)
    return decode(data, *rest, **named)

module.decode_jpeg = dangerous
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_crash_and_a_hang_cost_one_member_each(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(40):
        save_photo(photos / f"{index:02}.jpg", index)
    for name, words in (("13.jpg", b"makes the decoder crash"), ("27.jpg", b"makes the decoder hang")):
        (photos / name).write_bytes((photos / name).read_bytes() + words)

    command = [sys.executable, "-m", "ray_app.cli.main", "score", str(photos), "--out", str(tmp_path / "run"),
               "--ensemble", "tiny", "--set", "block_members=8", "--set", f"cluster.decode_limit_s={LIMIT_S}"]  # fmt: skip
    environment = spoiled(tmp_path / "site", "simplejpeg", DEADLY)
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, errors = process.communicate(timeout=500)
    finally:
        kill_family(process)
    print(f"{time.monotonic() - began:.0f} s")
    assert process.returncode == 0, errors
    rows = {os.path.basename(uri): row for uri, row in rows_of(tmp_path / "run").items()}
    assert len(rows) == 40
    failed = {name: (row["status"], row["detail"]) for name, row in rows.items() if row["status"] != "ok"}
    assert failed == {
        "13.jpg": ("decoder_crashed", "the decoder process died of SIGSEGV"),
        "27.jpg": ("decode_timeout", f"longer than {LIMIT_S:g} s"),
    }
    assert all(row["verdict"] for name, row in rows.items() if name not in failed)
    assert MEANING[Status.DECODER_CRASHED] in said
