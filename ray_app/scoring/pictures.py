"""Create thumbnails of a few images of a run, which are read from the archive (`load_thumbnails`).

Child processes decode the images, within a time limit. If an image is missing, may not be read, or
no longer decodes, reports show the reason instead.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ray_app.archives import ManifestMember, MemberReader, load_guard
from ray_app.errors import InputError, describe_error
from ray_app.inference.small_pictures import ThumbnailLimits, ThumbnailMaker
from ray_app.reports.format import describe_status
from ray_app.runs import RunDirectory, current
from ray_app.storage import Fetcher, RetryPolicy

SMALL = ThumbnailLimits(side_px=240, max_bytes=10_000)
MAX_THUMBNAILS = 12  # Thumbnails of a report.
TIMEOUT_S = 30.0  # For all of them together.
_RETRY_POLICY = RetryPolicy(attempts=2, deadline_s=10.0)  # For one file.
_THREADS = 4
_LATE = "not read in time"


def load_thumbnails(
    run: RunDirectory, rows: Sequence[Mapping[str, Any]], *, seconds: float = TIMEOUT_S
) -> dict[int, bytes | str]:
    """Create thumbnails of images of a run, from the files in the archive.

    A file that was changed after scoring is not shown. The change is detected by the digest
    `sha256` of the row, or else by the version of the file in the run's listing. In a very large
    run, the entry of the listing may not be found within a third of `seconds`. A plain file without
    a digest is then shown without the check, and a file in a container is not shown.

    Args:
        run: The run.
        rows: Rows with `image_id`, `uri` and `member`. If a row has `sha256`, only a file with this
            digest is shown.
        seconds: The maximum seconds for all rows.

    Returns:
        By image id, the thumbnail as JPEG, or the reason why there is none.
    """
    if not rows:
        return {}
    deadline = time.monotonic() + seconds
    # For a plain file with a digest, the entry in the listing is not needed: the digest shows whether
    # the file was changed.
    wanted_ids = {
        row["image_id"] for row in rows if row["member"] is not None or not row.get("sha256")
    }
    listed = current.find_members(run, wanted_ids, seconds=seconds / 3) if wanted_ids else {}
    fetcher, limits = Fetcher(_RETRY_POLICY, guard=load_guard(run.store)), run.limits()
    thumbnails: dict[int, bytes | str] = {row["image_id"]: _LATE for row in rows}
    digests = {row["image_id"]: row.get("sha256") for row in rows}
    waiting, results = SimpleQueue[ManifestMember](), SimpleQueue[tuple[int, bytes | str]]()
    for row in rows:
        member = listed.get(row["image_id"]) or _plain_member(row)
        if member is None:
            results.put(
                (row["image_id"], "not searched in its container: the run is too large for that")
            )
        else:
            waiting.put(member)
    with closing(ThumbnailMaker(limits, SMALL)) as pictures:

        def work() -> None:
            with suppress(Empty):
                while time.monotonic() < deadline:
                    member = waiting.get_nowait()
                    results.put(
                        (
                            member.image_id,
                            _load_thumbnail(
                                fetcher,
                                member,
                                limits.max_bytes,
                                pictures,
                                digests[member.image_id],
                            ),
                        )
                    )

        for _ in range(_THREADS):  # A thread that hangs ends with the process.
            Thread(target=work, name="pictures", daemon=True).start()
        with suppress(Empty):
            for _ in rows:
                image_id, picture = results.get(timeout=max(deadline - time.monotonic(), 0.0))
                thumbnails[image_id] = picture
    return thumbnails


def describe_missing(error: InputError) -> str:
    """Return the reason why an image has no thumbnail."""
    text = describe_status(error.status) or str(error.status)
    return f"{text}: {error.detail}" if error.detail else text


def _plain_member(row: Mapping[str, Any]) -> ManifestMember | None:
    if row["member"] is not None:
        return None
    return ManifestMember(
        row["image_id"], row["uri"], None, 0, version="", size_bytes=-1, block=0, slot=0, input={}
    )


def _load_thumbnail(
    fetcher: Fetcher,
    member: ManifestMember,
    max_bytes: int,
    pictures: ThumbnailMaker,
    sha256: str | None,
) -> bytes | str:
    """Return a thumbnail or the reason why there is none, whatever happens."""
    try:
        if member.place is None:
            picture, digest = pictures.make(fetcher.fetch(member.uri, member.version, max_bytes))
        else:
            ((_, data),) = MemberReader(fetcher, max_bytes=max_bytes).read([member])
            if isinstance(data, InputError):
                return describe_missing(data)
            picture, digest = pictures.make(data)
    except InputError as error:
        return describe_missing(error)
    except Exception as error:
        return describe_error(error)
    return (
        picture
        if sha256 in (None, digest)
        else f"the file was changed: its SHA-256 is now {digest}"
    )
