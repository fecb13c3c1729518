"""Which objects came, changed or went, as an SQS queue of a bucket's events says (`BucketQueue`), or lines of stdin (`EventLines`).
An event is a reason to look at its object, no more: what is there then counts, so that events may come twice, late, or in any order.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html (records, s3:TestEvent, encoded keys)
"""

import json
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote_plus, urlsplit

from ray_app.errors import StorageError, describe_error

Event = tuple[str, list[str]]  # what it is known by where it came from, and the uris of objects that may have changed
MOST = 10_000  # messages that are taken at once
_HIDDEN_S = 1800  # a message comes again where what it names is in no manifest by then
_AT_ONCE, _POLL_S = 10, 5  # messages in one answer, and seconds that it may wait for the first
_LONGEST_LINE, _LONGEST_URI = 2**20, 1100  # bytes: a key has 1024
_REGION = re.compile(r"sqs\.([a-z0-9-]+)\.(?:vpce\.)?amazonaws\.")
_log = logging.getLogger(__name__)


def uris_in(text: str) -> list[str] | None:
    """The uris that a message names: a bucket's, as it is or within SNS's, or one uri. None where it is neither."""
    try:
        if text.startswith("s3://"):
            found = [text]
        else:
            content = json.loads(text)
            content = json.loads(content["Message"]) if isinstance(content.get("Message"), str) else content
            records = [] if content.get("Event") == "s3:TestEvent" else [one["s3"] for one in content["Records"]]
            found = [f"s3://{one['bucket']['name']}/{unquote_plus(one['object']['key'])}" for one in records]
        return found if all("\0" not in uri and len(uri.encode()) <= _LONGEST_URI for uri in found) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


class EventLines:
    """Lines of stdin, as a Kafka consumer writes them."""

    def __init__(self) -> None:
        self._lines = queue.Queue[str](MOST)
        threading.Thread(target=self._read, name="events", daemon=True).start()

    def _read(self) -> None:
        while line := sys.stdin.buffer.readline(_LONGEST_LINE):
            self._lines.put(line.decode("utf-8", "replace").strip())

    def receive(self, wait_s: float) -> list[Event]:
        """The events that are there, after so many seconds at most none. Raises StorageError."""
        found, until, odd = list[Event](), time.monotonic() + wait_s + _POLL_S, 0
        for messages in self._messages(wait_s):
            named = [(receipt, uris_in(text)) for text, receipt in messages]
            found += [(receipt, uris) for receipt, uris in named if uris is not None]
            odd += sum(uris is None for _, uris in named)
            if len(found) >= MOST or time.monotonic() > until:
                break
        if odd:
            _log.warning("%d messages name no object of a bucket, and were left alone", odd)
        return found

    def done(self, receipts: Sequence[str]) -> None:
        """What these events name is in a manifest."""

    def _messages(self, wait_s: float) -> Iterator[list[tuple[str, str]]]:
        with suppress(queue.Empty):
            while True:
                line = self._lines.get(timeout=wait_s)
                yield [(line, "")] if line else []
                wait_s = 0.01


class BucketQueue(EventLines):
    """An SQS queue. Messages that are done are deleted; those that are not a bucket's stay, for the queue's own dead letters."""

    def __init__(self, url: str) -> None:
        self._url, self._client = url, None

    def done(self, receipts: Sequence[str]) -> None:
        """Delete them; what cannot be deleted comes again, and is found to be as it was."""
        for start in range(0, len(receipts), _AT_ONCE):
            some = enumerate(receipts[start : start + _AT_ONCE])
            try:
                self._ask("delete_message_batch", Entries=[{"Id": str(place), "ReceiptHandle": one} for place, one in some])
            except StorageError as error:
                _log.warning("%s", error)

    def _messages(self, wait_s: float) -> Iterator[list[tuple[str, str]]]:
        given = {"MaxNumberOfMessages": _AT_ONCE, "VisibilityTimeout": _HIDDEN_S}
        answer = self._ask("receive_message", WaitTimeSeconds=int(min(wait_s, _POLL_S)), **given)
        while messages := answer.get("Messages"):
            yield [(one["Body"], one["ReceiptHandle"]) for one in messages]
            answer = self._ask("receive_message", WaitTimeSeconds=0, **given)

    def _ask(self, request: str, **given: Any) -> Any:
        from botocore.session import get_session

        try:
            if self._client is None:
                session, place, region = get_session(), urlsplit(self._url), _REGION.search(self._url)
                named = region[1] if region else session.get_config_variable("region") or "us-east-1"
                self._client = session.create_client("sqs", named, endpoint_url=f"{place.scheme}://{place.netloc}")
            return getattr(self._client, request)(QueueUrl=self._url, **given)
        except Exception as error:
            hint = "give the URL that SQS shows; it takes sqs:ReceiveMessage and sqs:DeleteMessage, with credentials as for S3"
            raise StorageError(f"cannot read the queue {self._url}: {describe_error(error)}", hint=hint) from error
