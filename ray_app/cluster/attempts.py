"""Counts the workers that died while they worked on one block, so that a block that kills its worker is not begun for ever (`Attempts`)."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_app.errors import ClusterError, is_want_of_memory, said
from ray_app.storage.lease import is_running, own_process

MOST_DEATHS = 3
OUT_OF_MEMORY_HINT = (
    "fewer processes per machine need less: --set cluster.workers=… resumes; "
    "so do smaller batches, --set batch_slots=…, but they need a new --out, since they belong to the run's identity"
)


class Attempts:
    """The attempts on this machine, noted in a folder of its own disk.

    Ray restarts a worker and repeats its block without end. An attempt leaves a file beside the decoder's crash markers while it lasts;
    the files of processes that are gone are the deaths.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "attempts"

    @contextmanager
    def of(self, key: str, what: str) -> Iterator[None]:
        """Inside, `what` is being tried. Raises ClusterError, before anything is tried, when it has killed `MOST_DEATHS` processes,
        and when memory is not enough.
        """
        place = self._folder / key
        place.mkdir(parents=True, exist_ok=True)
        if (deaths := sum(map(_is_of_dead_process, place.iterdir()))) >= MOST_DEATHS:
            raise ClusterError(
                f"{what}: {deaths} workers died in the middle of it, most likely for want of memory", hint=OUT_OF_MEMORY_HINT
            )
        pid, started = own_process()
        note = place / f"{pid}-{started}"
        note.touch()
        try:
            yield
        except Exception as error:
            if is_want_of_memory(error):
                raise ClusterError(f"{what}: out of memory ({said(error)})", hint=OUT_OF_MEMORY_HINT) from error
            raise
        finally:
            note.unlink(missing_ok=True)
            with suppress(OSError):  # it stays while it holds notes of the dead
                place.rmdir()


def _is_of_dead_process(note: Path) -> bool:
    pid, _, started = note.name.partition("-")
    return not is_running(int(pid), started)
