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
    run,
    settings,
    until,
)


class TestLines:
    def test_one_per_image_in_order_whatever_becomes_of_it(self, ensemble):
        images = jpegs(5)
        images[2] = ("torn.jpg", images[2][1][:-100])
        images[3] = (None, b"no image at all")

        async def scenario():
            async with book_of(settings(concurrency=3), Scorer(ensemble)) as book:
                taken = await book.submit("me", images)
                job = await ended(book, "me", taken.id)
                return taken, job, lines(await book.results("me", job.id))

        taken, job, answers = run(scenario())
        assert (taken.results_url, taken.finished_at, taken.images, taken.finished) == (None, None, 5, 0)
        assert (job.state, job.finished, job.results_url) == ("done", 5, f"/v1/jobs/{job.id}/results")
        assert [answer["name"] for answer in answers] == ["0.jpg", "1.jpg", "torn.jpg", None, "4.jpg"]
        assert [answer["status"] for answer in answers] == ["ok", "ok", "truncated_image", "unsupported_format", "ok"]
        assert job.verdicts["none"] == 2
        assert sum(job.verdicts.values()) == 5
        assert job.ensemble.name == "default"
        direct = ensemble.score([data for _, data in images])
        assert [answer["score"] for answer in answers] == pytest.approx([result.score for result in direct], abs=1e-5)
        torn = answers[2]
        assert torn["error"]["code"] == "truncated_image"
        assert torn["image"]["format"] == "JPEG"
        assert (torn["image"]["width"], torn["image"]["size_bytes"], torn["verdict"]) == (96, len(images[2][1]), None)

    def test_urls_are_lines_too_named_without_their_secrets(self):
        urls = ["https://h/1.jpg?X-Amz-Signature=abc", "https://h/gone", "http://h/2.jpg", "https://h/3.jpg"]

        async def scenario(server):
            async with book_of(settings(urls=True), LightScorer(), LoopbackFetcher(server.url)) as book:
                job = await book.submit("me", None, urls)
                assert (await ended(book, "me", job.id)).state == "done"
                return await book.results("me", job.id)

        with PictureServer() as server:
            results = run(scenario(server))
        answers = lines(results)
        assert [answer["name"] for answer in answers] == ["https://h/1.jpg", "https://h/gone", "http://h/2.jpg", "https://h/3.jpg"]
        assert [answer["status"] for answer in answers] == ["ok", "source_missing", "url_refused", "ok"]
        assert (answers[1]["sha256"], answers[1]["image"]) == ("", None)
        assert b"abc" not in results

    def test_a_line_that_is_another_images_fails_the_job(self, ensemble):
        class Confused(LightScorer):
            async def score(self, data, *, name=None, **options):
                return await super().score(data, name="another", **options)

        async def scenario():
            async with book_of(settings(), Confused()) as book:
                return await ended(book, "me", (await book.submit("me", jpegs(2))).id)

        job = run(scenario())
        assert (job.state, job.detail) == ("failed", FAULT)


class TestOwners:
    def test_what_is_anothers_is_not_there(self):
        async def scenario():
            async with book_of(settings(), LightScorer()) as book:
                job = await book.submit("me", jpegs(1))
                await ended(book, "me", job.id)
                asked = (book.status("you", job.id), book.results("you", job.id), book.cancel("you", job.id), book.status("me", "0" * 32))
                return [(await refusal_of(one)).code for one in asked], await book.status("me", job.id)

        codes, job = run(scenario())
        assert codes == ["not_found"] * 4
        assert job.state == "done"

    def test_a_key_stands_for_one_request_of_one_owner(self):
        async def scenario():
            async with book_of(settings(), LightScorer()) as book:
                same = await asyncio.gather(*[book.submit("me", jpegs(3), idempotency_key="k") for _ in range(5)])
                later = await book.submit("me", jpegs(3), idempotency_key="k")
                theirs = await book.submit("you", jpegs(3), idempotency_key="k")
                without = [await book.submit("me", jpegs(3)), await book.submit("me", jpegs(3))]
                swapped = [(name, jpegs(1, 9)[0][1]) for name, _ in jpegs(3)]
                others = [{"images": jpegs(2)}, {"images": swapped}, {"images": [("x", data) for _, data in jpegs(3)]},
                          {"images": jpegs(3), "ensemble": "default"}]  # fmt: skip
                codes = [(await refusal_of(book.submit("me", idempotency_key="k", **other))).code for other in others]
                return {job.id for job in (*same, later)}, {theirs.id, *(job.id for job in without)}, codes

        mine, others, codes = run(scenario())
        assert (len(mine), len(others), mine & others) == (1, 3, set())
        assert codes == ["conflict"] * 4

    def test_a_client_that_hangs_up_has_its_job(self, tmp_path):
        async def scenario():
            scorer, gate = LightScorer(), asyncio.Event()
            async with book_of(settings(directory=str(tmp_path)), scorer) as book:
                save = book._store.save

                async def slowly(record):
                    await gate.wait()
                    await save(record)

                book._store.save = slowly
                asking = asyncio.create_task(book.submit("me", jpegs(2), idempotency_key="k"))
                (job,) = await until(lambda: _now(list(book._saving)))
                asking.cancel()
                again = asyncio.create_task(book.submit("me", jpegs(2), idempotency_key="k"))
                await asyncio.wait({asking})
                assert (asking.cancelled(), kept_files(tmp_path)) == (True, [])
                gate.set()
                assert (await again).id == job
                await ended(book, "me", job)
                return scorer.started

        assert run(scenario()) == ["0.jpg", "1.jpg"]


class TestLimits:
    def test_too_many_jobs_or_bytes_and_room_again(self):
        first = jpegs(2)
        size = sum(len(data) for _, data in first)

        async def scenario():
            scorer = LightScorer()
            scorer.gate.clear()
            async with book_of(settings(max_jobs=2, max_waiting_bytes=size + 10, max_images=3), scorer) as book:
                job = await book.submit("me", first, idempotency_key="k")
                refused = [await refusal_of(book.submit("me", jpegs(1, 5))), await refusal_of(book.submit("me", jpegs(4)))]
                small = await book.submit("me", [("x", b"tiny")])
                refused.append(await refusal_of(book.submit("me", [("y", b"tiny")])))
                again = await book.submit("me", first, idempotency_key="k")  # takes no further place
                scorer.gate.set()
                await ended(book, "me", job.id)
                await ended(book, "me", small.id)
                later = await book.submit("me", first)
                return refused, job.id == again.id, (await ended(book, "me", later.id)).state

        (bytes_, files, jobs), is_same, state = run(scenario())
        assert (bytes_.code, bytes_.limit, bytes_.headers) == ("overloaded", size + 10, {"Retry-After": "10"})
        assert (files.code, files.limit, files.observed) == ("too_many_files", 3, 4)
        assert (jobs.code, jobs.limit, jobs.headers) == ("overloaded", 2, {"Retry-After": "10"})
        assert (is_same, state) == (True, "done")

    def test_images_go_one_by_one(self):
        async def scenario():
            scorer = LightScorer()
            async with book_of(settings(concurrency=1), scorer) as book:
                scorer.gate.clear()
                job = await book.submit("me", jpegs(3))
                work = book._works[job.id]
                before = work.size_bytes
                scorer.gate.set()
                await until(lambda: _now(work.record.finished >= 1))
                scorer.gate.clear()
                after = work.size_bytes
                scorer.gate.set()
                await ended(book, "me", job.id)
                return before, after, work.size_bytes, job.id in book._works

        before, after, at_end, is_held = run(scenario())
        assert 0 <= after < before
        assert (at_end, is_held) == (0, False)

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
    def test_what_is_never_taken(self, request_, code):
        async def scenario():
            async with book_of(settings(), LightScorer()) as book:
                return await refusal_of(book.submit("me", **request_))

        assert run(scenario()).code == code

    def test_results_in_memory_have_a_budget(self):
        async def scenario():
            async with book_of(settings(max_waiting_bytes=3500), LightScorer()) as book:
                ids = []
                for number in range(4):
                    ids.append((await book.submit("me", [(str(number), b"x" * 100), ("2", b"y")])).id)
                    await ended(book, "me", ids[-1])
                gone = [id for id in ids if id not in book._records]
                return ids, gone, len(await book.results("me", ids[-1]))

        ids, gone, size = run(scenario())
        assert gone == ids[: len(gone)]
        assert 1 <= len(gone) <= 3
        assert size < 3500


class TestEnding:
    def test_cancelled_at_once_and_the_others_go_on(self):
        async def scenario():
            scorer = LightScorer()
            scorer.gate.clear()
            async with book_of(settings(concurrency=2), scorer) as book:
                job, other = await book.submit("me", jpegs(50)), await book.submit("me", jpegs(2, 60))
                await until(lambda: _now(len(scorer.started) == 2))
                cancelled = await book.cancel("me", job.id)
                at_once = scorer.at_once
                scorer.gate.set()
                end = await ended(book, "me", other.id)
                refusal = await refusal_of(book.results("me", job.id))
                forgotten = await book.cancel("me", job.id)
                return cancelled, at_once, end, refusal, forgotten, await refusal_of(book.status("me", job.id)), scorer.started

        cancelled, at_once, other, refusal, forgotten, gone, started = run(scenario())
        assert (cancelled.state, cancelled.finished, cancelled.results_url) == ("cancelled", 0, None)
        assert at_once <= 2
        assert (other.state, refusal.code, forgotten.state, gone.code) == ("done", "conflict", "cancelled", "not_found")
        assert len(started) <= 6

    def test_a_done_job_is_forgotten_on_request(self, tmp_path):
        async def scenario():
            async with book_of(settings(directory=str(tmp_path)), LightScorer()) as book:
                job = await ended(book, "me", (await book.submit("me", jpegs(1), idempotency_key="k")).id)
                said = await book.cancel("me", job.id)
                fresh = await book.submit("me", jpegs(2), idempotency_key="k")
                await book.cancel("me", fresh.id)
                await book.cancel("me", fresh.id)
                return said, job, await refusal_of(book.cancel("me", job.id))

        said, job, gone = run(scenario())
        assert (said, gone.code) == (job, "not_found")
        assert kept_files(tmp_path) == []

    @pytest.mark.parametrize("on_disk", [False, True])
    def test_expiry(self, tmp_path, on_disk):
        async def scenario():
            clock = Clock()
            config = settings(keep_hours=24, directory=str(tmp_path) if on_disk else None)
            async with book_of(config, LightScorer(), clock=clock) as book:
                job = await ended(book, "me", (await book.submit("me", jpegs(2), idempotency_key="k")).id)
                clock.pass_hours(23.9)
                await book.results("me", job.id)
                clock.pass_hours(0.2)
                gone = await refusal_of(book.status("me", job.id))
                fresh = await book.submit("me", jpegs(1), idempotency_key="k")
                await ended(book, "me", fresh.id)
                await book.sweep()
                return job, gone, fresh, list(book._records)

        job, gone, fresh, left = run(scenario())
        assert (job.expires_at - job.finished_at).total_seconds() == 24 * 3600
        assert (gone.code, left) == ("not_found", [fresh.id])
        assert kept_files(tmp_path) == ([f"results/{fresh.id}.jsonl", f"states/{fresh.id}.json"] if on_disk else [])


async def _now(value):
    return value
