"""One job: the record that outlives the process (`JobRecord`), and the work that does not (`PendingJob`)."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import BaseModel

from ray_app.serving.http.schemas import EnsembleName, ImageAnswer, Job, JobState
from ray_app.storage import strip_secrets

VERDICTS = ("fake", "real", "abstain", "none")


@dataclass(frozen=True)
class Request:
    """What a client requests: images with their names, or URLs."""

    images: Sequence[tuple[str | None, bytes]] | None
    urls: Sequence[str] | None
    ensemble: str | None
    webhook: str | None

    @property
    def labels(self) -> list[str | None]:
        """What each line of the results is named after, in order."""
        if self.images is not None:
            return [name if name is None else name.encode("utf-8", "replace").decode() for name, _ in self.images]
        return [strip_secrets(url) for url in self.urls or ()]

    @property
    def size_bytes(self) -> int:
        """Bytes of images that it would keep in memory."""
        return sum(len(data) for _, data in self.images or ())

    @property
    def resumable_urls(self) -> list[str] | None:
        """The URLs as they may be written down; None where one of them carries a credential."""
        return list(self.urls) if self.urls is not None and all(strip_secrets(url) == url for url in self.urls) else None

    def digest(self) -> str:
        """SHA-256 over all that decides the results, and the webhook."""
        asked = [self.ensemble, self.webhook, self.urls and list(self.urls), self.labels]
        digest = hashlib.sha256(json.dumps(asked).encode())
        for _, data in self.images or ():
            digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()


class JobRecord(BaseModel):
    """A job as it is written down: whose, what was requested, how far it is. No image, and no URL that carries a credential.

    `urls` are what a restarted process goes on from; None for uploads, for addresses with credentials, and once the job has ended.
    `webhook` stands until it was called; `content` is the SHA-256 of the request.
    """

    id: str
    owner: str
    key: str | None
    content: str
    ensemble: str | None
    webhook: str | None
    images: int
    urls: list[str] | None
    created_at: datetime
    state: JobState = "waiting"
    detail: str | None = None
    finished: int = 0
    verdicts: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    answered_by: EnsembleName | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None

    @classmethod
    def of(cls, request: Request, *, id: str, owner: str, key: str | None, content: str, created_at: datetime) -> "JobRecord":
        """The record of a new job."""
        return cls(
            id=id, owner=owner, key=key, content=content, ensemble=request.ensemble, webhook=request.webhook,
            images=len(request.labels), urls=request.resumable_urls, created_at=created_at,
        )  # fmt: skip

    def kept(self) -> bytes:
        """As JSON for a store; a webhook whose address carries credentials is not in it."""
        hidden = self.webhook is not None and strip_secrets(self.webhook) != self.webhook
        return self.model_copy(update={"webhook": None} if hidden else {}).model_dump_json().encode()

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is still to come."""
        return self.state not in ("waiting", "running")

    def is_over(self, now: datetime) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and self.expires_at <= now

    def ended(self, state: JobState, detail: str | None, now: datetime, expires_at: datetime) -> "JobRecord":
        """A copy that has ended; what is only for going on is not in it."""
        update = {"state": state, "detail": detail, "urls": None, "finished_at": now, "expires_at": expires_at}
        return self.model_copy(update=update)

    def answer(self) -> Job:
        """The answer to its owner."""
        url = f"/v1/jobs/{self.id}"
        return Job(
            id=self.id, state=self.state, detail=self.detail, images=self.images, finished=self.finished, verdicts=dict(self.verdicts),
            ensemble=self.answered_by, created_at=self.created_at, finished_at=self.finished_at, expires_at=self.expires_at,
            url=url, results_url=f"{url}/results" if self.state == "done" else None,
        )  # fmt: skip


@dataclass
class PendingJob:
    """An unfinished job in memory: what is still to be scored, and the lines of what was."""

    record: JobRecord
    labels: list[str | None]
    inputs: list[bytes | str | None]  # None once it was scored
    lines: list[bytes | None]
    waiting: deque[int]
    scoring: set[asyncio.Task[None]] = field(default_factory=set)  # may be cancelled
    at_work: set[asyncio.Task[None]] = field(default_factory=set)  # scoring, or writing a line down
    end: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, record: JobRecord, request: Request) -> "PendingJob":
        """The work of a new job."""
        inputs = [data for _, data in request.images] if request.images is not None else list(request.urls or ())
        return cls(record, request.labels, list(inputs), [None] * len(inputs), deque(range(len(inputs))))

    @classmethod
    def resumed(cls, record: JobRecord, lines: Mapping[int, bytes]) -> "PendingJob":
        """What is left of a job of URLs; the record counts `lines`, which an earlier process left."""
        urls = record.urls or []
        work = cls(record, list(urls), list(urls), [lines.get(index) for index in range(len(urls))], deque())
        work.waiting.extend(index for index, line in enumerate(work.lines) if line is None)
        record.finished, record.verdicts = 0, dict.fromkeys(VERDICTS, 0)
        for index in sorted(lines.keys() & set(range(len(urls)))):
            work.inputs[index] = None
            _count(record, ImageAnswer.model_validate_json(lines[index]))
        return work

    @classmethod
    def lost(cls, record: JobRecord) -> "PendingJob":
        """A job whose images went with an earlier process."""
        return cls(record, [], [], [], deque())

    def take(self, index: int, answer: ImageAnswer, line: bytes) -> None:
        """One more line, and one image less in memory. An image has one line and no more."""
        assert self.lines[index] is None
        self.lines[index], self.inputs[index] = line, None
        _count(self.record, answer)

    @property
    def size_bytes(self) -> int:
        """Bytes of images that it keeps in memory."""
        return sum(len(one) for one in self.inputs if isinstance(one, bytes))

    @property
    def is_complete(self) -> bool:
        """Whether every image has its line."""
        return self.record.finished == self.record.images

    def results(self) -> bytes:
        """All lines in the order of the request. Raises RuntimeError where one is missing or is another image's."""
        whole = [line for line in self.lines if line is not None]
        names = [json.loads(line)["name"] for line in whole]
        if len(whole) != self.record.images or names != self.labels:
            raise RuntimeError(f"job {self.record.id}: {len(whole)} lines for {self.record.images} images, or not in their order")
        return b"".join(line + b"\n" for line in whole)


def _count(record: JobRecord, answer: ImageAnswer) -> None:
    record.finished += 1
    verdict = answer.verdict or "none"
    record.verdicts = record.verdicts | {verdict: record.verdicts[verdict] + 1}
    record.answered_by = record.answered_by or answer.ensemble
