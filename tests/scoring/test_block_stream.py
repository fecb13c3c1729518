"""A run whose first listing goes on: what ends the listing ends the run, resumably."""

import os
import signal

import pytest

from ray_app.archives import read_complete, walk
from ray_app.archives.listing import ListingProcess
from ray_app.errors import RESUMABLE, ClusterError, ConfigError, ExitCode, StorageError
from ray_app.runs import RunDirectory, verify_run
from ray_app.scoring import ScoreConfig
from ray_app.scoring.backlog import find_work, is_complete
from ray_app.scoring.run import score_archive
from ray_app.storage import RetryPolicy, Store, key_prefixes
from ray_app.storage import s3 as requests
from tests.make.images import encoded, photo
from tests.make.runs import score_here
from tests.make.stages import without_ray


@pytest.fixture
def bucket(s3, monkeypatch):
    """Sixty images in a flat prefix, listed ten to a page and twenty to a portion."""
    monkeypatch.setattr(walk, "FIRST_STEP", 20)
    monkeypatch.setattr(requests, "MAX_LISTED", 10)
    flat = Store.open(s3.bucket("arriving") + "/flat")
    for number in range(60):
        flat.write(f"{number:03}.png", encoded(photo(16, 16, number), "PNG"))
    return flat.url


def test_failing_listing_is_scored_so_far_and_resumes(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(key_prefixes, "PATIENCE", RetryPolicy(attempts=1))
    files = key_prefixes.PrefixReader._iter_files

    def failing(reader):
        for info in files(reader):
            if info.uri.endswith("045.png"):
                raise ConnectionResetError("the store is gone")
            yield info

    with monkeypatch.context() as patch:
        patch.setattr(key_prefixes.PrefixReader, "_iter_files", failing)
        with pytest.raises(StorageError, match="cannot list") as caught:
            score_here(tmp_path / "run", bucket)
    assert RESUMABLE in getattr(caught.value, "__notes__", [])
    assert "the files listed so far are scored first" in capsys.readouterr().err
    run = RunDirectory.open(str(tmp_path / "run"))
    work = find_work(run)
    assert 20 <= work.members < 60
    assert not work.pending
    with pytest.raises(ConfigError, match="not all files have been scored yet"):
        score_here(tmp_path / "run", bucket, rescore=("corrupt_image",))
    first = run.store.read("manifest/0/00000/blocks.parquet")
    finished, rows = score_here(tmp_path / "run", bucket)
    assert len(rows) == 60 == finished.summary["members"]
    assert run.store.read("manifest/0/00000/blocks.parquet") == first
    assert read_complete(run.store, 0).portions >= 2
    assert is_complete(run)
    assert finished.summary["listing"] == 0
    again, _ = score_here(tmp_path / "run", bucket)
    assert again.summary["session"]["rows"] == 0


class KilledListing(ListingProcess):
    """A listing process that dies at once, as the system's killer of processes would have it."""

    def __enter__(self):
        entered = super().__enter__()
        os.kill(self.pid, signal.SIGKILL)
        return entered


def test_dead_listing_process_ends_the_run_which_resumes(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(encoded(photo(16, 16, number), "PNG"))
    source, out = (str(folder),), str(tmp_path / "run")
    config = ScoreConfig(source=source, out=out, ensemble="tiny", thumbnails=False)
    with without_ray():
        with monkeypatch.context() as patch:
            patch.setattr("ray_app.scoring.run.ListingProcess", KilledListing)
            message = "lists the archive ended with code -9"
            with pytest.raises(ClusterError, match=message) as caught:
                score_archive(config)
        assert caught.value.exit_code is ExitCode.CLUSTER
        assert RESUMABLE in caught.value.__notes__
        assert score_archive(config).summary["members"] == 5
    assert verify_run(RunDirectory.open(config.out)).current == 5
