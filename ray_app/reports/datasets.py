"""Describe an index, its splits, and leaks between the splits, as lines for the terminal.

An index is a table of images with their labels. A split is a part of it, such as `train` or `test`.
A leak is an image, or a near duplicate of it, that is in two splits.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.datasets import IndexInfo
from ray_app.reports import format as wording
from ray_app.reports.text import UNLIMITED, table, terminal_width

_MAX_ROWS = 40
_AGREES = {True: "agree", False: "DIFFER", None: "unknown"}


def index_lines(info: IndexInfo) -> Iterator[str]:
    """Yield lines that describe an index, a table of images with their labels.

    The lines show the number of images of each combination of split, label, and generator. They
    also compare numbers of images with those that the authors of the data set published for its
    subsets, such as its splits. The last lines are on files that were left out.
    """
    hashed = f" · with {', '.join(info.hashes)}" if info.hashes else ""
    yield f"{info.rows:,} labelled images, layout {info.layout}{hashed} · digest {info.digest[:16]}"
    yield ""
    rows = [
        [count["split"] or "–", count["label"], count["generator"], f"{count['rows']:,}"]
        for count in info.counts
    ]
    yield from _table(["split", "label", "generator", "images"], rows, right=[3])
    if len(rows) > _MAX_ROWS:
        yield f"… and {len(rows) - _MAX_ROWS:,} more; --json shows all"
    yield ""
    for subset in info.published:
        published = subset["published"]
        message = "no published count" if published is None else f"published {published:,}"
        yield f"{subset['subset']}: {subset['rows']:,} · {message} · {_AGREES[subset['agrees']]}"
    for name, reasons in (("left out", info.left_out), ("unreadable", info.unreadable)):
        for reason in reasons:
            yield f"{name}: {reason['files']:,} × {reason['why']}, for example {reason['example']}"
    if info.repeated:
        yield f"repeated in the source, indexed once: {info.repeated:,}"


def split_lines(document: Mapping[str, Any], out: str) -> Iterator[str]:
    """Yield lines on how an index of images was split, for example into `train` and `test`.

    The last lines are the commands to run next.

    Args:
        document: The content of `split.json`, which `touchstone data split` writes.
        out: The directory of the split index.
    """
    images = wording.pluralize(document["images"], "image")
    groups = wording.pluralize(document["groups"], "group")
    yield f"{images} in {groups}, the largest of {document['largest_group']:,}"
    yield ""
    fractions = document["asked"]["shares"]
    rows = [
        [
            name,
            f"{split['images']:,}",
            _percentage(split["share"]),
            _percentage(fractions.get(name)),
            f"{split['real']:,}",
            f"{split['fake']:,}",
        ]
        for name, split in document["splits"].items()
        if split["images"] or name in fractions
    ]
    yield from _table(
        ["split", "images", "share", "asked", "real", "fake"], rows, right=[1, 2, 3, 4, 5]
    )
    yield ""
    names = list(document["splits"])
    strata = [
        [
            stratum["label"],
            stratum["generator"] + (" (held out)" if stratum["held_out"] else ""),
            *(f"{stratum[name]:,}" for name in names),
        ]
        for stratum in document["strata"]
    ]
    yield from _table(["label", "generator", *names], strata, right=[2, 3, 4, 5])
    if len(strata) > _MAX_ROWS:
        yield f"… and {len(strata) - _MAX_ROWS:,} more; split.json has all"
    yield ""
    yield from document["remarks"]
    yield from _describe_leaks(document["leaks"])
    yield f"next: touchstone train configs/train/FILE.yaml --out DIR, with {{at: {out}, split: train}} and so on in its data section"
    yield f"      {shlex.join(['touchstone', 'evaluate', 'RUN', '--labels', out, '--split', 'test', '--out', 'figures'])}"


def leak_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on leaks: images, or near duplicates, that are in two splits of an index.

    `document` is the result of `check_splits`, which searches for leaks.
    """
    yield " · ".join(f"{name} {count:,}" for name, count in document["images"].items() if count)
    for leak in document["leaks"]:
        if not leak["known"]:
            yield f"not known: {leak['what']} (the index has no column that would show it)"
    lines = list(_describe_leaks(document["leaks"]))
    yield from lines or ["the splits share nothing, as far as is known"]


def _describe_leaks(leaks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for leak in leaks:
        if leak["values"]:
            between = ", ".join(f"{names}: {count:,}" for names, count in leak["between"].items())
            yield f"LEAK by {leak['what']}: {leak['images']:,} images ({between})"
            for first, second in leak["examples"]:
                yield f"  {first}"
                yield f"  = {second}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    return list(table(header, rows[:_MAX_ROWS], terminal_width(UNLIMITED), right=right))


def _percentage(fraction: float | None) -> str:
    return wording.NONE if fraction is None else f"{fraction:.1%}"
