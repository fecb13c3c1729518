"""Images of repositories: the same from a mirror and from a clone, at the list's commit, without what must not or cannot be learnt from."""

import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.cli.main import main
from ray_app.datajobs.repositories import RepositoriesConfig, candidates
from ray_app.datajobs.repositories.run import collect_repositories, index_digest
from ray_app.datasets import read_index
from ray_app.errors import ConfigError, ExitCode, StorageError
from tests.datajobs.repositories.conftest import FILES, git, picture


@pytest.fixture
def mirror(origin, tmp_path):
    """A folder with a bare mirror, its objects loose."""
    at = tmp_path / "mirrors" / "owner+name" / "repo"
    shutil.copytree(origin.folder / "work" / ".git", at)
    (at / "config").unlink()  # a snapshot that no remote is known of
    return at.parent.parent


def collected(rules, mirror, out, **more):
    return collect_repositories(RepositoriesConfig(rules=str(rules), mirror=str(mirror), out=str(out), **more))


def rows_of(out, name="index"):
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def loose(mirror, origin, path):
    blob = git(origin.bare, "rev-parse", f"{origin.commit}:{path}")
    return mirror / "owner+name" / "repo" / "objects" / blob[:2] / blob[2:]


def test_what_stays_and_what_does_not(lists, mirror, tmp_path):
    summary = collected(lists.all_three(), mirror, tmp_path / "out", refuse=lists.refused())
    rows = rows_of(tmp_path / "out")
    files = [row for row in rows if row["sheet"] is None]
    assert [row["path"] for row in files] == ["photos/a.jpg", "photos/b.JPEG", "photos/c.png", "made/x.png"]
    for row in files:  # byte for byte, of the list's commit and not of the newest
        assert (tmp_path / "out" / row["uri"]).read_bytes() == FILES[row["path"]]
        assert row["sha256"] == sha256(FILES[row["path"]]).hexdigest()
    dropped = {row["path"]: (row["reason"], row["of"]) for row in rows_of(tmp_path / "out", "dropped")}
    assert dropped == {
        "photos/d-again.jpg": ("duplicate", None),
        "photos/e-nearly.jpg": ("near_duplicate", "photos/photos/a.jpg"),
        "photos/large.jpg": ("too_large", None),
        "photos/long.jpg": ("too_long", None),
        "photos/moving.gif": ("several_frames", None),
        "photos/pointer.jpg": ("lfs_pointer", None),
        "photos/refused.jpg": ("refused", None),
        "photos/small.jpg": ("too_small", None),
        "photos/text.jpg": ("unsupported_format", None),
        "made/like-a-photo.png": ("near_duplicate", "photos/photos/b.JPEG"),
    }
    assert summary["labels"] == {"fake": 5, "real": 3}
    assert [(one["source"], one["kept"]) for one in summary["sources"]] == [("photos", 3), ("made", 1), ("sheets", 4)]
    assert summary["sources"][0]["dropped"]["too_large"] == 1
    assert summary["index_sha256"] == index_digest(pq.read_table(tmp_path / "out" / "index.parquet"))


def test_a_sheet_is_four_pictures_by_the_same_name_everywhere(lists, mirror, tmp_path):
    collected(lists.all_three(), mirror, tmp_path / "out")
    quarters = [row for row in rows_of(tmp_path / "out") if row["sheet"]]
    assert [row["quarter"] for row in quarters] == [0, 1, 2, 3]
    assert {(row["label"], row["generator"], row["graphics"]) for row in quarters} == {("fake", "Painter 1", True)}
    for row in quarters:
        data = (tmp_path / "out" / row["uri"]).read_bytes()
        assert row["sha256"] == sha256(data).hexdigest()
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture(20 + row["quarter"])))
        assert candidates.canonical_id(row) == f"{sha256(FILES['sheets/one.webp']).hexdigest()}:{row['quarter']}"


def test_a_refused_quarter_is_left_out_alone(lists, mirror, tmp_path):
    collected(lists.all_three(), mirror, tmp_path / "first")
    names = [row["sha256"] for row in rows_of(tmp_path / "first") if row["sheet"]]
    (tmp_path / "refuse").write_text(names[2])
    summary = collected(lists.all_three(), mirror, tmp_path / "second", refuse=str(tmp_path / "refuse"))
    assert [row["sha256"] for row in rows_of(tmp_path / "second") if row["sheet"]] == [*names[:2], names[3]]
    assert summary["sources"][2]["dropped"] == {"refused": 1}


def test_a_mirror_a_mirror_without_large_files_and_a_clone_give_one_hash(origin, lists, mirror, tmp_path):
    rules = lists.all_three()
    first = collected(rules, mirror, tmp_path / "a")
    loose(mirror, origin, "photos/large.jpg").unlink()
    second = collected(rules, mirror, tmp_path / "b")
    assert second["sources"][0]["dropped"]["absent"] == 1
    third = collected(rules, tmp_path / "clones", tmp_path / "c", git_host=origin.url)
    assert (tmp_path / "clones" / "owner+name" / "repo" / "HEAD").is_file()
    assert first["index_sha256"] == second["index_sha256"] == third["index_sha256"]
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b") == rows_of(tmp_path / "c")
    backwards = tmp_path / "backwards.csv"
    head, *lines = Path(rules).read_text().splitlines()
    backwards.write_text("\n".join([head, *reversed(lines)]))  # other rows of a near-duplicate stay; nothing else changes
    assert len(rows_of(tmp_path / "a")) == collected(backwards, mirror, tmp_path / "d")["images"]


def test_an_owner_s_folder_of_bare_repositories_is_a_mirror_too(origin, lists, tmp_path):
    assert collected(lists.all_three(), origin.folder, tmp_path / "out", git_host="file:///nowhere")["images"] == 9


def test_a_second_time_nothing_is_decoded_and_what_is_gone_is_written_again(lists, mirror, tmp_path, monkeypatch):
    rules, out = lists.all_three(), tmp_path / "out"
    first = collected(rules, mirror, out)
    gone, kept = (out / row["uri"] for row in rows_of(out)[:2])
    gone.unlink()
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr(candidates, "examined", lambda *_: pytest.fail("a file was examined again"))
    assert collected(rules, mirror, out)["index_sha256"] == first["index_sha256"]
    assert gone.is_file()
    assert kept.stat().st_mtime_ns == before


def test_another_list_leaves_no_file_of_the_earlier_one(lists, mirror, tmp_path):
    out = tmp_path / "out"
    collected(lists.all_three(), mirror, out)
    (out / "images" / "photos" / "mine.txt").write_text("not ours")
    collected(lists.rules({"path_rule": "^photos/[ab]"}), mirror, out)
    there = {str(path.relative_to(out)) for path in (out / "images").rglob("*") if path.is_file()}
    assert there == {row["uri"] for row in rows_of(out)} | {"images/photos/mine.txt"}


def test_a_cap_takes_the_same_files_whatever_else_there_is(lists, mirror, tmp_path):
    def taken(name, cap, rule):
        summary = collected(lists.rules({"path_rule": rule, "cap": cap}), mirror, tmp_path / name)
        return {row["path"] for row in rows_of(tmp_path / name)}, summary["sources"][0]["dropped"].get("over_cap")

    every, _ = taken("all", 9, r"^photos/[abc]\.")
    two, over = taken("two", 2, r"^photos/[abc]\.")
    assert len(every) == 3
    assert (len(two), over) == (2, 1)
    expected = sorted(every, key=lambda path: sha256(f"photos\n{path}".encode()).digest())[:2]
    assert two == set(expected)


def test_a_commit_that_is_gone_is_named_and_ends_the_build(origin, lists, mirror, tmp_path, capsys):
    gone = "12" * 20
    rules = lists.rules({"path_rule": "^photos/"}, {"path_rule": "^made/", "source": "made", "label": "fake", "commit": gone})
    for folder, host in ((mirror, []), (tmp_path / "clones", ["--git-host", origin.url])):
        command = ["collect", "--git", rules, "--mirror", str(folder), "--out", str(tmp_path / "out"), *host]
        assert main(command) == ExitCode.USAGE
        told = capsys.readouterr().err
        assert f"owner/name {gone}" in told
        assert "--allow-missing" in told
        assert not (tmp_path / "out").exists()
    assert main([*command, "--allow-missing", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [(one["repo"], one["commit"], one["sources"]) for one in summary["missing"]] == [("owner/name", gone, ["made"])]
    assert summary["labels"] == {"real": 5}


def test_a_repository_that_is_nowhere_is_missing(lists, tmp_path):
    rules = lists.rules({"path_rule": "a", "repo": "owner/other"})
    with pytest.raises(ConfigError, match="owner/other"):
        collected(rules, tmp_path / "clones", tmp_path / "out", git_host=(tmp_path / "nobody").as_uri())
    assert not list((tmp_path / "clones").rglob("*"))


def test_a_damaged_small_file_is_an_error_that_names_it(origin, lists, mirror, tmp_path):
    broken = loose(mirror, origin, "photos/b.JPEG")
    broken.chmod(0o644)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(StorageError, match=r"owner/name: photos/b\.JPEG"):
        collected(lists.all_three(), mirror, tmp_path / "out")
    broken.unlink()
    (mirror / "owner+name" / "repo" / "config").write_text("[core]\n\tbare = true\n")  # a whole clone, by its settings
    with pytest.raises(StorageError, match=r"owner/name: photos/b\.JPEG"):
        collected(lists.all_three(), mirror, tmp_path / "out")


def test_the_command_names_what_is_next_and_that_works(lists, mirror, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["data", "collect", "--git", lists.all_three(), "--mirror", str(mirror), "--out", out, "--refuse", lists.refused()]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[0] == f"collected  8 images (5 fake, 3 real) of 3 sources into {out}/images"
    assert main(lines[-1].split()[2:]) == 0
    rows = read_index(f"{out}/index")["input"].to_pylist()
    assert {(row["label"], row["generator"], row["group"]) for row in rows} == {
        ("real", "real:photos", "owner"),
        ("fake", "Painter 2", "gallery"),
        ("fake", "Painter 1", "owner"),
    }


@pytest.mark.parametrize(("name", "content"), [("run.json", "{}"), ("collect.json", '{"format": 1, "form": "files", "folder": "images"}')])
def test_a_directory_of_another_command_stays_as_it_is(lists, mirror, tmp_path, capsys, name, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(content)
    assert main(["data", "collect", "--git", lists.all_three(), "--mirror", str(mirror), "--out", str(out)]) == ExitCode.USAGE
    assert str(out) in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, content)]


@pytest.mark.parametrize(
    "words", [["urls.csv", "--git", "x"], ["--git", "x", "--limit", "3"], ["urls.csv", "--mirror", "m"], ["urls.csv", "--allow-missing"]]
)
def test_lists_of_urls_and_of_repositories_are_not_mixed(words, tmp_path):
    assert main(["data", "collect", *words, "--out", str(tmp_path / "out")]) == ExitCode.USAGE
