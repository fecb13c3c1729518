"""Signed deliveries over the real guard to a real TLS server, and what a receiver's check lets pass.

Webhooks of jobs: who is told, when, and how often.
"""

import asyncio
import hashlib
import hmac
import json
from datetime import UTC, datetime

import pytest

from ray_app.errors import ConfigError
from ray_app.serving.config import JobLimits, UrlFetching
from ray_app.serving.http.schemas import Job
from ray_app.serving.jobs.webhooks import Delivery, deliver, sign, verify, webhook_secret
from ray_app.serving.url_fetch import GuardedFetcher
from ray_app.storage.ssrf import is_public_address
from tests.serving.job_world import LightScorer, LoopbackFetcher, book_of, ended, jpegs, refusal_of, settings, until
from tests.serving.tls_server import Loopback, answer, authority, redirect

HOOK = "https://h/hook"


async def test_told_once_with_the_job_as_it_is(tmp_path):
    told = []

    async def notify(url, job):
        told.append((url, json.loads(job)))

    config = settings(webhooks=True, directory=str(tmp_path))
    async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=notify) as book:
        job = await ended(book, "me", (await book.submit("me", jpegs(2), webhook=HOOK)).id)
        await until(lambda: told and not book._telling._tasks)
    async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=notify) as book:
        job = await book.status("me", job.id)
    assert told == [(HOOK, job.model_dump(mode="json"))]


async def test_a_process_that_dies_before_it_told_leaves_it_to_the_next(tmp_path):
    told = []

    async def never(url, job):
        await asyncio.Event().wait()

    async def notify(url, job):
        told.append(url)

    config = settings(webhooks=True, directory=str(tmp_path))
    async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=never) as book:
        await ended(book, "me", (await book.submit("me", jpegs(1), webhook=HOOK)).id)
    async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=notify):
        await until(lambda: told)
    assert told == [HOOK]


@pytest.mark.parametrize(
    "url",
    ["http://hooks.test/", "https://hooks.test:8443/", "https://127.0.0.1/", "https://me:secret@hooks.test/", "https://other.test/"],
)
async def test_one_that_would_never_be_told_is_refused_at_once(monkeypatch, url):
    monkeypatch.setenv("TOUCHSTONE_WEBHOOK_SECRET", "a long secret")
    guarded = GuardedFetcher(UrlFetching(allowed_hosts=("hooks.test",)), 1)
    async with book_of(settings(webhooks=True), LightScorer(), guarded) as book:
        assert (await refusal_of(book.submit("me", jpegs(1), webhook=url))).code == "url_refused"
        assert book._records == {}


async def test_a_webhook_that_fails_changes_nothing():
    async def broken(url, job):
        raise RuntimeError

    async with book_of(settings(webhooks=True), LightScorer(), LoopbackFetcher("http://h"), notify=broken) as book:
        job = await ended(book, "me", (await book.submit("me", jpegs(1), webhook=HOOK)).id)
        await until(lambda: not book._telling._tasks)
        assert (await book.status("me", job.id)).state == "done"


async def test_a_key_is_needed(monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ConfigError, match="TOUCHSTONE_WEBHOOK_SECRET"):
        async with book_of(settings(webhooks=True), LightScorer(), LoopbackFetcher("http://h")):
            pass


SECRET, NOW, URL = "a long secret", 1_800_000_000, "https://images.test/hook"
JOB = Job(
    id="j-7f3a",
    state="done",
    images=2,
    finished=2,
    verdicts={"fake": 1, "real": 1},
    ensemble=None,
    created_at=datetime(2027, 1, 1, tzinfo=UTC),
    finished_at=None,
    expires_at=None,
    url="/v1/jobs/j-7f3a",
    results_url=None,
)
BODY = JOB.model_dump_json().encode()


@pytest.fixture(autouse=True)
def _trusted_authority(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", authority()[0])


def told(*answers: bytes, url: str = URL, public: bool = False):
    """(delivery, server, pauses) of one delivery to a receiver that gives one answer after the other; the clock moves with the pauses."""
    pauses, left = [], list(answers)

    async def pause(seconds):
        pauses.append(seconds)

    async def next_answer(_server, writer):
        writer.write(left.pop(0))
        await writer.drain()

    async def scenario():
        async with Loopback(next_answer) as server:

            async def here(_host, _port):
                return [("127.0.0.1", server.port)]

            allowed = is_public_address if public else lambda address: address == "127.0.0.1"
            fetcher = GuardedFetcher(UrlFetching(), 9, resolver=here, is_allowed_address=allowed)
            return await deliver(fetcher.post, url, BODY, SECRET, sleep=pause, clock=lambda: NOW + sum(pauses)), server

    delivery, server = asyncio.run(asyncio.wait_for(scenario(), 8))
    return delivery, server, pauses


def test_receiver_gets_the_job_and_can_check_it():
    delivery, server, pauses = told(answer(b"", "204 No Content"))
    assert delivery == Delivery(delivered=True, attempts=1, status=204)
    assert pauses == []
    [(head, headers, body)] = server.requests
    assert head == "POST /hook HTTP/1.1"
    assert (headers["Touchstone-Job"], headers["Content-Type"], body) == (JOB.id, "application/json", BODY)
    assert verify(SECRET, headers["Touchstone-Signature"], body, now=NOW + 299)
    assert Job.model_validate_json(body) == JOB


def test_passing_troubles_are_tried_again_and_signed_anew():
    delivery, server, pauses = told(answer(b"", "503 x"), b"", answer(b""))
    assert delivery == Delivery(delivered=True, attempts=3, status=200)
    assert pauses == [2, 8]
    times = [int(headers["Touchstone-Signature"][2:].split(",")[0]) for _, headers, _ in server.requests]
    assert times == [NOW, NOW + 2, NOW + 10]
    assert all(verify(SECRET, headers["Touchstone-Signature"], body, now=NOW + 10) for _, headers, body in server.requests)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_it_gives_up_quietly_after_three(status):
    delivery, server, pauses = told(*[answer(b"", f"{status} x")] * 5)
    assert delivery == Delivery(delivered=False, attempts=3, status=status, detail=f"the receiver answered {status}")
    assert (len(server.requests), len(pauses)) == (3, 2)


def test_receiver_that_never_answers_is_given_up():
    delivery, _, _ = told(b"", b"", b"")
    assert (delivery.delivered, delivery.attempts, delivery.status, delivery.detail) == (False, 3, None, "its server broke off")


@pytest.mark.parametrize("raw", [answer(b"", "400 x"), answer(b"", "410 x"), redirect("https://images.test/other"), answer(b"", "304 x")])
def test_a_plain_no_and_a_redirect_end_it(raw):
    delivery, server, _ = told(raw)
    assert not delivery.delivered
    assert (delivery.attempts, len(server.requests)) == (1, 1)


@pytest.mark.parametrize("url", ["http://images.test/hook", "https://127.0.0.1/hook", "https://me:secret@images.test/hook", "nonsense"])
def test_webhook_url_is_guarded(url):
    delivery, server, _ = told(url=url)
    assert (delivery.delivered, delivery.attempts, delivery.status, server.connections) == (False, 1, None, 0)


def test_webhook_address_is_guarded():
    delivery, server, _ = told(public=True)
    assert (delivery.delivered, delivery.detail, server.connections) == (False, "this address is not fetched", 0)


def test_signature_is_what_the_documentation_says():
    expected = hmac.new(SECRET.encode(), f"{NOW}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert sign(SECRET, BODY, NOW) == f"t={NOW},v1={expected}"


@pytest.mark.parametrize(("after", "passes"), [(0, True), (300, True), (-300, True), (300.5, False), (-301, False), (10**9, False)])
def test_old_and_future_signatures_fail(after, passes):
    assert verify(SECRET, sign(SECRET, BODY, NOW), BODY, now=NOW + after) is passes


def test_tolerance_is_the_receivers():
    assert verify(SECRET, sign(SECRET, BODY, NOW), BODY, now=NOW + 900, tolerance_s=900)
    assert not verify(SECRET, sign(SECRET, BODY, NOW), BODY, now=NOW + 11, tolerance_s=10)


def test_what_was_changed_on_the_way_fails():
    good = sign(SECRET, BODY, NOW)
    changed = json.dumps({**json.loads(BODY), "state": "failed"}).encode()
    for header, body, secret in [
        (good, changed, SECRET),
        (good, BODY + b"\n", SECRET),
        (good, BODY, "another secret"),
        (good.replace(f"t={NOW}", f"t={NOW + 1}"), BODY, SECRET),
        (good[:-1] + ("0" if good[-1] != "0" else "1"), BODY, SECRET),
    ]:
        assert not verify(secret, header, body, now=NOW)


@pytest.mark.parametrize(
    "header", ["", "t=,v1=", "v1=00", "t=1", "nonsense", f"t={NOW},v1=", f"t={NOW},v1=é", f"t=١٢٣,v1={'0' * 64}", "t=1,v1=\x00"]
)
def test_malformed_signature_fails_without_an_exception(header):
    assert not verify(SECRET, header, BODY, now=NOW)
    good = sign(SECRET, BODY, NOW)
    for odd in (good.upper(), good + ",v1=00", " " + good, good + "\n", good.replace("v1", "v0")):
        assert not verify(SECRET, odd, BODY, now=NOW)


def test_secret_comes_from_the_environment():
    on = JobLimits(webhooks=True)
    assert webhook_secret(on, {"TOUCHSTONE_WEBHOOK_SECRET": " key\n"}) == "key"
    assert webhook_secret(JobLimits(webhooks=True, webhook_secret_variable="HOOK_KEY"), {"HOOK_KEY": "key"}) == "key"
    assert webhook_secret(JobLimits(), {}) is None


@pytest.mark.parametrize("environment", [{}, {"TOUCHSTONE_WEBHOOK_SECRET": " \n"}])
def test_missing_secret_stops_the_start(environment):
    with pytest.raises(ConfigError, match="TOUCHSTONE_WEBHOOK_SECRET") as caught:
        webhook_secret(JobLimits(webhooks=True), environment)
    assert "openssl rand" in caught.value.hint
