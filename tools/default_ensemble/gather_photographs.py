"""How the pictures of the ensemble `default` were gathered: images of public git repositories, at
the commits that a list names.

    python -m tools.default_ensemble.gather_photographs configs/photos/sources.csv \\
        --refuse configs/photos/refused.sha256 --mirror MIRRORS --out DIR

A row of the list: `repo` (owner/name), `commit`, `path_rule` (a regular expression on paths; what
follows ` NOT ` excludes), `label` (real, fake, or grid2x2: fakes on sheets of 2 × 2, which are
cut), `source`; `cap`: at most so many files (200 if the row says nothing), those whose SHA-256 of
source and path is lowest; `family`: what no split divides; `kind` of held-out pictures; and more
that the index repeats.

Writes images/SOURCE/HASH.EXT, index.parquet (labelled: for `data index`, `evaluate`, `detectors
fit`), dropped.parquet (a row for each file that is left out, and why), summary.json, and
held_out.csv (the families that no training may use, each with a hash of its pictures). Files whose
SHA-256 `--refuse` lists, which no training may use, are left out. MIRRORS holds bare repositories;
others are fetched from GitHub.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.datasets.labels import INPUT, parse_label
from ray_app.datasets.near_duplicates import compute_duplicate_criteria
from ray_app.errors import ConfigError, InputError
from ray_app.images import ImageLimits, decode_image, facts

# of one file: public mirrors leave out larger ones, so that a clone and a mirror give the same
# images
MAX_BYTES = 4_000_000
MIN_SIDE, MAX_ASPECT = 256, 3.0
# files of one source, unless its row says fewer
MOST_FILES = 200
# `thresholds`: reals for thresholds and nothing else.
HELD_OUT = ("test", "thresholds", "validation")
# Nobody is asked for a password, nothing of a foreign repository is run, and what a partial clone
# lacks is not fetched one by one.
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_ALLOW_PROTOCOL": "https",
    "LC_ALL": "C",
}
SETTINGS = ("-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null")
FORMS = {
    "repo": r"[A-Za-z0-9][\w-]*/[\w.-]*[\w-][\w.-]*",
    "commit": r"[0-9a-f]{40}([0-9a-f]{24})?",
    "source": r"[A-Za-z0-9_][\w.-]{0,99}",
}
TEXTS = ("uri", "sha256", "label", "generator", "group", "split", "source", "family", "camera", "licence", "path", "repo", "commit",
         "sheet", "format", "phash")  # fmt: skip
NUMBERS = {
    "quarter": pa.int8(),
    "width": pa.int32(),
    "height": pa.int32(),
    "quality": pa.int32(),
    "size_bytes": pa.int64(),
}
FLAGS = ("covers_pictures", "graphics")
INDEX = pa.schema(
    [
        *((name, pa.string()) for name in TEXTS),
        *((name, pa.bool_()) for name in FLAGS),
        *NUMBERS.items(),
    ]
)
Row = dict[str, Any]


def read_rules(path: str, most_of_training: int = MOST_FILES) -> list[Row]:
    """The rows of a list, with at most so many files of a source of the split `train`. Raises
    ConfigError, with file and line, for what is no rule.
    """
    found = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in (lines := csv.DictReader(file)):
            rule, where = (
                defaultdict(str, {name: (value or "").strip() for name, value in row.items()}),
                f"{path}, line {lines.line_num}",
            )
            for name in ("repo", "commit", "path_rule", "label", "source"):
                if not re.fullmatch(FORMS.get(name, ".+"), rule[name]):
                    raise ConfigError(f"{where}: {name} {rule[name]!r} is missing or malformed")
            wanted, mark, unwanted = rule["path_rule"].partition(" NOT ")
            try:
                rule["wanted"], rule["unwanted"] = (
                    re.compile(one, re.IGNORECASE)
                    for one in (wanted, unwanted if mark else r"(?!)")
                )
            except re.error as error:
                raise ConfigError(
                    f"{where}: {rule['path_rule']!r} is no regular expression: {error}"
                ) from None
            rule["is_sheet"] = rule["label"] == "grid2x2"
            most = most_of_training if rule["split"] == "train" else MOST_FILES
            rule["cap"] = min(int(rule["cap"] or MOST_FILES), most)
            rule["label"] = "fake" if rule["is_sheet"] else parse_label(rule["label"], where)
            found.append(rule)
    return found


def labels_of(rule: Row) -> Row:
    """What the index says of all pictures of a rule."""
    made_by, family, is_real = (
        rule["generator_or_camera"],
        rule["family"] or rule["repo"].partition("/")[0],
        rule["label"] == "real",
    )
    named = (
        {"generator": f"real:{rule['source']}", "camera": made_by}
        if is_real
        else {"generator": made_by or "unknown"}
    )
    facts = {name: rule[name] for name in ("repo", "commit", "source", "label")} | {
        "group": family,
        "family": family,
        **named,
    }
    facts |= {"licence": rule["licence"] or "none stated", "split": rule["split"] or None}
    return facts | {name: rule[name].lower() == "yes" for name in FLAGS}


def git(at: Path, *words: str, given: bytes = b"") -> bytes:
    """What git prints of the repository. Raises ConfigError with git's words."""
    done = subprocess.run(
        ["git", *SETTINGS, f"--git-dir={at}", *words],
        env=os.environ | QUIET,
        input=given,
        capture_output=True,
    )
    if done.returncode:
        raise ConfigError(
            f"{at}: git {words[0]} failed: {done.stderr.decode('utf-8', 'replace').strip()[-200:]}"
        )
    return done.stdout


def repository(mirror: Path, repo: str, commit: str) -> Path:
    """The bare repository, in the folder of mirrors or fetched into it, which has the commit.
    Raises ConfigError.
    """
    joined = mirror / repo.replace("/", "+")
    at = next(
        (place for place in (joined, mirror / f"{repo}.git") if (place / "HEAD").is_file()),
        joined / "repo",
    )
    if not (at / "HEAD").is_file():
        subprocess.run(["git", "init", "--quiet", "--bare", at], check=True)
    if git(at, "cat-file", "--batch-check", given=commit.encode()).strip().endswith(b"missing"):
        git(
            at,
            "fetch",
            "-q",
            "--no-tags",
            "--depth=1",
            f"--filter=blob:limit={MAX_BYTES + 1}",
            f"https://github.com/{repo}",
            commit,
        )
    return at


def candidates(at: Path, rule: Row, refused: frozenset[str], out: Path) -> list[Row]:
    """A row for each file that the rule chooses, and each quarter of a sheet, in their order:
    written below `out`, or with a `reason`.
    """
    files = []
    for entry in filter(
        None, git(at, "ls-tree", "-r", "-z", "--full-tree", rule["commit"]).split(b"\0")
    ):
        head, _, raw = entry.partition(b"\t")
        (mode, kind, blob), path = head.decode().split(), raw.decode("utf-8", "backslashreplace")
        if (
            kind == "blob"
            and mode.startswith("100")
            and rule["wanted"].search(path)
            and not rule["unwanted"].search(path)
        ):
            files.append((path, blob))
    if not files:
        raise ConfigError(
            f"{rule['repo']}: no path matches {rule['path_rule']!r}",
            hint=f"git --git-dir {at} ls-tree -r {rule['commit']}",
        )
    asked = "\n".join(blob for _, blob in files).encode()
    sizes = [
        line.split()[1]
        for line in git(
            at, "cat-file", "--batch-check=%(objectname) %(objectsize)", given=asked
        ).splitlines()
    ]
    taken = [(path, blob, size) for (path, blob), size in zip(files, sizes, strict=True)]
    if len(taken) > rule["cap"]:
        taken.sort(key=lambda one: hashlib.sha256(f"{rule['source']}\n{one[0]}".encode()).digest())
    found, blobs, fit = dict[str, list[Row]](), set[str](), 0
    for path, blob, size in taken:
        reason = (
            ""
            if size.isdigit() and int(size) <= MAX_BYTES
            else "too_large"
            if size.isdigit()
            else "absent"
        )
        reason = reason or (
            "duplicate" if blob in blobs else "over_cap" if fit >= rule["cap"] else ""
        )
        found[path] = (
            [{"reason": reason}]
            if reason
            else examined(git(at, "cat-file", "blob", blob), rule, refused, out)
        )
        fit += any("reason" not in row for row in found[path])
        blobs.add(blob)
    return [labels_of(rule) | {"path": path} | row for path, _ in files for row in found[path]]


def examined(data: bytes, rule: Row, refused: frozenset[str], out: Path) -> list[Row]:
    """The rows of one file: itself, or the four quarters of a sheet as PNG."""
    digest = hashlib.sha256(data).hexdigest()
    if digest in refused or data.startswith(b"version https://git-lfs"):
        return [{"reason": "refused" if digest in refused else "lfs_pointer"}]
    try:
        decoded = decode_image(data, ImageLimits(max_bytes=MAX_BYTES))
    except InputError as error:
        return [{"reason": str(error.status)}]
    if decoded.facts.frames != 1 or {"animated", "multipage"} & set(decoded.facts.flags):
        return [{"reason": "several_frames"}]
    known, pixels = decoded.facts, decoded.pixels
    pictures: list[tuple[Any, bytes, Row]] = [
        (pixels, data, {"format": known.format, "quality": known.quality})
    ]
    if rule["is_sheet"]:
        wide, high, pictures = pixels.width // 2, pixels.height // 2, []
        for quarter, (left, top) in enumerate(((0, 0), (wide, 0), (0, high), (wide, high))):
            part, file = pixels.crop((left, top, left + wide, top + high)), io.BytesIO()
            part.save(file, "PNG", compress_level=1)
            pictures.append(
                (part, file.getvalue(), {"format": "PNG", "sheet": digest, "quarter": quarter})
            )
    rows = []
    for picture, content, own in pictures:
        name, (short, long) = hashlib.sha256(content).hexdigest(), sorted(picture.size)
        if name in refused or short < MIN_SIDE or long > short * MAX_ASPECT:
            rows.append(
                {
                    "reason": "refused"
                    if name in refused
                    else "too_small"
                    if short < MIN_SIDE
                    else "too_long"
                }
            )
            continue
        uri = f"images/{rule['source']}/{name[:16]}.{'jpg' if own['format'] == 'JPEG' else own['format'].lower()}"
        (out / uri).parent.mkdir(parents=True, exist_ok=True)
        (out / uri).write_bytes(content)
        own |= {"width": picture.width, "height": picture.height, "size_bytes": len(content)}
        # the same on every machine: PNG encoders differ
        own["id"] = f"{digest}:{own['quarter']}" if rule["is_sheet"] else name
        rows.append({"uri": uri, "sha256": name, "phash": facts.perceptual_hash(picture), **own})
    return rows


def decide(rows: list[Row]) -> list[Row]:
    """The rows that stay; repetitions and near-duplicates (at most 4 of 64 bits of hashes differ)
    of these get their reason. What is held out of training stays, whatever else joins the list.
    """
    first: dict[str, Row] = {}
    held_out_first = sorted(rows, key=lambda row: row["split"] not in HELD_OUT)
    for row in held_out_first:
        if "reason" not in row and first.setdefault(row["id"], row) is not row:
            row["reason"] = "duplicate"
    here = [row for row in held_out_first if "reason" not in row]
    columns = [
        pa.array([row["phash"] if field.name == "phash" else None for row in here], pa.string())
        for field in INPUT
    ]
    (bond,) = compute_duplicate_criteria(
        pa.table({"input": pa.StructArray.from_arrays(columns, fields=list(INPUT))}), ["looks"]
    )
    near: defaultdict[int, set[int]] = defaultdict(set)
    for low, high in bond.pairs.tolist():
        near[low].add(high)
        near[high].add(low)
    kept: set[int] = set()
    for row, code in zip(here, bond.codes.tolist(), strict=True):
        if code >= 0 and kept & {code, *near[code]}:  # -1: pictures without detail are not compared
            row["reason"] = "near_duplicate"
        kept |= {code} if code >= 0 and "reason" not in row else set()
    return [row for row in rows if "reason" not in row]


def gather(rules: list[Row], mirror: Path, out: Path, refused: frozenset[str]) -> Row:
    """Write images and tables below `out`; returns the figures. `index_sha256` is what the
    detectors' cards state.
    """
    rows = [
        row
        for rule in rules
        for row in candidates(repository(mirror, rule["repo"], rule["commit"]), rule, refused, out)
    ]
    kept = decide(rows)
    out.mkdir(parents=True, exist_ok=True)
    for uri in {row["uri"] for row in rows if "uri" in row} - {row["uri"] for row in kept}:
        (out / uri).unlink()
    dropped = [row for row in rows if "reason" in row]
    counts = {
        "labels": Counter(row["label"] for row in kept),
        "dropped": Counter(row["reason"] for row in dropped),
    }
    pq.write_table(pa.Table.from_pylist(kept, INDEX), out / "index.parquet")
    schema = pa.schema(
        [(name, pa.string()) for name in ("source", "repo", "commit", "path", "reason")]
    )
    pq.write_table(pa.Table.from_pylist(dropped, schema), out / "dropped.parquet")
    lines = (
        "\t".join(row[name] for name in ("id", "label", "source", "generator", "family", "licence"))
        + "\n"
        for row in kept
    )
    summary = {
        "images": len(kept),
        **counts,
        "index_sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    with (out / "held_out.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("split", "family", "sources", "images", "sha256"), *held_out_families(kept)]
        )
    return summary


def held_out_families(rows: list[Row]) -> list[tuple[str, str, str, int, str]]:
    """Split, family, sources, and number of pictures of each family that is held out, with the
    SHA-256 of the sorted SHA-256 of its pictures, one to a line.
    """
    families = defaultdict[tuple[str, str], list[Row]](list)
    for row in rows:
        if row["split"] in HELD_OUT:
            families[row["split"], row["family"]].append(row)
    return [
        (
            split,
            family,
            " ".join(sorted({row["source"] for row in own})),
            len(own),
            hashlib.sha256("".join(sorted(f"{row['id']}\n" for row in own)).encode()).hexdigest(),
        )
        for (split, family), own in sorted(families.items())
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", help="the list, a CSV")
    parser.add_argument(
        "--mirror",
        required=True,
        type=Path,
        help="folder of bare repositories: owner+name/repo, or owner/name.git",
    )
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--refuse",
        default=Path(os.devnull),
        type=Path,
        help="SHA-256 of files that are left out, one to a line",
    )
    parser.add_argument(
        "--most-of-training",
        type=int,
        default=MOST_FILES,
        metavar="N",
        help="at most so many files of a source of the split `train`",
    )
    asked = parser.parse_args()
    print(
        json.dumps(
            gather(
                read_rules(asked.rules, asked.most_of_training),
                asked.mirror,
                asked.out,
                frozenset(asked.refuse.read_text().split()),
            ),
            indent=1,
        )
    )
