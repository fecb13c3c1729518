"""List an archive in a separate process, which writes a manifest of a run (`ListingProcess`).

The command that scores is the parent of the listing process. The parent learns from the manifest
alone which members are listed. The listing process ends when its parent dies. It writes under the
number of its parent's lease, the claim on the run directory. So a listing process that is left from
an earlier command cannot change the run.

`python -P -m ray_app.archives.listing` reads a `ListingRequest` as one line of JSON from stdin,
which the parent keeps open, and writes its `ListingOutcome` to stdout.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, TypeVar

from pydantic import Field

from ray_app import errors
from ray_app.archives.build import ListingOptions, finish_manifest, list_portions
from ray_app.archives.containers import ContainerLimits
from ray_app.archives.dedup import IdTable
from ray_app.archives.manifest import ManifestInfo, read_last_listing
from ray_app.archives.members import BlockPlan, TableColumns
from ray_app.archives.progress import ProgressLog
from ray_app.archives.sources import open_source
from ray_app.child_process import environment_without_secrets
from ray_app.config import Frozen
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.storage import Store

T = TypeVar("T")
R = TypeVar("R")
_THREADS = 16  # Sections and containers that are read at once.
_EXIT_TIMEOUT_S = 5.0  # For a process that was asked to end.
_MAX_RETRY_DELAY_S = 30.0  # Before a source that failed is listed again.


class ListingRequest(Frozen):
    """The archive that a listing process lists, and the run that gets the manifests."""

    run: str = Field(description="URL of the run directory")
    lease: int = Field(description="number of the parent's claim on the run directory")
    sources: tuple[str, ...] = Field(description="sources as the user gave them")
    include: tuple[str, ...] = Field(default=(), description="patterns of paths to list")
    exclude: tuple[str, ...] = Field(default=(), description="patterns of paths to leave out")
    skip: tuple[str, ...] = Field(default=(), description="URLs that are never listed")
    columns: TableColumns = Field(
        default=TableColumns(), description="columns of images or uris that the user named"
    )
    limits: ContainerLimits = Field(
        default=ContainerLimits(), description="limits on the files and size of a container"
    )
    allow_private: bool = Field(
        default=False, description="whether lists may name any web server, also in private networks"
    )
    limit: int | None = Field(default=None, description="maximum members to list; null: no limit")
    plan: BlockPlan = Field(description="sizes of blocks")
    every_s: float | None = Field(
        default=None,
        description="seconds between listings, which repeat until the parent ends the process; "
        "null: list once",
    )


class ListingOutcome(Frozen):
    """The result of a listing process: the counts of its manifest, or the error that ended it."""

    seconds: float = Field(default=0.0, description="seconds that the listing took")
    members: int = Field(
        default=0,
        description="members of the manifest that the listing completed, 0 if none is new",
    )
    blocks: int = Field(default=0, description="blocks of that manifest")
    error: str | None = Field(
        default=None, description="name of an exception of `ray_app.errors` that ended the listing"
    )
    message: str = Field(default="", description="message of the error")
    hint: str | None = Field(default=None, description="hint of the error")


class ListingProcess:
    """Starts and watches a process that lists an archive into the manifests of a run.

    Use it as a context manager, which starts and ends the process.

    Args:
        request: The archive to list, and the run that gets the manifests.
    """

    def __init__(self, request: ListingRequest) -> None:
        self._request = request
        self._child: subprocess.Popen[bytes] | None = None
        self._outcome: ListingOutcome | None = None

    def __enter__(self) -> "ListingProcess":
        command = [sys.executable, "-P", "-m", "ray_app.archives.listing"]
        # The process has its own session, because Ctrl-C is for the parent, which ends this
        # process.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment_without_secrets(),
            start_new_session=True,
        )
        assert self._child.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # The process died at once, which `result` reports.
            self._child.stdin.write(self._request.model_dump_json().encode() + b"\n")
            self._child.stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        child, self._child = self._child, None
        assert child is not None, "it was started"
        with suppress(BrokenPipeError):
            assert child.stdin is not None, "it is a pipe"
            child.stdin.close()
        try:
            child.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdout is not None, "it is a pipe"
        child.stdout.close()

    @property
    def is_running(self) -> bool:
        """Whether the listing process is still running."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the listing process."""
        assert self._child is not None, "it was started"
        return self._child.pid

    def result(self) -> ListingOutcome:
        """Return the result of the listing. Call this after the process has ended.

        Raises:
            TouchstoneError: The error that ended the listing early.
            ClusterError: The process ended without a result.
        """
        outcome = self._read_outcome()
        if outcome.error is not None:
            kind = getattr(errors, outcome.error, TouchstoneError)
            raise kind(outcome.message, hint=outcome.hint)
        return outcome

    def _read_outcome(self) -> ListingOutcome:
        child = self._child
        assert child is not None, "it was started"
        assert child.stdout is not None, "it is a pipe"
        if self._outcome is None:
            output = child.stdout.read()
            if not output:
                raise ClusterError(
                    f"the process that lists the archive ended with code {child.wait()}",
                    hint="run the same command again to continue the listing",
                )
            self._outcome = ListingOutcome.model_validate_json(output)
        return self._outcome


def list_archive(
    request: ListingRequest, print_progress: Callable[[int], object]
) -> ManifestInfo | None:
    """List an archive, and write its manifest (the list of its members) in portions.

    A portion can be scored while the listing continues. If `every_s` of the request is set, the
    archive is listed again and again, and the function does not return. Each listing then adds the
    new members to the run's open manifest. The scoring process, not this function, completes the
    manifest. If a source fails and the run already has listed members, the error is printed and the
    listing is repeated.

    Args:
        request: The archive and the run.
        print_progress: Called with the number of members listed so far.

    Returns:
        The info of the complete manifest; None if nothing is new.

    Raises:
        ConfigError: The archive is empty, or columns of its tables clash.
        StorageError: A source or the run directory is unreachable.
    """
    store = Store.open(request.run)
    archive = open_source(
        request.sources,
        request.include,
        request.exclude,
        skip=request.skip,
        columns=request.columns,
        limits=request.limits,
        allow_private=request.allow_private,
    )
    options: ListingOptions = {
        "each": _in_threads,
        "progress": print_progress,
        "lease": request.lease,
        "limit": request.limit,
    }
    with IdTable(store) as ids:
        if request.every_s is None:
            for _ in list_portions(store, archive, request.plan, ids, **options):
                pass
            return finish_manifest(store, request.lease)
        while True:
            try:
                for _ in list_portions(store, archive, request.plan, ids, **options):
                    pass
                time.sleep(request.every_s)
            except (errors.ConfigError, errors.StorageError) as error:
                if read_last_listing(store) is None:
                    raise
                print(f"following: {error}; retrying the listing", file=sys.stderr, flush=True)
                time.sleep(min(request.every_s, _MAX_RETRY_DELAY_S))


def _in_threads(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """Yield the results in the order of the items, from a few threads."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="listing") as threads:
        yield from threads.map(function, items)


def _end_with_parent(pipe: IO[bytes]) -> None:
    """End this process once the parent closes its end of the pipe, as it does when it dies."""
    pipe.read()
    os._exit(errors.ExitCode.INTERRUPTED)


def main() -> None:
    """List the archive of the request on stdin, and write the outcome to stdout."""
    request = ListingRequest.model_validate_json(sys.stdin.buffer.readline())
    parent = threading.Thread(target=_end_with_parent, args=(sys.stdin.buffer,), daemon=True)
    parent.start()
    began, outcome = time.monotonic(), ListingOutcome()
    try:
        info = list_archive(request, ProgressLog("listing").count)
        if info is not None:
            outcome = ListingOutcome(members=info.members, blocks=info.blocks)
    except TouchstoneError as error:
        outcome = ListingOutcome(error=type(error).__name__, message=error.message, hint=error.hint)
    except Exception as error:
        outcome = ListingOutcome(
            error="TouchstoneError",
            message=f"the listing failed: {describe_error(error)}",
            hint="report this as a bug in Touchstone",
        )
    outcome = outcome.model_copy(update={"seconds": time.monotonic() - began})
    sys.stdout.write(outcome.model_dump_json())
    sys.stdout.flush()
    # Threads that still wait for a store must not delay the exit.
    os._exit(0)


if __name__ == "__main__":
    main()
