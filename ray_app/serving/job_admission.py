"""Whether a job is taken. Knows the limits and what is there already; changes nothing."""

from collections.abc import Iterable
from datetime import datetime

from ray_app.serving.config import JobLimits
from ray_app.serving.http.errors import Refusal
from ray_app.serving.job_record import JobRecord, Request, Work
from ray_app.serving.job_scoring import UrlFetcher

RETRY_AFTER_S = 10


def check_request(request: Request, limits: JobLimits, *, urls: UrlFetcher | None, webhooks: UrlFetcher | None) -> None:
    """`urls` and `webhooks`: what asks them, None where they are switched off.

    Raises Refusal for what this endpoint would never take: malformed_request, forbidden, url_refused, too_many_files."""
    images = len(request.labels)
    if (request.images is None) == (request.urls is None) or not images:
        raise Refusal("malformed_request", "a job has images, or URLs, and at least one")
    if request.urls is not None and urls is None:
        raise Refusal("forbidden", "fetching by URL is switched off")
    if request.webhook is not None:
        if webhooks is None:
            raise Refusal("forbidden", "webhooks are switched off")
        webhooks.check(request.webhook)
    if images > limits.max_images:
        raise Refusal("too_many_files", "more images than one job may have", limit=limits.max_images, observed=images)


def check_room(request: Request, limits: JobLimits, unfinished: Iterable[Work]) -> None:
    """Raises Refusal overloaded where the jobs that are not done leave no place for this one."""
    works = list(unfinished)
    waiting = request.size_bytes + sum(work.size_bytes for work in works)
    for limit, observed, what in ((limits.max_jobs, len(works) + 1, "jobs"), (limits.max_waiting_bytes, waiting, "bytes of images")):
        if observed > limit:
            later = {"Retry-After": str(RETRY_AFTER_S)}
            raise Refusal("overloaded", f"too many {what} are waiting", limit=limit, observed=observed, headers=later)


def job_of_key(records: Iterable[JobRecord], owner: str, key: str | None, content: str, now: datetime) -> JobRecord | None:
    """The job that this owner's Idempotency-Key stands for already. Raises Refusal conflict where it came with other content."""
    for record in records:
        if key is not None and (record.owner, record.key) == (owner, key) and not record.is_over(now):
            if record.content != content:
                raise Refusal("conflict", "this Idempotency-Key came with another request before")
            return record
    return None
