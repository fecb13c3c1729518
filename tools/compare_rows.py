"""Compare the rows that two checkouts write for the same images, value by value.

    python -m tools.compare_rows OLD NEW --photos FOLDER --work FOLDER

OLD and NEW are roots of checkouts, each with its own .venv. Both score the demo archive, the files
below --also, and the first --count photographs below --photos in the order of their SHA-256: once
with seven detectors and once with a cascade, in fp32 and in bf16, resized exactly, with watermarks
read. NEW's environment runs this program and writes the detector cards. Published networks get
narrow layers and seeded weights in the published format.

A file is identified by its path and its name in an archive; a row that only one side has is a
difference in the column `row`. intended_differences.csv lists the intended differences with their
reasons. The exit code is 1 if another difference is found. differences.csv in the --work folder
lists all of them.
"""

import argparse
import csv
import fnmatch
import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parent.parent
INTENDED = ROOT / "tools" / "intended_differences.csv"
REALWORLD = ROOT.parent / "shared" / "realworld"
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}
DETECTORS = (
    "community-forensics-vits384", "siglip2-open-deepfake", "clip-d-10k-plus", "corvi2023", "npr", "maskclip", "touchstone-photo",
)  # fmt: skip
CASCADE = ("npr", "touchstone-photo")
FEATURES = ("clip-d-10k-plus", "touchstone-photo")
COLUMNS = (
    "status", "detail", "flags", "scores", "score", "probability", "verdict", "verdict_reason", "finding", "grounds", "mask_area",
    "mask_peak",
)  # fmt: skip
PRECISIONS = ("fp32", "bf16")
MAX_EXAMPLES = 5

# Runs in the environment of the checkout that wrote the run: only its own code knows which rows are
# current.
EXPORT = """
import json, sys
from ray_app import load_run
columns = ["image_id", "uri", "member", "occurrence", *json.loads(sys.argv[2])]
for table in load_run(sys.argv[1]).tables():
    for row in table.select([name for name in columns if name in table.column_names]).to_pylist():
        print(json.dumps(row))
"""


class Difference(NamedTuple):
    """One value that differs.

    Attributes:
        run: The ensemble and the precision.
        file: The path, then `::` and the name in the archive.
        column: The column of the row.
        before: The value of the old checkout.
        after: The value of the new checkout.
    """

    run: str
    file: str
    column: str
    before: str
    after: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit code."""
    options = parse_options(arguments)
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sources = [make_demo_archive(options.new, work), *map(str, options.also)]
    if options.photos:
        sources.append(f"list::{list_photos(options.photos, options.count, work / 'photos.csv')}")
    ensembles = write_ensembles(work / "cards")
    differences: list[Difference] = []
    for precision in options.precision:
        for ensemble in ensembles:
            run = f"{ensemble.stem}-{precision}"
            before, after = (
                score(checkout.resolve(), sources, ensemble, precision, work / f"{side}-{run}")
                for side, checkout in (("old", options.old), ("new", options.new))
            )
            found = list(compare(run, before, after))
            print(
                f"{run}: {len(before):,} files before, {len(after):,} after, {len(found):,} differing values",
                flush=True,
            )
            differences += found
    unexpected = report(differences, read_intended(options.intended), work / "differences.csv")
    return int(bool(unexpected))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path, help="root of the checkout before the change")
    parser.add_argument("new", type=Path, help="root of the checkout after it")
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument(
        "--count", type=int, default=2000, help="how many photographs to score [2000]"
    )
    parser.add_argument(
        "--also",
        type=Path,
        nargs="*",
        default=[REALWORLD] if REALWORLD.exists() else [],
        help="more folders to score",
    )
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument(
        "--intended", type=Path, default=INTENDED, help="CSV of the intended differences"
    )
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for cards, runs, and results; finished runs there are used again",
    )
    return parser.parse_args(arguments)


def make_demo_archive(checkout: Path, work: Path) -> str:
    """Write the demo archive with one checkout, so that both sides read the same files."""
    folder = work / "demo"
    if not (folder / "archive").exists():
        command = [checkout / ".venv/bin/touchstone", "demo", "--archive-only", "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return str(folder / "archive")


def list_photos(folder: Path, count: int, path: Path) -> Path:
    """Write a list of the first photographs in the order of their SHA-256, each content once."""
    photos = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in PHOTO_SUFFIXES)
    by_hash = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in photos}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri"])
        writer.writerows([str(by_hash[digest].resolve())] for digest in sorted(by_hash)[:count])
    return path


def write_ensembles(folder: Path) -> list[Path]:
    """Write the cards, their seeded weights, and two ensembles: all detectors, and a cascade."""
    paths = [folder / "detectors.yaml", folder / "cascade.yaml"]
    if all(path.exists() for path in paths):
        return paths
    from benchmarks.seeded import seeded_card, write_card
    from tests.make.networks.small_zoo import small

    folder.mkdir(parents=True, exist_ok=True)
    members = {}
    for name in dict.fromkeys((*DETECTORS, *CASCADE)):
        members[name] = {"detector": name}
        if not name.startswith("touchstone-"):
            card = small(name).model_copy(
                update={"name": name, "variants": {}, "golden": (), "terms": "permissive"}
            )
            # Its positions fit the published image size, which the preprocessing has.
            if "vision_config" in card.architecture.arguments:
                card.architecture.arguments["vision_config"]["image_size"] = (
                    card.preprocessing.resize.size
                )
            write_card(seeded_card(card, folder / "weights"), folder / f"{name}.yaml")
            members[name] = {"detector": f"{name}.yaml"}
    thresholds = {"real_below": -0.5, "fake_above": 0.5}
    cards = (
        {
            "name": "detectors",
            "members": [members[name] for name in DETECTORS],
            "rule": "mean-logit",
            "thresholds": thresholds,
        },
        {
            "name": "cascade",
            "members": [members[name] for name in CASCADE],
            "rule": "cascade",
            "cascade": {"first": 1, "band": [-1.0, 1.0], "audit_share": 0.1},
            "thresholds": thresholds,
        },
    )
    for path, card in zip(paths, cards, strict=True):
        path.write_text(yaml.safe_dump({"title": "Compared rows", **card}))
    return paths


def score(
    checkout: Path, sources: Sequence[str], ensemble: Path, precision: str, run: Path
) -> dict[str, dict[str, Any]]:
    """Score the sources with a checkout, and return the compared values of each file."""
    features = [
        option
        for name in FEATURES
        if ensemble.stem == "detectors"
        for option in ("--features", name)
    ]
    values = (f"precision={precision}", "resize=exact", "provenance.watermarks=true")
    settings = [option for value in values for option in ("--set", value)]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    if not (run / "summary.json").exists():
        command = [
            checkout / ".venv/bin/touchstone",
            "score",
            *sources,
            "--out",
            run,
            "--ensemble",
            ensemble,
            *features,
            *settings,
        ]
        subprocess.run(
            command, check=True, cwd=run.parent, env=environment, stdout=subprocess.DEVNULL
        )
    command = [checkout / ".venv/bin/python", "-P", "-c", EXPORT, run, json.dumps(COLUMNS)]
    lines = subprocess.run(
        command, check=True, cwd=checkout, env=environment, capture_output=True, text=True
    ).stdout
    names, rows = {}, {}
    for row in map(json.loads, lines.splitlines()):
        name = "::".join(filter(None, (row.pop("uri"), row.pop("member")))) + (
            f"#{row['occurrence']}" if row["occurrence"] else ""
        )
        names[row.pop("image_id")] = name
        rows[name] = row
    for kind, of_files in (
        ("masks", read_artifacts(run / "masks", "png")),
        ("features", read_artifacts(run / "features")),
    ):
        for image_id, values in of_files.items():
            if image_id in names:
                rows[names[image_id]][kind] = values
    return rows


def read_artifacts(folder: Path, content: str | None = None) -> dict[int, Any]:
    """Return the values of each image in the Parquet files of a folder.

    With `content`, a value is the SHA-256 of that column's bytes.
    """
    import pyarrow.parquet as pq

    values: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            image_id, detector = row.pop("image_id"), str(row.pop("detector", ""))
            row.pop("sha256", None)
            value = {content: hashlib.sha256(row[content]).hexdigest()} if content else row
            values.setdefault(image_id, {})[detector] = value
    return values


def compare(
    run: str, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> Iterator[Difference]:
    """Yield each value that differs. A file that only one side has differs in the column `row`."""
    for file in sorted(before.keys() | after.keys()):
        old, new = before.get(file), after.get(file)
        if old is None or new is None:
            yield Difference(
                run, file, "row", *("" if row is None else str(row["status"]) for row in (old, new))
            )
            continue
        for column in sorted(old.keys() | new.keys()):
            if not is_equal(old.get(column), new.get(column)):
                yield Difference(
                    run, file, column, as_text(old.get(column)), as_text(new.get(column))
                )


def is_equal(before: Any, after: Any) -> bool:
    """Return whether two values are equal to the bit; NaN equals NaN."""
    if isinstance(before, float) and isinstance(after, float):
        return before == after or (math.isnan(before) and math.isnan(after))
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return before.keys() == after.keys() and all(
            is_equal(value, after[key]) for key, value in before.items()
        )
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(is_equal, before, after))
    return bool(before == after)


def as_text(value: Any) -> str:
    """Return a value as short text for the report."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return (
        text
        if len(text) <= 300
        else f"{text[:200]}… {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    )


def read_intended(path: Path) -> list[dict[str, str]]:
    """Return the intended differences: glob of the file, column, globs of both values, reason."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def is_intended(difference: Difference, intended: Sequence[Mapping[str, str]]) -> bool:
    """Return whether the list of intended differences covers a difference.

    `*` and `?` are wildcards in the list; brackets are not.
    """
    return any(
        all(
            fnmatch.fnmatchcase(getattr(difference, field), line[field].replace("[", "[[]"))
            for field in ("file", "column", "before", "after")
        )
        for line in intended
    )


def report(
    differences: Sequence[Difference], intended: Sequence[Mapping[str, str]], path: Path
) -> list[Difference]:
    """Write all differences as CSV, print a summary, and return those that are not intended."""
    unexpected = [difference for difference in differences if not is_intended(difference, intended)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Difference._fields, "intended"])
        writer.writerows([*difference, difference not in unexpected] for difference in differences)
    for column, count in Counter(difference.column for difference in unexpected).most_common():
        print(f"{count:,} unexpected differences in {column}:")
        examples = [difference for difference in unexpected if difference.column == column][
            :MAX_EXAMPLES
        ]
        print(
            "".join(
                f"  {example.run} {example.file}\n    before {example.before}\n    after  {example.after}\n"
                for example in examples
            ),
            end="",
        )
    print(
        f"{len(differences):,} differences, {len(unexpected):,} of them unexpected; {path} lists all"
    )
    return unexpected


if __name__ == "__main__":
    sys.exit(main())
