"""What tells of objects that came, changed or went (`open_events`): an SQS queue that a bucket writes to (`BucketQueue`), or lines of stdin
(`EventLines`). An event is no more than a reason to look at its object: what counts is what is there then, so that events may come twice,
late, or in any order.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html (records, s3:TestEvent, encoded keys)
"""

import json
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote_plus, urlsplit

from ray_app.errors import StorageError, describe_error

MOST = 10_000  # events that are taken at once
_HIDDEN_S = 1800  # a message comes again where what it names is in no manifest by then
_AT_ONCE, _POLL_S = 10, 5  # of messages, and seconds: what SQS gives with one answer, and how long it may wait for the first
_CONNECT_S, _READ_S = 5, 20
_REGION = re.compile(r"sqs\.([a-z0-9-]+)\.(?:vpce\.)?amazonaws\.")
_LONGEST_LINE, _LONGEST_KEY = 2**20, 1024  # bytes


@dataclass
class Events:
    """The uris of objects that may have changed; `done` is to be called once they are in a manifest."""

    uris: set[str] = field(default_factory=set)
    done: Callable[[], None] = lambda: None
    unreadable: int = 0


class EventSource(Protocol):
    """Where events come from."""

    def receive(self, wait_s: float) -> Events:
        """Those that are there, after so many seconds at most none. Raises StorageError."""


def open_events(place: str) -> EventSource:
    """The source of events at the URL of a queue; `-` is stdin."""
    return EventLines() if place == "-" else BucketQueue(place)


def uris_in(text: str) -> list[str] | None:
    """The uris that one message names, none of S3's test event; None where it is no message of a bucket, as it is or within SNS's."""
    try:
        content = json.loads(text)
        content = json.loads(content["Message"]) if isinstance(content.get("Message"), str) else content
        if content.get("Event") == "s3:TestEvent":
            return []
        found = [(one["s3"]["bucket"]["name"], unquote_plus(one["s3"]["object"]["key"])) for one in content["Records"]]
        if any("\0" in key or len(key.encode()) > _LONGEST_KEY for _, key in found):
            return None
        return [f"s3://{bucket}/{key}" for bucket, key in found]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


class BucketQueue:
    """An SQS queue. Messages are deleted when they are done; those that are not a bucket's stay, for the queue's own dead letters."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def receive(self, wait_s: float) -> Events:
        """As `EventSource` has it."""
        found, receipts = Events(), list[str]()
        found.done = lambda: self._delete(receipts)
        for message in self._messages(min(wait_s, _POLL_S)):
            uris = uris_in(message["Body"])
            if uris is None:
                found.unreadable += 1
                continue
            found.uris.update(uris)
            receipts.append(message["ReceiptHandle"])
        return found

    def _messages(self, wait_s: float) -> Iterator[dict[str, Any]]:
        until, count = time.monotonic() + _POLL_S + wait_s, 0
        while count < MOST and time.monotonic() < until:
            answer = self._ask("receive_message", MaxNumberOfMessages=_AT_ONCE, WaitTimeSeconds=int(wait_s), VisibilityTimeout=_HIDDEN_S)
            if not (messages := answer.get("Messages", ())):
                return
            yield from messages
            count, wait_s = count + len(messages), 0

    def _delete(self, receipts: list[str]) -> None:
        for start in range(0, len(receipts), _AT_ONCE):
            some = [{"Id": str(place), "ReceiptHandle": one} for place, one in enumerate(receipts[start : start + _AT_ONCE])]
            self._ask("delete_message_batch", Entries=some)

    def _ask(self, request: str, **given: Any) -> Any:
        try:
            self._client = self._client or self._connected()
            return getattr(self._client, request)(QueueUrl=self._url, **given)
        except Exception as error:
            hint = "give the URL that SQS shows; it takes sqs:ReceiveMessage and sqs:DeleteMessage, with credentials as for S3"
            raise StorageError(f"cannot read the queue {self._url}: {describe_error(error)}", hint=hint) from error

    def _connected(self) -> Any:
        from botocore.config import Config
        from botocore.session import get_session

        session, place = get_session(), urlsplit(self._url)
        region = _REGION.search(self._url)
        return session.create_client(
            "sqs",
            region_name=region[1] if region else session.get_config_variable("region") or "us-east-1",
            endpoint_url=f"{place.scheme}://{place.netloc}",
            config=Config(connect_timeout=_CONNECT_S, read_timeout=_READ_S, retries={"mode": "standard", "total_max_attempts": 4}),
        )


class EventLines:
    """Lines of stdin, as a Kafka consumer writes them: an event of S3 each, or the uri of an object."""

    def __init__(self) -> None:
        self._lines = queue.Queue[str](MOST)
        threading.Thread(target=self._read, name="events", daemon=True).start()

    def _read(self) -> None:
        while line := sys.stdin.buffer.readline(_LONGEST_LINE):
            self._lines.put(line.decode("utf-8", "replace").strip())

    def receive(self, wait_s: float) -> Events:
        """As `EventSource` has it."""
        found, until = Events(), time.monotonic() + wait_s
        for _ in range(MOST):
            try:
                line = self._lines.get(timeout=0 if found.uris else max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            place = line if "://" in line else os.path.abspath(line)
            uris = uris_in(line) if line.startswith("{") or "\0" in line else [place] if line else []
            found.unreadable += uris is None
            found.uris.update(uris or ())
        return found
