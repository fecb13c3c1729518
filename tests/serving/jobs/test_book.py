"""The book of jobs: one line per image in order, owners, limits, endings."""

import asyncio

import pytest

from ray_app.serving.jobs.book import FAULT
from tests.serving.job_world import (
    Clock,
    LightScorer,
    LoopbackFetcher,
    PictureServer,
    Scorer,
    book_of,
    ended,
    jpegs,
    kept_files,
    lines,
    refusal_of,
    settings,
    until,
)


async def test_one_line_per_image_in_order_whatever_becomes_of_it(ensemble):
    images = jpegs(5)
    images[2] = ("torn.jpg", images[2][1][:-100])
    images[3] = (None, b"no image at all")
    async with book_of(settings(concurrency=3), Scorer(ensemble)) as book:
        taken = await book.submit("me", images)
        job = await ended(book, "me", taken.id)
        answers = lines(await book.results("me", job.id))
    assert (taken.results_url, taken.finished_at, taken.images, taken.finished) == (None, None, 5, 0)
    assert (job.state, job.finished, job.results_url) == ("done", 5, f"/v1/jobs/{job.id}/results")
    assert [answer["name"] for answer in answers] == ["0.jpg", "1.jpg", "torn.jpg", None, "4.jpg"]
    assert [answer["status"] for answer in answers] == ["ok", "ok", "truncated_image", "unsupported_format", "ok"]
    assert job.verdicts["none"] == 2
    assert sum(job.verdicts.values()) == 5
    assert job.ensemble.name == "tiny"
    direct = ensemble.score([data for _, data in images])
    assert [answer["score"] for answer in answers] == pytest.approx([result.score for result in direct], abs=1e-5)
    torn = answers[2]
    assert torn["error"]["code"] == "truncated_image"
    assert torn["image"]["format"] == "JPEG"
    assert (torn["image"]["width"], torn["image"]["size_bytes"], torn["verdict"]) == (96, len(images[2][1]), None)


async def test_urls_are_lines_too_named_without_their_secrets():
    urls = ["https://h/1.jpg?X-Amz-Signature=abc", "https://h/gone", "http://h/2.jpg", "https://h/3.jpg"]
    with PictureServer() as server:
        async with book_of(settings(urls=True), LightScorer(), LoopbackFetcher(server.url)) as book:
            job = await ended(book, "me", (await book.submit("me", None, urls)).id)
            results = await book.results("me", job.id)
    answers = lines(results)
    assert job.state == "done"
    assert [answer["name"] for answer in answers] == ["https://h/1.jpg", "https://h/gone", "http://h/2.jpg", "https://h/3.jpg"]
    assert [answer["status"] for answer in answers] == ["ok", "source_missing", "url_refused", "ok"]
    assert (answers[1]["sha256"], answers[1]["image"]) == ("", None)
    assert b"abc" not in results


async def test_a_line_that_is_another_images_fails_the_job():
    class Confused(LightScorer):
        async def score(self, data, *, name=None, **options):
            return await super().score(data, name="another", **options)

    async with book_of(settings(), Confused()) as book:
        job = await ended(book, "me", (await book.submit("me", jpegs(2))).id)
    assert (job.state, job.detail) == ("failed", FAULT)


async def test_what_is_anothers_is_not_there():
    async with book_of(settings(), LightScorer()) as book:
        job = await book.submit("me", jpegs(1))
        await ended(book, "me", job.id)
        for asked in (book.status("you", job.id), book.results("you", job.id), book.cancel("you", job.id), book.status("me", "0" * 32)):
            assert (await refusal_of(asked)).code == "not_found"
        assert (await book.status("me", job.id)).state == "done"


async def test_a_key_stands_for_one_request_of_one_owner():
    async with book_of(settings(), LightScorer()) as book:
        same = await asyncio.gather(*[book.submit("me", jpegs(3), idempotency_key="k") for _ in range(5)])
        later = await book.submit("me", jpegs(3), idempotency_key="k")
        theirs = await book.submit("you", jpegs(3), idempotency_key="k")
        without = [await book.submit("me", jpegs(3)), await book.submit("me", jpegs(3))]
        swapped = [(name, jpegs(1, 9)[0][1]) for name, _ in jpegs(3)]
        for other in ({"images": jpegs(2)}, {"images": swapped}, {"images": [("x", data) for _, data in jpegs(3)]},
                      {"images": jpegs(3), "ensemble": "tiny"}):  # fmt: skip
            assert (await refusal_of(book.submit("me", idempotency_key="k", **other))).code == "conflict"
    mine, others = {job.id for job in (*same, later)}, {theirs.id, *(job.id for job in without)}
    assert (len(mine), len(others), mine & others) == (1, 3, set())


async def test_a_client_that_hangs_up_has_its_job(tmp_path):
    scorer, gate = LightScorer(), asyncio.Event()
    async with book_of(settings(directory=str(tmp_path)), scorer) as book:
        save = book._store.save

        async def slowly(record):
            await gate.wait()
            await save(record)

        book._store.save = slowly
        asking = asyncio.create_task(book.submit("me", jpegs(2), idempotency_key="k"))
        (job,) = await until(lambda: list(book._saving))
        asking.cancel()
        again = asyncio.create_task(book.submit("me", jpegs(2), idempotency_key="k"))
        await asyncio.wait({asking})
        assert (asking.cancelled(), kept_files(tmp_path)) == (True, [])
        gate.set()
        assert (await again).id == job
        await ended(book, "me", job)
    assert scorer.started == ["0.jpg", "1.jpg"]


async def test_too_many_jobs_or_bytes_and_room_again():
    first, scorer = jpegs(2), LightScorer()
    size = sum(len(data) for _, data in first)
    scorer.gate.clear()
    async with book_of(settings(max_jobs=2, max_waiting_bytes=size + 10, max_images=3), scorer) as book:
        job = await book.submit("me", first, idempotency_key="k")
        large, many = await refusal_of(book.submit("me", jpegs(1, 5))), await refusal_of(book.submit("me", jpegs(4)))
        small = await book.submit("me", [("x", b"tiny")])
        full = await refusal_of(book.submit("me", [("y", b"tiny")]))
        assert (await book.submit("me", first, idempotency_key="k")).id == job.id, "it takes no further place"
        scorer.gate.set()
        await ended(book, "me", job.id)
        await ended(book, "me", small.id)
        assert (await ended(book, "me", (await book.submit("me", first)).id)).state == "done"
    assert (large.code, large.limit, large.headers) == ("overloaded", size + 10, {"Retry-After": "10"})
    assert (many.code, many.limit, many.observed) == ("too_many_files", 3, 4)
    assert (full.code, full.limit, full.headers) == ("overloaded", 2, {"Retry-After": "10"})


async def test_images_go_one_by_one():
    scorer = LightScorer()
    async with book_of(settings(concurrency=1), scorer) as book:
        scorer.gate.clear()
        job = await book.submit("me", jpegs(3))
        work = book._works[job.id]
        before = work.size_bytes
        scorer.gate.set()
        await until(lambda: work.record.finished >= 1)
        scorer.gate.clear()
        assert 0 <= work.size_bytes < before
        scorer.gate.set()
        await ended(book, "me", job.id)
        assert (work.size_bytes, job.id in book._works) == (0, False)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"urls": ["https://h/a"]}, "forbidden"),
        ({"images": jpegs(1), "webhook": "https://h/"}, "forbidden"),
        ({"images": []}, "malformed_request"),
        ({}, "malformed_request"),
        ({"images": jpegs(1), "urls": ["https://h/a"]}, "malformed_request"),
    ],
)
async def test_what_is_never_taken(request_, code):
    async with book_of(settings(), LightScorer()) as book:
        assert (await refusal_of(book.submit("me", **request_))).code == code


async def test_results_in_memory_have_a_budget():
    async with book_of(settings(max_waiting_bytes=3500), LightScorer()) as book:
        ids = []
        for number in range(4):
            ids.append((await book.submit("me", [(str(number), b"x" * 100), ("2", b"y")])).id)
            await ended(book, "me", ids[-1])
        gone = [id for id in ids if id not in book._records]
        assert len(await book.results("me", ids[-1])) < 3500
    assert gone == ids[: len(gone)]
    assert 1 <= len(gone) <= 3


async def test_cancelled_at_once_and_the_others_go_on():
    scorer = LightScorer()
    scorer.gate.clear()
    async with book_of(settings(concurrency=2), scorer) as book:
        job, other = await book.submit("me", jpegs(50)), await book.submit("me", jpegs(2, 60))
        await until(lambda: len(scorer.started) == 2)
        cancelled = await book.cancel("me", job.id)
        assert (cancelled.state, cancelled.finished, cancelled.results_url) == ("cancelled", 0, None)
        assert scorer.at_once <= 2
        scorer.gate.set()
        assert (await ended(book, "me", other.id)).state == "done"
        assert (await refusal_of(book.results("me", job.id))).code == "conflict"
        assert (await book.cancel("me", job.id)).state == "cancelled"
        assert (await refusal_of(book.status("me", job.id))).code == "not_found"
    assert len(scorer.started) <= 6


async def test_a_done_job_is_forgotten_on_request(tmp_path):
    async with book_of(settings(directory=str(tmp_path)), LightScorer()) as book:
        job = await ended(book, "me", (await book.submit("me", jpegs(1), idempotency_key="k")).id)
        assert await book.cancel("me", job.id) == job
        fresh = await book.submit("me", jpegs(2), idempotency_key="k")
        await book.cancel("me", fresh.id)
        await book.cancel("me", fresh.id)
        assert (await refusal_of(book.cancel("me", job.id))).code == "not_found"
    assert kept_files(tmp_path) == []


@pytest.mark.parametrize("on_disk", [False, True])
async def test_expiry(tmp_path, on_disk):
    clock = Clock()
    config = settings(keep_hours=24, directory=str(tmp_path) if on_disk else None)
    async with book_of(config, LightScorer(), clock=clock) as book:
        job = await ended(book, "me", (await book.submit("me", jpegs(2), idempotency_key="k")).id)
        assert (job.expires_at - job.finished_at).total_seconds() == 24 * 3600
        clock.pass_hours(23.9)
        await book.results("me", job.id)
        clock.pass_hours(0.2)
        assert (await refusal_of(book.status("me", job.id))).code == "not_found"
        fresh = await book.submit("me", jpegs(1), idempotency_key="k")
        await ended(book, "me", fresh.id)
        await book.sweep()
        assert list(book._records) == [fresh.id]
    assert kept_files(tmp_path) == ([f"results/{fresh.id}.jsonl", f"states/{fresh.id}.json"] if on_disk else [])
