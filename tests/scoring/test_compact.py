"""A compacted run has the current rows of the old one in few files, and continues."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.archives import read_blocks, read_ids
from ray_app.cli.main import main
from ray_app.errors import ConfigError, ExitCode, Status
from ray_app.runs import (
    CurrentRows,
    RunDirectory,
    current_rows,
    feature_rows,
    verify_run,
    write_features,
)
from ray_app.runs.directory import add_defaults
from ray_app.scoring.compact import compact_run
from tests.make.small_run import (
    FACTS,
    NAME,
    begun,
    finish,
    in_small_files,
    relist,
    retried,
    score_blocks,
    vectors_for,
    write_files,
)

NAMES = [f"{number:02}.jpg" for number in range(30)]


def fails(name):
    return Status.SOURCE_THROTTLED if name in ("03.jpg", "17.jpg") else None


def keep_features(run, manifest):
    blocks = read_blocks(run.store, manifest)
    for ref, ids in zip(blocks, read_ids(run.store, blocks), strict=True):
        rows = feature_rows(ids, vectors_for(ids, manifest), NAME, FACTS)
        write_features(run, manifest, ref.block, NAME, rows)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of four manifests: files came, changed, and vanished, and two were retried."""
    in_small_files(monkeypatch)
    run = begun(tmp_path, NAMES, fails=fails, masks=True)
    keep_features(run, 0)
    finish(run)
    write_files(tmp_path / "archive", ["05.jpg", "new.jpg"], content="changed")
    (tmp_path / "archive" / "29.jpg").unlink()
    relist(run, tmp_path / "archive")
    score_blocks(run, 1, attempt=2, masks=True)
    keep_features(run, 1)
    finish(run)
    retried(run, 3, Status.SOURCE_THROTTLED, masks=True)
    keep_features(run, 2)
    write_files(tmp_path / "archive", [f"more-{number}.jpg" for number in range(9)])
    relist(run, tmp_path / "archive")
    score_blocks(run, 3, attempt=4, masks=True, hashed=True)
    keep_features(run, 3)
    finish(run)
    assert verify_run(run).manifests == 4
    return run


def by_uri(rows):
    """Rows by file. A column that only some files have may be missing or null."""
    named = {row.pop("uri"): row for row in rows}
    return {
        uri: {name: value for name, value in row.items() if value is not None}
        for uri, row in named.items()
    }


def vectors_in(run):
    """The vectors of current members."""
    rows, found = CurrentRows.read(run), {}
    for path in sorted((run.store.local_path("features")).rglob("*.parquet")):
        if int(path.parent.name) > rows.last:
            continue
        table = pq.read_table(path)
        current = table.filter(pa.array(rows.select(table, int(path.parent.name))))
        found |= {row["image_id"]: row["vector"] for row in current.to_pylist()}
    return found


def check_compacted(run, out):
    before = by_uri(current_rows(run))
    files = {path: path.read_bytes() for path in run.store.local_path("").rglob("*.parquet")}
    summary = compact_run(run.store.url, out)
    new = RunDirectory.open(out)
    assert {path: path.read_bytes() for path in files} == files, "the old run stays as it was"
    assert by_uri(current_rows(new)) == before
    assert (summary["members"], summary["listing"]) == (len(before), 0)
    found = verify_run(new)
    assert (found.manifests, found.members, found.current) == (1, len(before), len(before))
    masks = [sorted(CurrentRows.read(one).masks(), key=str) for one in (run, new)]
    assert masks[0] == masks[1]
    vectors = [vectors_in(one) for one in (run, new)]
    assert vectors[0].keys() == vectors[1].keys()
    assert all(np.array_equal(vectors[0][key], vectors[1][key]) for key in vectors[0])
    return new


def test_compacted_run_has_the_current_rows_and_continues(run, tmp_path, monkeypatch):
    monkeypatch.undo()
    new = check_compacted(run, str(tmp_path / "new"))
    assert len(run.published()) > len(new.published()) == 1
    assert relist(new, tmp_path / "archive") is None, "nothing is new"
    write_files(tmp_path / "archive", ["last.jpg"])
    info = relist(new, tmp_path / "archive")
    assert (info.manifest, info.members, info.vanished) == (1, 1, 0)
    score_blocks(new, 1, attempt=5)
    finish(new)
    assert verify_run(new).current == 40


def test_run_of_0_24_with_merged_files_is_compacted(run, tmp_path):
    """Versions 0.20 to 0.24 merged files of several manifests, and did not write a layout."""
    files = [file for file in run.published() if file.manifest < 2]
    tables = [pq.read_table(run.store.local_path(file.path)) for file in files]
    for file in run.published():
        run.store.delete(file.path)
    for folder in ("manifest/2", "manifest/3"):
        shutil.rmtree(run.store.local_path(folder))
    for name in ("summaries/00002.json", "summaries/00003.json"):
        run.store.delete(name)
    run.write_json("summary.json", run.read_json("summaries/00001.json"))
    described = run.describe()
    del described["layout"]
    run.write_json("run.json", described)
    merged = f"scores/00000-00000000--00001-{files[-1].last:08d}.parquet"
    pq.write_table(pa.concat_tables(tables), run.store.local_path(merged))
    assert [file.path for file in run.published()] == [merged]
    assert verify_run(run).manifests == 2
    check_compacted(run, str(tmp_path / "new"))


@pytest.fixture
def interrupt_copy(run, tmp_path, monkeypatch):
    """A function that begins a copy of the run, and is interrupted before the summary."""

    def interrupt(out):
        with monkeypatch.context() as patch:
            patch.setattr("ray_app.scoring.compact.finish_copy", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                compact_run(run.store.url, str(out))
        return RunDirectory.open(str(out))

    return interrupt


def test_interrupted_copy_is_made_again(run, tmp_path, interrupt_copy, capsys):
    old, new = run.store.url, str(tmp_path / "new")
    interrupt_copy(new)
    assert main(["runs", "compact", old, new]) == ExitCode.DONE
    assert by_uri(current_rows(RunDirectory.open(new))) == by_uri(current_rows(run))
    assert verify_run(RunDirectory.open(new)).current == 39
    assert RunDirectory.open(new).describe() == add_missing_defaults(run.describe())
    assert main(["runs", "compact", old, new]) == ExitCode.USAGE
    assert "contains a run" in capsys.readouterr().err


def add_missing_defaults(run_info):
    return run_info | {"identity": add_defaults(run_info["identity"])}


def test_interrupted_copy_belongs_to_its_run_alone(run, tmp_path, interrupt_copy):
    new, other = interrupt_copy(tmp_path / "new"), str(tmp_path / "other")
    shutil.copytree(run.store.url, other)
    with pytest.raises(ConfigError, match=f"new contains an unfinished copy of {run.store.url}"):
        compact_run(other, new.store.url)
    for check in (new.check_writable, new.describe_finished):
        with pytest.raises(ConfigError, match=f"the copy of {run.store.url} is not finished"):
            check()


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compact_refuses_an_unfinished_run(run, tmp_path, capsys):
    new = begun(tmp_path / "theirs", NAMES, blocks=[0, 2])
    before = files_in(tmp_path / "theirs")
    assert main(["runs", "compact", run.store.url, new.store.url]) == ExitCode.USAGE
    assert f"{new.store.url} contains a run that is not finished" in capsys.readouterr().err
    assert files_in(tmp_path / "theirs") == before


def test_compact_keeps_folders_of_others(run, tmp_path, capsys):
    write_files(tmp_path / "new" / "masks", ["mine.png"])
    before = files_in(tmp_path / "new")
    assert main(["runs", "compact", run.store.url, str(tmp_path / "new")]) == ExitCode.USAGE
    assert "new contains files in masks, but not a run" in capsys.readouterr().err
    assert files_in(tmp_path / "new") == before
