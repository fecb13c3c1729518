import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datajobs.shards import archives
from tests.make.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


def test_pack_prints_counts(tmp_path, touchstone):
    photos = archives.as_prefix(tmp_path, archives.files())
    line = f"data pack {photos} --out {tmp_path / 'out'} --as webdataset --shard-mb 1"
    ended = touchstone(line)
    assert ended.code == 0
    assert "9 of 9 files into 1 WebDataset shard" in ended.out
    assert "2 of these files are not in an image format" in ended.out
    assert "9 files in 1 shard" in ended.err
    assert touchstone(f"{line} --json").document["packed"] == 9


def test_pack_job_runs_the_command(tmp_path, capsys, monkeypatch):
    photos = archives.as_prefix(tmp_path, archives.files())
    monkeypatch.setattr(sys, "argv", ["jobs/pack.py", str(photos), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs/pack.py"), run_name="__main__")
    assert not ended.value.code
    assert "9 of 9 files into 1 Parquet shard" in capsys.readouterr().out


@pytest.mark.slow
def test_pack_after_a_kill_gives_the_same_files(tmp_path):
    files = {f"{index:05}": f"content {index}".encode() for index in range(6400)}
    photos = archives.as_prefix(tmp_path, files)

    def start(out):
        words = ["data", "pack", photos, "--out", tmp_path / out, "--shard-mb", "0.0001"]
        return subprocess.Popen(
            [sys.executable, "-m", "ray_app.cli", *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait() == 0
    first, data = start("out"), tmp_path / "out/data"
    wait_until(lambda: data.is_dir() and len(list(data.iterdir())) > 3, 60)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert 3 < len(archives.contents(tmp_path / "out")) < 100
    assert start("out").wait() == 0
    shards = archives.contents(tmp_path / "out")
    shards = {name: data for name, data in shards.items() if name.startswith("train")}
    assert shards == archives.contents(tmp_path / "whole")
