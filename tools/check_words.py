"""Count house words in prose and identifiers, and fail when a package's count rises.

Usage:
    python tools/check_words.py                 Print the counts; exit 1 if one exceeds the baseline.
    python tools/check_words.py --where night   Print the file:line of every match of one word.
    python tools/check_words.py --update        Write the baseline. Counts should only go down.
"""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "tools" / "words_baseline.json"
# The word list itself, and entries of released versions.
EXCLUDED = {"docs/style.md", "CHANGELOG.md"}

PROSE = {
    "where (for if)": r"\bwhere\b(?! `)",
    "What-opening": r"(?:^|[.:] )What [a-z`]",
    "preposition-opening": r"(?:^|[.] )(?:Of|On|Beside|Behind|Below) [a-z`]",
    "The same": r"^The same\b",
    "picture": r"\bpictures?\b",
    "figure": r"\bfigures?\b(?! \d)",
    "share of": r"\bshares? of\b",
    "stand": r"\bstands?\b(?! for)",
    "lie": r"\blies?\b",
    "beside": r"\bbesides?\b",
    "is no X": r"\b(?:is|are) no (?!longer|more)[a-z]",
    "whatever": r"\bwh(?:at|o|ich)ever\b",
    "nobody": r"\b(?:no|any|some)body\b",
    "goes on": r"\bgo(?:es)? on\b",
    "begun": r"\bbegun\b",
    "anew": r"\banew\b",
    "so many": r"\bso (?:many|long)\b(?! as)",
    "house": r"\b(?:house|rooms?|floors?|moulds?|crumbs?)\b",
    "night": r"\bnights?\b",
    "wants": r"\bwants\b",
    "out of reach": r"\bout of reach\b",
    "for ever": r"\bfor (?:ever|good)\b",
    "becomes of": r"\bwhat (?:became|becomes) of\b",
    "can be had": r"\b(?:can|could)(?:not)? be had\b",
}
NAMES = {
    "one", "found", "place", "places", "given", "wanted", "known", "kept", "named", "described",
    "seen", "shown", "said", "made", "asked", "listed", "refused", "chosen", "drawn", "begun",
    "noted", "stated", "taken", "done", "told", "held", "why", "what", "own", "mine", "ours",
    "theirs", "some", "rest", "there", "beside", "whole", "words", "word", "most", "fewest",
    "least", "share", "shares", "figure", "figures", "ends", "texts", "lasts", "leaves",
    "waits", "halted", "avoided", "crumb", "crumbs", "mould", "looks", "doubt", "fault",
    "patience", "of", "here", "again",
}  # fmt: skip


def iter_text(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield the prose and the bound names of a file, each as (kind, line, text)."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        prose = re.sub(
            r"```.*?```", lambda block: "\n" * block[0].count("\n"), source, flags=re.DOTALL
        )
        yield from (("md", line, text) for line, text in enumerate(prose.splitlines(), 1))
    else:
        yield from iter_tree(source)
        yield from iter_comments(source)


def iter_tree(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield the docstrings, the messages of exceptions, and the bindings of a module."""
    tree = ast.parse(source)
    # Class-level fields are often contract names (YAML and JSON keys, columns).
    fields = {
        id(statement.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and (text := ast.get_docstring(node)):
            yield "docstring", getattr(node, "lineno", 1), text
        if isinstance(node, ast.Raise) and node.exc is not None:
            for child in ast.walk(node.exc):
                if isinstance(child, ast.Constant) and isinstance(child.value, str):
                    yield "error", child.lineno, child.value
        if (
            isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)
            and id(node) not in fields
        ):
            yield "name", node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield "name", node.lineno, node.arg


def iter_comments(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield the comments of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.search("noqa|type: ignore|fmt:", token.string):
            yield "comment", token.start[0], token.string.lstrip("# ")


def find_matches() -> dict[str, list[str]]:
    """Return the file:line of every match, by "prose:<rule>" or "name:<identifier>"."""
    matches = defaultdict(list)
    command = ["git", "-C", str(ROOT), "ls-files", "ray_app/*.py", "jobs/*.py", "*.md"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split():
        if name in EXCLUDED:
            continue
        for kind, line, text in iter_text(ROOT / name):
            if kind == "name":
                identifier = text.strip("_").lower()
                keys = [f"name:{identifier}"] if identifier in NAMES else []
            else:
                keys = [
                    f"prose:{rule}"
                    for rule, pattern in PROSE.items()
                    for _ in re.finditer(pattern, text, re.MULTILINE)
                ]
            for key in keys:
                matches[key].append(f"{name}:{line}")
    return matches


def package_name(location: str) -> str:
    """Return the package of a file:line, such as "ray_app/scoring" or "docs"."""
    parts = location.split("/")
    return (
        "/".join(parts[:2])
        if parts[0] == "ray_app" and len(parts) > 2
        else parts[0]
        if len(parts) > 1
        else "top level"
    )


def main(arguments: list[str]) -> int:
    """Run the check and return the exit code."""
    matches = find_matches()
    if arguments[:1] == ["--where"]:
        print(
            *sorted(
                location
                for key, locations in matches.items()
                if arguments[1] in key
                for location in locations
            ),
            sep="\n",
        )
        return 0
    counts = Counter(
        package_name(location) for locations in matches.values() for location in locations
    )
    if arguments == ["--update"]:
        BASELINE.write_text(
            json.dumps(dict(sorted(counts.items())), indent=1) + "\n", encoding="utf-8"
        )
        return 0
    for key, locations in sorted(matches.items(), key=lambda item: -len(item[1])):
        print(f"{len(locations):6} {key}")
    for package, count in counts.most_common():
        print(f"{count:6} in {package}")
    print(f"{sum(counts.values()):6} total")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8")) if BASELINE.exists() else counts
    increased = {
        package: count for package, count in counts.items() if count > baseline.get(package, 0)
    }
    for package, count in increased.items():
        print(
            f"increased: {package} from {baseline.get(package, 0)} to {count}; see docs/style.md",
            file=sys.stderr,
        )
    return 1 if increased else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
