"""Measure which faults the default tests catch.

The program changes one expression at a time and runs the tests that cover its line.

    python -m pytest -n 2 --cov=ray_app --cov-context=test --cov-report=          # writes .coverage; needs pytest-cov
    python -m tools.mutate select --out tools/mutations.csv                       # choose the mutations, once
    python -m tools.mutate run tools/mutations.csv --out results.csv              # --part 1/2 and 2/2: side by side, in two checkouts
    python -m tools.mutate compare tools/mutations_before.csv results.csv         # exit code 1 if a caught mutation now survives

`select` takes every mutation of `storage/ssrf.py` and a seeded sample of the other modules, from
lines that a default test runs in its own process. A mutation is found again by its function and its
text, so that it survives a move within the file.

`run` changes the file in place, runs the covering tests that are nearest to the module first, stops
at the first failure or after 60 seconds, and restores the file. A mutation is `caught` if a test
fails or cannot be collected, `survived` if none does in that time, `gone` if its function or its
text no longer exists, and `error` if pytest itself failed. Start it from a commit whose default
tests pass. A busy machine needs more than 60 seconds for some: run those that have `no failure in
time` once more.
"""

import argparse
import ast
import csv
import fnmatch
import functools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COUNT = 300
SEED = 59
WHOLE = ("ray_app/storage/ssrf.py",)
MAX_SECONDS = 60.0
MAX_TESTS = 200
TEST_TIMEOUT_S = 45
# Modules that 1.0 removes or replaces.
LEFT_OUT = (
    "ray_app/archives/s3_inventory.py",
    "ray_app/cluster/services.py",
    "ray_app/cluster/warm_workers.py",
    "ray_app/datajobs/generate/files.py",
    "ray_app/datajobs/shards/filter.py",
    "ray_app/datasets/simulation/*",
    "ray_app/detectors/adoption.py",
    "ray_app/detectors/files_by_hash.py",
    "ray_app/detectors/callables/*",
    "ray_app/evaluation/compare/changes.py",
    "ray_app/evaluation/evidence/*",
    "ray_app/evaluation/standing.py",
    "ray_app/evaluation/suggestion.py",
    "ray_app/inference/reuse.py",
    "ray_app/inference/stability.py",
    "ray_app/metrics/survey_sampling.py",
    "ray_app/reports/card.py",
    "ray_app/reports/compare.py",
    "ray_app/reports/evidence.py",
    "ray_app/reports/leaderboard.py",
    "ray_app/runs/arrow.py",
    "ray_app/runs/score_index.py",
    "ray_app/runs/table_files.py",
    "ray_app/scoring/rescore.py",
    "ray_app/serving/arena.py",
    "ray_app/serving/haproxy.py",
    "ray_app/serving/http/connections.py",
    "ray_app/serving/url_fetch.py",
    "ray_app/storage/bucket_events.py",
    "ray_app/streams/worker_pool.py",
    "ray_app/transforms/edits.py",
    "ray_app/transforms/regeneration.py",
)

FLIPPED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One change of one expression.

    `occurrence` counts the equal changes in the same function, from 0.
    """

    file: str
    function: str
    kind: str
    before: str
    after: str
    occurrence: int
    line: int

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What identifies the mutation if lines move or a formatter breaks them elsewhere."""
        texts = _without_layout(self.before), _without_layout(self.after)
        return self.file, self.function, self.kind, *texts, self.occurrence


@functools.cache
def _without_layout(text: str) -> str:
    """Return an expression, a statement, or arguments as `ast.unparse` writes them."""
    for source in (f"({text}\n)", text, f"arguments({text}\n)"):
        try:
            return ast.unparse(ast.parse(source))
        except SyntaxError:
            continue
    return " ".join(text.split())


@dataclass(frozen=True)
class Result(Mutation):
    """A mutation and what the tests said."""

    status: str
    test: str
    seconds: str


@dataclass(frozen=True)
class _Change:
    """A replacement of the bytes from `start` to `end` of a file."""

    mutation: Mutation
    start: int
    end: int


def find_changes(path: Path, root: Path = ROOT) -> list[_Change]:
    """Return every possible mutation of a module, in the order of its text."""
    data = path.read_bytes()
    lines = [0]
    for line in data.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    seen = Counter[tuple[str, str, str, str]]()
    changes = []
    for function, kind, start, end, after in sorted(
        _walk(ast.parse(data), lines, data), key=lambda found: found[2:4]
    ):
        before = data[start:end].decode()
        if before == after:
            continue
        key = (function, kind, _without_layout(before), _without_layout(after))
        number = data.count(b"\n", 0, start) + 1
        file = path.relative_to(root).as_posix()
        mutation = Mutation(file, function, kind, before, after, seen[key], number)
        seen[key] += 1
        changes.append(_Change(mutation, start, end))
    return changes


def _walk(
    tree: ast.Module, lines: Sequence[int], data: bytes
) -> Iterator[tuple[str, str, int, int, str]]:
    """Yield (function, kind, start, end, replacement) for every change below functions."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, str, int, int, str]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{node.name}".lstrip(".")
            for child in node.body:
                yield from visit(child, inner)
            return
        if function and isinstance(node, ast.expr | ast.stmt):
            yield from ((function, *change) for change in _changes_of(node, lines, data))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, function)

    yield from visit(tree, "")


def _changes_of(
    node: ast.expr | ast.stmt, lines: Sequence[int], data: bytes
) -> Iterator[tuple[str, int, int, str]]:
    def span(part: ast.expr | ast.stmt) -> tuple[int, int]:
        assert part.end_lineno is not None
        assert part.end_col_offset is not None
        return lines[part.lineno - 1] + part.col_offset, lines[
            part.end_lineno - 1
        ] + part.end_col_offset

    def text(part: ast.expr | ast.stmt) -> str:
        start, end = span(part)
        return data[start:end].decode()

    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            yield (
                "comparison",
                *span(node),
                f"({text(left)}) {FLIPPED[type(operator)]} ({text(right)})",
            )
        case ast.Constant(value=bool() as value):
            yield "constant", *span(node), str(not value)
        case ast.Constant(value=int() | float() as value):
            yield "constant", *span(node), repr(value + 1)
        case ast.If(test=test, orelse=[]):
            yield "branch", *span(test), "False"
        case ast.Raise():
            yield "exception", *span(node), "pass"
        case ast.Call(args=[first, second, *_]) if not isinstance(
            first, ast.Starred
        ) and not isinstance(second, ast.Starred):
            start, end = span(first)[0], span(second)[1]
            between = data[span(first)[1] : span(second)[0]].decode()
            yield "argument", start, end, f"{text(second)}{between}{text(first)}"


class Coverage:
    """The tests that cover each line, from a data file of coverage.py with a context for each test."""

    def __init__(self, data_file: Path, root: Path = ROOT) -> None:
        from coverage import CoverageData

        self._data, self._root = CoverageData(str(data_file)), root
        self._data.read()
        self._lines: dict[str, dict[int, list[str]]] = {}

    def tests_of(self, file: str, line: int) -> list[str]:
        """Return the ids of the tests that run this line, nearest test files first."""
        if file not in self._lines:
            self._lines[file] = self._data.contexts_by_lineno(str(self._root / file))
        tests = {
            context.rpartition("|")[0] for context in self._lines[file].get(line, ()) if context
        }
        # A parameter with bytes may have another name in the next run, for example a time in gzip.
        tests = {test.partition("[")[0] if "\\" in test else test for test in tests}
        return sorted(tests, key=lambda test: (*_distance(file, test), test))


def _distance(file: str, test: str) -> tuple[bool, bool]:
    module, place = Path(file), Path(test.split("::")[0])
    same_name = place.stem == f"test_{module.stem}"
    same_folder = place.parent.parts[1:] == module.parent.parts[1:]
    return not same_name, not same_folder


def select_mutations(coverage: Coverage, count: int, seed: int) -> list[Mutation]:
    """Return every covered mutation of the modules in WHOLE and a seeded sample of the others."""
    whole, others = list[Mutation](), list[Mutation]()
    for path in sorted((ROOT / "ray_app").rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if any(fnmatch.fnmatch(file, pattern) for pattern in LEFT_OUT):
            continue
        covered = [
            change.mutation
            for change in find_changes(path)
            if coverage.tests_of(file, change.mutation.line)
        ]
        (whole if file in WHOLE else others).extend(covered)
    by_kind = defaultdict[str, list[Mutation]](list)
    for mutation in others:
        by_kind[mutation.kind].append(mutation)
    draw, rest = random.Random(seed), count - len(whole)
    kinds = sorted(by_kind)
    sample = [
        one
        for at, kind in enumerate(kinds)
        for one in draw.sample(by_kind[kind], rest // len(kinds) + (at < rest % len(kinds)))
    ]
    return sorted([*whole, *sample], key=lambda mutation: (mutation.file, mutation.line))


def run_mutation(mutation: Mutation, coverage: Coverage, root: Path = ROOT) -> Result:
    """Change the file, run the tests that cover the line, and restore the file."""
    path = root / mutation.file
    changes = (
        {change.mutation.key: change for change in find_changes(path, root)}
        if path.exists()
        else {}
    )
    change = changes.get(mutation.key)
    if change is None:
        return Result(**asdict(mutation), status="gone", test="", seconds="")
    tests = coverage.tests_of(mutation.file, change.mutation.line)[:MAX_TESTS]
    if not tests:
        return Result(**asdict(mutation), status="uncovered", test="", seconds="")
    data = path.read_bytes()
    begun = time.monotonic()
    try:
        path.write_bytes(data[: change.start] + mutation.after.encode() + data[change.end :])
        status, test = _run_tests(tests, root)
    finally:
        path.write_bytes(data)
    if status == "error" and _run_tests(tests, root, "--collect-only")[0] == "survived":
        status, test = "caught", "a module of tests cannot be imported"
    return Result(
        **asdict(mutation), status=status, test=test, seconds=f"{time.monotonic() - begun:.0f}"
    )


def require_passing_tests(mutation: Mutation, coverage: Coverage, root: Path = ROOT) -> None:
    """Exit if the tests of a mutation fail without it, since then every mutation seems caught."""
    status, test = _run_tests(coverage.tests_of(mutation.file, mutation.line)[:MAX_TESTS], root)
    if status != "survived":
        sys.exit(f"the tests fail without a mutation: {test}")


def _run_tests(tests: Sequence[str], root: Path, *more_options: str) -> tuple[str, str]:
    """Return the status of a mutation and the test that caught it, or why there is none."""
    options = [
        *more_options,
        "-x",
        "-q",
        "--tb=no",
        "-rfE",
        "-p",
        "no:cacheprovider",
        f"--timeout={TEST_TIMEOUT_S}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=root,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "survived", "no failure in time"
    if process.returncode == 0:
        return "survived", ""
    named = [
        line.split(" ")[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))
    ]
    if process.returncode in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED) and named:
        return "caught", named[0]
    return "error", f"pytest exited with {process.returncode}: {output[-300:]}"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, kind: type[Mutation], rows: Iterable[Mutation]) -> None:
    """Write mutations or results as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _mutation_from_row(row: dict[str, str]) -> Mutation:
    values = {field.name: row[field.name] for field in fields(Mutation)}
    return Mutation(**{**values, "occurrence": int(row["occurrence"]), "line": int(row["line"])})  # type: ignore[arg-type]


def compare(
    before: Sequence[dict[str, str]], after: Sequence[dict[str, str]]
) -> list[dict[str, str]]:
    """Return the rows of `after` that survive although the same mutation was caught before."""
    caught = {_mutation_from_row(row).key for row in before if row["status"] == "caught"}
    return [
        row
        for row in after
        if row["status"] == "survived" and _mutation_from_row(row).key in caught
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutate", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    select = commands.add_parser("select")
    run = commands.add_parser("run")
    run.add_argument("mutations", type=Path)
    run.add_argument("--part", default="1/1", help="run every N-th mutation, from the K-th on: K/N")
    for command in (select, run):
        command.add_argument("--coverage", type=Path, default=ROOT / ".coverage")
        command.add_argument("--out", type=Path, required=True)
    comparison = commands.add_parser("compare")
    comparison.add_argument("before", type=Path)
    comparison.add_argument("after", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "select":
        write_rows(given.out, Mutation, select_mutations(Coverage(given.coverage), COUNT, SEED))
        return 0
    if given.command == "compare":
        lost = compare(read_rows(given.before), read_rows(given.after))
        for row in lost:
            print(f"{row['file']}:{row['line']} {row['kind']}: {row['before']} → {row['after']}")
        return int(bool(lost))
    coverage, results = Coverage(given.coverage), list[Result]()
    first, step = map(int, given.part.split("/"))
    rows = read_rows(given.mutations)[first - 1 :: step]
    require_passing_tests(_mutation_from_row(rows[0]), coverage)
    for row in rows:
        results.append(run_mutation(_mutation_from_row(row), coverage))
        write_rows(given.out, Result, results)
        print(
            f"{results[-1].status:9} {results[-1].seconds:>3} s  {results[-1].file}:{results[-1].line}",
            flush=True,
        )
    print(
        ", ".join(
            f"{count} {status}"
            for status, count in Counter(result.status for result in results).most_common()
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
