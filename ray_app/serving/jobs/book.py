"""The jobs of an endpoint: `JobBook` scores many images each, a few at a time behind the interactive requests.

Every image of a job gets one line of results, in the order of the request, whatever becomes of it.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from ray_app.errors import TouchstoneError
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import errors, schemas
from ray_app.serving.jobs import store, webhooks
from ray_app.serving.jobs.queue import (
    RETRY_AFTER_S,
    ImageScorer,
    PatientScorer,
    Sleep,
    Turns,
    UrlFetcher,
    check_request,
    check_room,
    job_of_key,
)
from ray_app.serving.jobs.record import JobRecord, PendingJob, Request

RESTARTED = "the endpoint restarted before it was done; send it again"
FAULT = "a fault of this endpoint; its log has the job's id"
START_WAIT_S = 15.0  # how long a request waits for the process that is being replaced to let go of the directory
SWEEP_S = 60.0
MOST_RECORDS = 10_000  # jobs known at once, ended ones included
_log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Wall-clock time: a job's times mean the same to the next process."""
    return datetime.now(UTC)


class JobBook:
    """Takes jobs, scores them, keeps what came of them for `keep_hours`. Lives in one event loop: `start` in it, `close` at its end.

    `fetcher` is needed where URLs or webhooks are on, else they are refused; `webhook_key` stands for the environment's.
    `notify`, `sleep` and `clock` are injected in tests.

    Raises ConfigError for a directory that cannot be opened, or webhooks without a key.
    """

    def __init__(
        self,
        config: ServeConfig,
        scorer: ImageScorer,
        fetcher: UrlFetcher | None = None,
        *,
        webhook_key: str | None = None,
        notify: webhooks.Notify | None = None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._limits, self._clock, self._scorer = config.jobs, clock, scorer
        notify = (
            (notify or webhooks.signed_delivery(fetcher, webhook_key or webhooks.webhook_secret(config.jobs)))
            if config.jobs.webhooks
            else None
        )
        self._for_webhooks = None if notify is None else fetcher
        self._telling = webhooks.WebhookSender(notify, self._note_delivered)
        self._for_urls = fetcher if config.urls.enabled else None
        self._patient = PatientScorer(scorer, fetcher, sleep=sleep)
        self._store = store.job_store(config.jobs)
        self._turns = Turns(config.jobs.concurrency, self._one_image)
        self._records: dict[str, JobRecord] = {}
        self._works: dict[str, PendingJob] = {}  # of the unfinished ones
        self._saving: dict[str, asyncio.Task[None]] = {}  # of new ones, until they are written down
        self._opening: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Take up what an earlier process left, in the background. Harmless a second time; a try that failed is tried again."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())

    async def submit(
        self,
        owner: str,
        images: Sequence[tuple[str | None, bytes]] | None = None,
        urls: Sequence[str] | None = None,
        *,
        ensemble: str | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> schemas.Job:
        """Take a job: `images` as (name, encoded bytes), or `urls`. The same owner, key and content get the same job.

        Raises Refusal: malformed_request, forbidden, url_refused, too_many_files, conflict, overloaded, not_ready.
        """
        request = Request(images, urls, ensemble, webhook)
        check_request(request, self._limits, urls=self._for_urls, webhooks=self._for_webhooks)
        await self._started()
        await self._scorer.ensemble(ensemble)
        content = await asyncio.to_thread(request.digest)
        known = job_of_key(self._records.values(), owner, idempotency_key, content, self._clock())
        record = known or self._taken(owner, request, idempotency_key, content)
        # A client that hangs up here has a job all the same, which its Idempotency-Key finds; who sends it twice waits for the first.
        if saving := self._saving.get(record.id):
            await asyncio.shield(saving)
        return record.answer()

    async def status(self, owner: str, job: str) -> schemas.Job:
        """How far it is. Raises Refusal not_found, also for what is another owner's."""
        return (await self._own(owner, job)).answer()

    async def results(self, owner: str, job: str) -> bytes:
        """JSON lines, one ImageAnswer per image, in the order of the request. Raises Refusal not_found, and conflict until it is done."""
        record = await self._own(owner, job)
        if record.state != "done":
            how_far = ", and has no results" if record.has_ended else f": {record.finished} of {record.images} images so far"
            raise errors.Refusal("conflict", f"the job is {record.state}{how_far}")
        with store.reachable():
            return await self._store.results(record)

    async def cancel(self, owner: str, job: str) -> schemas.Job:
        """End an unfinished job, or forget one that has ended; returns its last state. Raises Refusal not_found."""
        record = await self._own(owner, job)
        work = self._works.get(job)
        if work is None:
            with store.reachable():
                await self._forget(record)
            return record.answer()
        await asyncio.shield(self._end(work, "cancelled"))  # a client that hangs up leaves nothing half ended
        return self._records[job].answer()

    async def sweep(self) -> None:
        """Forget what has expired; the book does so every minute."""
        for record in [record for record in self._records.values() if record.is_over(self._clock())]:
            await self._forget(record)

    async def close(self) -> None:
        """Stop scoring and let go of the directory; unfinished jobs of URLs are there for the next process."""
        self._is_closed = True
        self._turns.close()
        await _stopped(self._opening, self._sweeping, *self._saving.values())
        for work in list(self._works.values()):
            await self._turns.stop(work)
            if work.end is not None:
                await work.end
        await self._telling.close()
        await self._store.close()

    def _taken(self, owner: str, request: Request, key: str | None, content: str) -> JobRecord:
        """A new job, with its room; its turns begin when it is written down."""
        check_room(request, self._limits, self._works.values())
        record = JobRecord.of(request, id=secrets.token_hex(16), owner=owner, key=key, content=content, created_at=self._clock())
        self._records[record.id], self._works[record.id] = record, PendingJob.of(record, request)
        self._saving[record.id] = asyncio.create_task(self._save_new(record))
        return record

    async def _save_new(self, record: JobRecord) -> None:
        try:
            with store.reachable():
                await self._store.save(record)
            self._turns.add(self._works[record.id])
            _log.info("job_taken job=%s images=%d", record.id, record.images)
        except BaseException:
            del self._records[record.id], self._works[record.id]
            raise
        finally:
            del self._saving[record.id]

    async def _one_image(self, work: PendingJob, index: int) -> None:
        record, source = work.record, work.inputs[index]
        record.state = "running"
        assert source is not None
        try:
            answer = await self._patient.answer(
                source, name=work.labels[index], ensemble=record.ensemble, request_id=f"{record.id}-{index}"
            )
            self._turns.is_scored(work)
            line = answer.model_dump_json().encode()
            await self._store.add_line(record, index, line)
            work.take(index, answer, line)
            if work.is_complete:
                self._end(work, "done")
        except errors.Refusal as refused:
            self._end(work, "failed", refused.message)
        except Exception:
            _log.exception("job_image_failed job=%s image=%d", record.id, index)
            self._end(work, "failed", FAULT)

    def _end(self, work: PendingJob, state: schemas.JobState, detail: str | None = None) -> asyncio.Task[None]:
        """End it once: the first to say how is heard."""
        if work.end is None:
            work.end = asyncio.create_task(self._wind_up(work, state, detail))
        return work.end

    async def _wind_up(self, work: PendingJob, state: schemas.JobState, detail: str | None) -> None:
        await self._turns.stop(work)
        record, now = work.record, self._clock()
        expires_at = now + timedelta(hours=self._limits.keep_hours)
        ended = record.ended(state, detail, now, expires_at)
        try:
            await self._store.finish(ended, await asyncio.to_thread(work.results) if state == "done" else None)
        except Exception:
            _log.exception("job_end_not_kept job=%s state=%s", record.id, state)
            if state == "done":
                ended = record.ended("failed", FAULT, now, expires_at)
        self._records[record.id] = ended
        del self._works[record.id]
        _log.info("job_ended job=%s state=%s images=%d", ended.id, ended.state, ended.finished)
        await self._make_room(ended)
        self._telling.tell(ended)

    async def _make_room(self, latest: JobRecord) -> None:
        """Ended jobs are forgotten before their time, the oldest first, where their results or they themselves are too many."""
        while self._store.is_crowded() or len(self._records) > MOST_RECORDS:
            oldest = next((record for record in self._records.values() if record.has_ended and record is not latest), None)
            if oldest is None:
                return
            await self._forget(oldest)

    async def _note_delivered(self, record: JobRecord) -> None:
        with suppress(TouchstoneError):  # at worst it is delivered again after a restart
            if record.id in self._records:
                await self._store.save(record)
            if record.id not in self._records:  # forgotten meanwhile
                await self._store.forget(record)

    async def _forget(self, record: JobRecord) -> None:
        await self._store.forget(record)
        self._records.pop(record.id, None)

    async def _open(self) -> None:
        for record, lines in await self._store.open():
            self._records[record.id] = record
            if record.has_ended:
                self._telling.tell(record)
            elif record.urls is None or self._for_urls is None:
                self._works[record.id] = work = PendingJob.lost(record)
                self._end(work, "failed", RESTARTED)
            else:
                self._works[record.id] = work = PendingJob.resumed(record, lines)
                self._turns.add(work)
                if work.is_complete:
                    self._end(work, "done")
        self._sweeping = asyncio.create_task(self._sweep_always())

    async def _sweep_always(self) -> None:
        while True:
            try:
                await self.sweep()
            except TouchstoneError as error:
                _log.warning("job_sweep_failed reason=%r", error.message)
            await asyncio.sleep(SWEEP_S)

    async def _started(self) -> None:
        if not self._is_closed:
            self.start()
        assert self._opening is not None
        await asyncio.wait({self._opening}, timeout=START_WAIT_S)
        if self._is_closed or not self._opening.done():
            raise errors.Refusal("not_ready", "jobs are being moved to another process", headers={"Retry-After": str(RETRY_AFTER_S)})
        with store.reachable():
            self._opening.result()

    async def _own(self, owner: str, job: str) -> JobRecord:
        await self._started()
        record = self._records.get(job)
        if record is None or record.owner != owner or record.is_over(self._clock()):
            raise errors.Refusal("not_found", "no such job")
        return record


async def _stopped(*tasks: asyncio.Task[None] | None) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
