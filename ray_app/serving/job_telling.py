"""Tells a job's webhook that it has ended, at least once. Knows when that is done; what is sent, and how, is webhooks.py's."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ray_app.serving.job_record import JobRecord
from ray_app.serving.job_scoring import UrlFetcher
from ray_app.serving.webhooks import deliver

Notify = Callable[[str, bytes], Awaitable[object]]
"""(url, a Job as JSON): tells a webhook, with whatever retries it wants."""

_log = logging.getLogger(__name__)


def signed_delivery(fetcher: UrlFetcher | None, secret: str | None) -> Notify | None:
    """What tells webhooks, signed with `secret`; None where they are off."""
    if secret is None or fetcher is None:
        return None

    async def notify(url: str, job: bytes) -> object:
        return await deliver(fetcher.post, url, job, secret)

    return notify


class Telling:
    """Tells in the background; `told(record)` is called once nobody is left to tell. Without `notify` it tells nobody."""

    def __init__(self, notify: Notify | None, told: Callable[[JobRecord], Awaitable[None]]) -> None:
        self._notify, self._on_told = notify, told
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, record: JobRecord) -> None:
        """Begin, if the job has a webhook that was not told yet."""
        if self._notify is not None and record.webhook is not None and not self._is_closed:
            task = asyncio.create_task(self._tell(record, record.webhook, self._notify))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop. A record that was not told yet still says so, to the next process."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tell(self, record: JobRecord, url: str, notify: Notify) -> None:
        try:
            outcome = await notify(url, record.answer().model_dump_json().encode())
            _log.info("job_told job=%s outcome=%s", record.id, outcome)
        except Exception as error:  # the job is done, whatever its webhook does
            _log.warning("job_not_told job=%s fault=%s", record.id, type(error).__name__)
        record.webhook = None
        await self._on_told(record)
