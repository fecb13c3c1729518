"""Two thousand files on S3 overnight, a kill, the morning's list, and a second night: no file is
lost, none is scored twice.
"""

import csv
import io
import re
import signal
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.photographs import write_photographs
from tests.make.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

SOURCE, RUN = "s3://press/2026", "s3://press/run"
HERE = {"s3://bucket/archive": SOURCE, "s3://bucket/daily": RUN, "default": "tiny"}
NIGHT = ("docs/continuing.md", "touchstone score --out --config overnight", HERE)
FILES, CUT = 2000, 30
PICTURES_OF_A_REPORT = 12


@pytest.fixture(scope="module")
def archive(sample, tmp_path_factory):
    """{key: bytes} of 2,000 pictures: the sample, photographs, of which 30 are cut, and three zips
    of them; and {key: its members}.
    """
    objects = {
        str(path.relative_to(sample / "archive")): path.read_bytes()
        for path in (sample / "archive").rglob("*")
        if path.is_file()
    }
    folder = tmp_path_factory.mktemp("photographs")
    photographs = [
        path.read_bytes()
        for path in write_photographs(folder, FILES - len(objects), size=(256, 256))
    ]
    zipped, loose = photographs[:300], photographs[300:]
    objects |= {
        f"crawl/{number // 100:02}/{number:04}.jpg": data for number, data in enumerate(loose)
    }
    for number in range(CUT):
        objects[f"crawl/00/{number:04}.jpg"] = loose[number][: len(loose[number]) // 2]
    members = {key: [""] for key in objects}
    for number in range(3):
        stored, key = io.BytesIO(), f"feed/{number}.zip"
        members[key] = [f"{one:03}.jpg" for one in range(100)]
        with zipfile.ZipFile(stored, "w") as opened:
            for name, data in zip(members[key], zipped[100 * number :], strict=False):
                opened.writestr(name, data)
        objects[key] = stored.getvalue()
    return objects, members


def put(client, objects):
    with ThreadPoolExecutor(8) as threads:
        list(
            threads.map(
                lambda one: client.put_object(Bucket="press", Key=f"2026/{one[0]}", Body=one[1]),
                objects.items(),
            )
        )


def rows_of(owner):
    """{(key, member): row} of the table that the run gives; no file has two rows."""
    owner.types("README.md", "touchstone results run --out verdicts.csv", {"run": RUN})
    with (owner.folder / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["uri"].removeprefix(f"{SOURCE}/"), row["member"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def files_of(members):
    return {(key, member) for key, inside in members.items() for member in inside}


def done_before(told):
    """How many files a run says were done before."""
    return int(re.search(r"([\d,]+)(?: files?)? done before", told)[1].replace(",", ""))


def test_no_file_is_lost_by_a_kill_and_by_the_next_night(person, archive, s3):
    (objects, members), client = archive, s3.client()
    s3.bucket("press")
    put(client, objects)
    planned = person.types(
        "docs/index.md", "touchstone plan", {"archive/": f"{SOURCE} --ensemble tiny"}
    ).stdout
    assert f"{FILES:,} files" in planned
    assert "300 zip in 3 files" in planned

    def committed():
        return client.list_objects_v2(Bucket="press", Prefix="run/parts/").get("KeyCount", 0)

    with person.begins(*NIGHT) as begun:
        wait_until(lambda: begun.runs() and committed() >= 3)
        begun.process.kill()
        assert begun.process.wait() == -signal.SIGKILL
        assert done_before(begun.log.read_text()) == 0
    scored = person.types(*NIGHT)
    assert 0 < done_before(scored.stderr) < FILES
    assert f"{FILES:,} files: " in scored.stdout

    rows = rows_of(person)
    assert set(rows) == files_of(members)
    assert Counter(row["status"] for row in rows.values()) == {
        "ok": FILES - CUT - 3, "truncated_image": CUT + 1, "empty_file": 1, "unsupported_format": 1,
    }  # fmt: skip
    found = person.types(
        "README.md", "touchstone results --verdict fake --sort -score", {"run": RUN}
    ).stdout
    assert f"in {SOURCE}/" in found
    person.types(
        "docs/tutorials/archive-overnight.md", "touchstone runs report --prior", {"run": RUN}
    )
    assert b"</html>" in client.get_object(Bucket="press", Key="run/report.html")["Body"].read()

    new = {
        f"monday/{number}.jpg": objects[f"crawl/01/{100 + number:04}.jpg"] for number in range(40)
    }
    changed = {
        f"crawl/02/{200 + number:04}.jpg": objects[f"crawl/03/{300 + number:04}.jpg"]
        for number in range(5)
    }
    gone = [f"crawl/04/{400 + number:04}.jpg" for number in range(10)]
    put(client, new | changed)
    for key in gone:
        client.delete_object(Bucket="press", Key=f"2026/{key}")
    s3.clear_log()
    person.types(*NIGHT)
    fetched = {
        path.removeprefix("/press/2026/")
        for method, path in s3.requests()
        if method == "GET" and path.startswith("/press/2026/")
    }
    assert set(new) | set(changed) <= fetched
    # of a zip the list of its files is read
    again = {key for key in fetched - set(new) - set(changed) if not key.endswith(".zip")}
    assert len(again) <= PICTURES_OF_A_REPORT
    later, members = (
        rows_of(person),
        {key: inside for key, inside in members.items() if key not in gone}
        | {key: [""] for key in new},
    )
    assert set(later) == files_of(members)
    assert {
        file: row["score"]
        for file, row in later.items()
        if file[0] not in new and file[0] not in changed
    } == {
        file: row["score"]
        for file, row in rows.items()
        if file[0] not in gone and file[0] not in changed
    }
