"""Webhooks of jobs: who is told, when, and how often."""

import asyncio
import json

import pytest

from ray_app.errors import ConfigError
from ray_app.serving.config import UrlFetching
from ray_app.serving.fetching import GuardedFetcher
from tests.serving.job_world import (
    LightScorer,
    LoopbackFetcher,
    book_of,
    ended,
    jpegs,
    refusal_of,
    run,
    settings,
    until,
)


class TestWebhooks:
    def test_told_once_with_the_job_as_it_is(self, tmp_path):
        told = []

        async def notify(url, job):
            told.append((url, json.loads(job)))

        config = settings(webhooks=True, directory=str(tmp_path))

        async def first():
            async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=notify) as book:
                job = await ended(book, "me", (await book.submit("me", jpegs(2), webhook="https://h/hook")).id)
                await until(lambda: _now(told and not book._telling._tasks))
                return job

        async def second(job):
            async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=notify) as book:
                return await book.status("me", job.id)

        job = run(second(run(first())))
        assert told == [("https://h/hook", job.model_dump(mode="json"))]

    def test_a_process_that_dies_before_it_told_leaves_it_to_the_next(self, tmp_path):
        told = []

        async def never(url, job):
            await asyncio.Event().wait()

        async def notify(url, job):
            told.append(url)

        async def scenario():
            config = settings(webhooks=True, directory=str(tmp_path))
            async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=never) as book:
                await ended(book, "me", (await book.submit("me", jpegs(1), webhook="https://h/hook")).id)
            async with book_of(config, LightScorer(), LoopbackFetcher("http://h"), notify=notify) as book:
                await until(lambda: _now(told))

        run(scenario())
        assert told == ["https://h/hook"]

    @pytest.mark.parametrize(
        "url",
        ["http://hooks.test/", "https://hooks.test:8443/", "https://127.0.0.1/", "https://me:secret@hooks.test/", "https://other.test/"],
    )
    def test_one_that_would_never_be_told_is_refused_at_once(self, monkeypatch, url):
        monkeypatch.setenv("TOUCHSTONE_WEBHOOK_SECRET", "a long secret")
        guarded = GuardedFetcher(UrlFetching(allowed_hosts=("hooks.test",)), 1)

        async def scenario():
            async with book_of(settings(webhooks=True), LightScorer(), guarded) as book:
                refused = await refusal_of(book.submit("me", jpegs(1), webhook=url))
                return refused.code, book._records

        assert run(scenario()) == ("url_refused", {})

    def test_a_webhook_that_fails_changes_nothing(self):
        async def broken(url, job):
            raise RuntimeError

        async def scenario():
            async with book_of(settings(webhooks=True), LightScorer(), LoopbackFetcher("http://h"), notify=broken) as book:
                job = await ended(book, "me", (await book.submit("me", jpegs(1), webhook="https://h/hook")).id)
                await until(lambda: _now(not book._telling._tasks))
                return await book.status("me", job.id)

        assert run(scenario()).state == "done"

    def test_a_key_is_needed(self, monkeypatch):
        monkeypatch.delenv("TOUCHSTONE_WEBHOOK_SECRET", raising=False)

        async def scenario():
            async with book_of(settings(webhooks=True), LightScorer(), LoopbackFetcher("http://h")):
                pass

        with pytest.raises(ConfigError, match="TOUCHSTONE_WEBHOOK_SECRET"):
            run(scenario())


async def _now(value):
    return value
