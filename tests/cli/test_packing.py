import json
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app.cli.main import main
from tests.datajobs.shards import archives
from tests.scoring.conftest import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photos(tmp_path):
    return archives.as_prefix(tmp_path, archives.files())


def test_pack_says_what_it_did(photos, tmp_path, capsys):
    assert (
        main(
            [
                "data",
                "pack",
                str(photos),
                "--out",
                str(tmp_path / "out"),
                "--as",
                "webdataset",
                "--shard-mb",
                "1",
            ]
        )
        == 0
    )
    said = capsys.readouterr()
    assert "9 of 9 files into 1 WebDataset shard" in said.out
    assert "2 of these are in no image format" in said.out
    assert "9 files in 1 shard" in said.err
    assert (
        main(
            [
                "data",
                "pack",
                str(photos),
                "--out",
                str(tmp_path / "out"),
                "--as",
                "webdataset",
                "--shard-mb",
                "1",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["packed"] == 9


def test_the_job_is_the_command(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/pack.py", str(photos), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs/pack.py"), run_name="__main__")
    assert not ended.value.code
    assert "9 of 9 files into 1 Parquet shard" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_files(tmp_path):
    photos = archives.as_prefix(
        tmp_path, {f"{index:05}": f"content {index}".encode() for index in range(6400)}
    )

    def start(out):
        command = [
            sys.executable,
            "-m",
            "ray_app.cli",
            "data",
            "pack",
            photos,
            "--out",
            tmp_path / out,
            "--shard-mb",
            "0.0001",
        ]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start("whole").wait() == 0
    first, data = start("out"), tmp_path / "out/data"
    wait_until(lambda: data.is_dir() and len(list(data.iterdir())) > 3, 60)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert 3 < len(archives.contents(tmp_path / "out")) < 100
    assert start("out").wait() == 0
    assert {
        name: data
        for name, data in archives.contents(tmp_path / "out").items()
        if name.startswith("train")
    } == archives.contents(tmp_path / "whole")
