"""The script that gathered the default's pictures: those of the list's commit, byte for byte,
without what no training may use.
"""

import csv
import json
import subprocess
import sys
from collections import defaultdict
from hashlib import sha256

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.errors import ConfigError
from tests.make.images import encoded
from tools.default_ensemble.gather_photographs import HELD_OUT, read_rules


def picture(seed, size=(256, 256), **settings):
    """A JPEG of soft blobs of colour, other ones for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return encoded(
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), "JPEG", **settings
    )


FILES = {
    "photos/a.jpg": picture(1, quality=92),
    "photos/d-again.jpg": picture(1, quality=92),
    "photos/e-nearly.jpg": picture(1, quality=60),
    "photos/refused.jpg": picture(2),
    "photos/small.jpg": picture(3, (255, 300)),
    "photos/text.jpg": b"404: not found",
    "photos/thumbs/a.jpg": picture(4),
    "made/x.jpg": picture(5, (512, 512)),
}


def git(folder, *words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", "-C", folder, *identity, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def listed(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file,
            [
                "repo",
                "commit",
                "path_rule",
                "label",
                "source",
                "generator_or_camera",
                "family",
                "cap",
                "split",
            ],
            restval="",
        )
        writer.writeheader()
        writer.writerows(
            {"repo": "owner/name", "commit": "12" * 20, "label": "real", "source": "photos"} | row
            for row in rows
        )
    return str(path)


def committed(folder, files):
    """Commit the files, then another first one, and clone all to mirrors; the first commit."""
    work = folder / "work"
    for name, data in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    git(work, "init", "--quiet")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=pictures")
    commit = git(work, "rev-parse", "HEAD")
    (work / next(iter(files))).write_bytes(b"another one")
    git(work, "commit", "--quiet", "--all", "--message=another one")
    mirror = folder / "mirrors/owner+name/repo"
    git(folder, "clone", "--quiet", "--bare", str(work), str(mirror))
    return commit


def gather(folder):
    """What the command prints for sources.csv in the folder."""
    command = [sys.executable, "-m", "tools.default_ensemble.gather_photographs"]
    command += [str(folder / "sources.csv"), "--mirror", str(folder / "mirrors")]
    command += ["--out", str(folder / "out"), "--refuse", str(folder / "refused.sha256")]
    (folder / "refused.sha256").write_text(sha256(FILES["photos/refused.jpg"]).hexdigest())
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_images_of_the_lists_commit_are_gathered_and_what_is_left_out_has_its_reason(tmp_path):
    out, commit = tmp_path / "out", committed(tmp_path, FILES)
    listed(
        tmp_path / "sources.csv",
        {"commit": commit, "path_rule": r"^photos/ NOT thumbs"},
        {
            "commit": commit,
            "path_rule": "^made/",
            "label": "grid2x2",
            "source": "made",
            "generator_or_camera": "Painter 2",
        },
    )
    summary = gather(tmp_path)
    rows = pq.read_table(out / "index.parquet").to_pylist()
    assert [(row["path"], row["label"], row["generator"], row["quarter"]) for row in rows] == [
        ("photos/a.jpg", "real", "real:photos", None), *(("made/x.jpg", "fake", "Painter 2", quarter) for quarter in range(4)),
    ]  # fmt: skip
    assert {path.name for path in out.glob("images/*/*")} == {
        row["uri"].rpartition("/")[2] for row in rows
    }
    assert all(sha256((out / row["uri"]).read_bytes()).hexdigest() == row["sha256"] for row in rows)
    assert {
        row["path"]: row["reason"] for row in pq.read_table(out / "dropped.parquet").to_pylist()
    } == {
        "photos/d-again.jpg": "duplicate",
        "photos/e-nearly.jpg": "near_duplicate",
        "photos/refused.jpg": "refused",
        "photos/small.jpg": "too_small",
        "photos/text.jpg": "unsupported_format",
    }
    names = [
        sha256(FILES["photos/a.jpg"]).hexdigest(),
        *(f"{sha256(FILES['made/x.jpg']).hexdigest()}:{quarter}" for quarter in range(4)),
    ]
    facts = ["real\tphotos\treal:photos", *["fake\tmade\tPainter 2"] * 4]
    lines = sorted(
        f"{name}\t{labels}\towner\tnone stated\n" for name, labels in zip(names, facts, strict=True)
    )
    assert summary["index_sha256"] == sha256("".join(lines).encode()).hexdigest()


def test_held_out_families_are_listed_with_a_hash_of_their_pictures(tmp_path):
    commit = committed(tmp_path, FILES)
    listed(
        tmp_path / "sources.csv",
        {"commit": commit, "path_rule": r"^photos/ NOT thumbs", "family": "kept", "split": "test"},
        {"commit": commit, "path_rule": "^made/", "source": "made", "split": "train"},
    )
    gather(tmp_path)
    with (tmp_path / "out/held_out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    rows = pq.read_table(tmp_path / "out/index.parquet", filters=[("source", "=", "photos")])
    names = "".join(f"{name}\n" for name in sorted(rows["sha256"].to_pylist()))
    assert row == {
        "split": "test",
        "family": "kept",
        "sources": "photos",
        "images": str(rows.num_rows),
        "sha256": sha256(names.encode()).hexdigest(),
    }


def test_at_most_200_files_of_a_source_are_taken(tmp_path):
    files = {f"{number}.txt": b"404: not found" + bytes([number]) for number in range(201)}
    one, other = {"commit": committed(tmp_path, files), "path_rule": "."}, {"cap": "3"}
    rules = read_rules(listed(tmp_path / "sources.csv", one, one | other))
    assert [rule["cap"] for rule in rules] == [200, 3]


def test_what_is_no_rule_is_refused(tmp_path):
    for row in (
        {"path_rule": "("},
        {"path_rule": "a", "repo": "--upload-pack=x/y"},
        {"path_rule": "a", "source": "../x"},
    ):
        with pytest.raises(ConfigError, match="line 2"):
            read_rules(listed(tmp_path / "sources.csv", row))


@pytest.mark.parametrize("name", ["sources", "sources-permissive"])
def test_the_shipped_lists_are_read(name):
    assert len(read_rules(f"configs/photos/{name}.csv")) > 20


def test_no_family_of_the_shipped_list_is_in_two_splits():
    splits = defaultdict(set)
    for rule in read_rules("configs/photos/sources.csv"):
        if rule["split"] != "aside":  # in neither
            splits[rule["family"]].add(rule["split"])
    assert [family for family, found in splits.items() if len(found) > 1] == []
    with open("configs/photos/held_out.csv", newline="") as file:
        held_out = {row["family"]: row["split"] for row in csv.DictReader(file)}
    listed_in_it = {name: {split} for name, split in held_out.items()}
    assert {name: splits[name] for name in splits if splits[name] & {*HELD_OUT}} == listed_in_it
