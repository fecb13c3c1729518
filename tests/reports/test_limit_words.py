"""What limits refused is said loudly once it is more than one member in a hundred."""

import pyarrow as pa
import pytest

from ray_app.errors import InputError, Status
from ray_app.images import BatchLimits
from ray_app.reports import render_run_report, summary_lines
from ray_app.runs import row_schema, summarise
from ray_app.storage.errors import too_large
from tests.reports.example import example_summary

GB = 10**9


def told(refused, **changes):
    identity = {"limits": BatchLimits().model_dump(mode="json")}
    memory = {"processes": 2, "process_bytes": GB, "decode_bytes": 4 * GB, "file_bytes": GB, "total_bytes": 7 * GB}
    summary = example_summary(refused_by_limits=refused, identity=identity, **changes)
    summary["session"] = {**summary["session"], "memory": memory, "peak_worker_bytes": GB}
    return summary


def test_one_in_a_hundred_is_not_loud():
    assert not [line for line in summary_lines(told({"max_pixels": 30})) if "LIMITS" in line]
    assert "imits refused" not in render_run_report(told({"max_pixels": 30}))


def test_more_name_each_limit_its_number_how_to_raise_it_and_the_memory():
    summary = told({"max_pixels": 25, "max_bytes": 4, "decode_bytes": 3, "container_limits.max_ratio": 2})
    text = "\n".join(summary_lines(summary))
    assert "\nLIMITS REFUSED 1.1 % OF THE ARCHIVE, 34 MEMBERS" in text
    assert "max_pixels (250,000,000): 25 members with more pixels; --set limits.max_pixels=500000000 admits more" in text
    assert "decoding takes 4 to 24 bytes of memory for each pixel" in text
    assert "max_bytes (536,870,912): 4 members with more bytes in one file; --set limits.max_bytes=1073741824" in text
    assert "decode_bytes (4.0 GB of a node): 3 members would have taken more memory" in text
    assert "--retry image_too_large --set cluster.decode_bytes=8000000000" in text
    assert "container_limits.max_ratio: 2 members; --set container_limits.max_ratio=… raises it" in text
    assert "memory: at most 1.0 GB in one worker of at most 7.0 GB on a node" in text
    page = render_run_report(summary)
    assert "Limits refused 1.1 % of the archive, 34 members" in page
    assert "--set limits.max_pixels=500000000" in page


def test_linked_folders_are_said():
    for summary in (example_summary(), example_summary(linked_folders={"count": 0, "example": ""})):
        assert "linked" not in "\n".join(summary_lines(summary)) + render_run_report(summary)
    summary = example_summary(linked_folders={"count": 3, "example": "/photos/x\u202e"})
    line = "3 linked folders are not followed, e.g. /photos/x\\u202e: name them as sources of their own to score what is in there"
    assert f"not listed: {line}" in summary_lines(summary)
    assert line in render_run_report(summary)


def refusals():
    """What intake itself says of each limit."""
    limits = BatchLimits()
    for size in (
        (20_000, 20_000, 10**9, "JPEG"),
        (12_000, 12_000, 10**9, "PNG"),
        (70_000, 1000, 10**9),
        (65_000, 600, 10**9),
        (8000, 8000, 9),
    ):
        with pytest.raises(InputError) as caught:
            limits.check_size(*size)
        yield caught.value
    with pytest.raises(InputError) as caught:
        limits.check_bytes(2**30)
    yield caught.value
    yield too_large(2**30, 2**29)


def test_a_summary_counts_each_limit_by_what_rows_say():
    schema = row_schema([])
    rows = [{"status": refusal.status.value, "detail": refusal.detail} for refusal in refusals()]
    rows += [{"status": Status.CORRUPT_IMAGE.value, "detail": "over max_pixels, says a hostile file"}, {"status": "ok", "detail": None}]
    empty = {name: None for name in schema.names}
    table = pa.Table.from_pylist(
        [{**empty, **row, "reused": False} for row in rows], schema=pa.schema([f.with_nullable(True) for f in schema])
    )
    counted = summarise([table], [])["refused_by_limits"]
    assert counted == {"max_bytes": 2, "max_pixels": 1, "max_whole_pixels": 1, "max_side": 1, "max_aspect": 1, "max_ratio": 1}
