"""The end of `pack` and `filter` in words, for a terminal. Knows the figures of a summary and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray_app.packing.directory import FROM_STORAGE
from ray_app.reports import wording

_WIDTH = 11
_SHARDS = {"parquet": "Parquet", "webdataset": "WebDataset"}


def pack_lines(summary: Mapping[str, Any]) -> list[str]:
    """What was packed, what was not and where that is listed, and how to read the shards."""
    return [f"{label:{_WIDTH}}{text}" for label, text in _packed(summary)]


def filter_lines(summary: Mapping[str, Any]) -> list[str]:
    """What went and why that is known, what stayed and where it is."""
    drop = " or ".join(_DROPPED[word] for word in summary["drop"])
    out = wording.visible(summary["out"])
    lines = [
        ("removed", f"{summary['removed']:,} of {wording.counted(summary['current'], 'member')}: {drop}; reasons in {out}/removed.csv"),
        ("kept", f"{summary['kept']:,}" + (f", listed in {out}/kept.parquet and kept.csv" if summary["form"] == "list" else "")),
        *(_packed(summary) if summary["form"] != "list" else []),
        ("", "nothing was deleted: the removal list is for you to act on"),
    ]
    return [f"{label:{_WIDTH}}{text}".rstrip() for label, text in lines]


_DROPPED = {"fake": "flagged as fake", "abstain": "abstained", "failed": "without a score"}


def _packed(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    out = wording.visible(summary["out"])
    shards = wording.counted(summary["shards"], f"{_SHARDS[summary['form']]} shard")
    members = wording.counted(summary["members"], "member")
    yield "packed", f"{summary['packed']:,} of {members} into {shards} in {out}/data, {wording.size(summary['size_bytes'])}"
    if none := summary["formats"].get("none"):
        yield (
            "no image",
            f"{none:,} of these are in no image format that Touchstone reads (source.format is null); their bytes are packed as they are",
        )
    if summary["unpacked"]:
        yield "unpacked", f"{summary['unpacked']:,}, listed with reasons in {out}/unpacked.parquet"
        for status, number in summary["statuses"].items():
            yield "", f"{number:,} {status}: {wording.meaning(status)}"
        if not FROM_STORAGE.isdisjoint(summary["statuses"]):
            yield "", "--retry tries again those that the storage did not give"
    if summary["form"] == "parquet":
        yield "read", f"datasets.load_dataset({out!r})"
    elif summary["shards"]:
        count = summary["shards"]
        last = f"{{00000..{count - 1:05}}}" if count > 1 else "00000"
        yield "read", f"webdataset.WebDataset({f'{out}/data/train-{last}-of-{count:05}.tar'!r}, shardshuffle=False)"
