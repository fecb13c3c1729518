"""Small pictures of a few images of a run, read from their archive again (`pictures_of`), within a
time limit and in child processes.

Reports show them: an image that is gone, may not be read, or does not decode any more has words in
their place.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ray_app.archives import ManifestMember, MemberReader, guard_of
from ray_app.errors import InputError, describe_error
from ray_app.inference.small_pictures import PictureSize, SmallPictures
from ray_app.reports.format import meaning
from ray_app.runs import RunDirectory, current
from ray_app.storage import Fetcher, RetryPolicy

SMALL = PictureSize(side_px=240, most_bytes=10_000)
MOST = 12  # pictures of a report
SECONDS = 30.0  # for all of them together
_PATIENCE = RetryPolicy(attempts=2, deadline_s=10.0)  # for one file
_THREADS = 4
_LATE = "not read in time"


def pictures_of(
    run: RunDirectory, rows: Sequence[Mapping[str, Any]], *, seconds: float = SECONDS
) -> dict[int, bytes | str]:
    """By image_id a JPEG, or in words why there is none. `rows` have image_id, uri and member; they
    are read as the run listed them. Where a row has `sha256`, no other file is shown in its place.

    A file is not read if it changed since, unless the run is so large that its entry in the listing
    is not found within a third of the time: then a file by itself is shown as it is, and one in a
    container is not shown.
    """
    if not rows:
        return {}
    ends = time.monotonic() + seconds
    # The digest of a plain file shows whether it is still the one that was scored: its entry in the
    # listings is not needed.
    sought = {row["image_id"] for row in rows if row["member"] is not None or not row.get("sha256")}
    listed = current.members_of(run, sought, seconds=seconds / 3) if sought else {}
    fetcher, limits = Fetcher(_PATIENCE, guard=guard_of(run.store)), run.limits()
    found: dict[int, bytes | str] = {row["image_id"]: _LATE for row in rows}
    digests = {row["image_id"]: row.get("sha256") for row in rows}
    waiting, made = SimpleQueue[ManifestMember](), SimpleQueue[tuple[int, bytes | str]]()
    for row in rows:
        member = listed.get(row["image_id"]) or _by_itself(row)
        if member is None:
            made.put(
                (row["image_id"], "not looked for in its container: the run is too large for that")
            )
        else:
            waiting.put(member)
    with closing(SmallPictures(limits, SMALL)) as pictures:

        def work() -> None:
            with suppress(Empty):
                while time.monotonic() < ends:
                    member = waiting.get_nowait()
                    made.put(
                        (
                            member.image_id,
                            _picture(
                                fetcher,
                                member,
                                limits.max_bytes,
                                pictures,
                                digests[member.image_id],
                            ),
                        )
                    )

        for _ in range(_THREADS):  # what hangs in one of them ends with the process
            Thread(target=work, name="pictures", daemon=True).start()
        with suppress(Empty):
            for _ in rows:
                image_id, picture = made.get(timeout=max(ends - time.monotonic(), 0.0))
                found[image_id] = picture
    return found


def why_not(refused: InputError) -> str:
    """Why an image has no picture."""
    said = meaning(refused.status) or str(refused.status)
    return f"{said}: {refused.detail}" if refused.detail else said


def _by_itself(row: Mapping[str, Any]) -> ManifestMember | None:
    if row["member"] is not None:
        return None
    return ManifestMember(
        row["image_id"], row["uri"], None, 0, version="", size_bytes=-1, block=0, slot=0, input={}
    )


def _picture(
    fetcher: Fetcher,
    member: ManifestMember,
    max_bytes: int,
    pictures: SmallPictures,
    sha256: str | None,
) -> bytes | str:
    """A picture, or why there is none: whatever it is, it must not cost the report."""
    try:
        if member.place is None:
            picture, digest = pictures.of(fetcher.fetch(member.uri, member.version, max_bytes))
        else:
            ((_, data),) = MemberReader(fetcher, max_bytes=max_bytes).read([member])
            if isinstance(data, InputError):
                return why_not(data)
            picture, digest = pictures.of(data)
    except InputError as refused:
        return why_not(refused)
    except Exception as error:
        return describe_error(error)
    return (
        picture
        if sha256 in (None, digest)
        else f"the file is another one now: its SHA-256 is {digest}"
    )
