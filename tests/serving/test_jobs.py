"""The book of jobs: one line per image in order, turns, patience, limits, memory, what outlives the process."""

import asyncio
import json
import subprocess
import sys

import pytest

import ray_app
from ray_app.errors import ConfigError
from ray_app.serving.config import UrlFetching
from ray_app.serving.fetching import GuardedFetcher
from ray_app.serving.http.errors import Refusal
from ray_app.serving.job_scoring import FAULTS, LONGEST_PAUSE_S
from ray_app.serving.jobs import FAULT, RESTARTED
from tests.serving.job_world import (
    Clock,
    LightScorer,
    LoopbackFetcher,
    PictureServer,
    Scorer,
    Sleeper,
    book_of,
    ended,
    jpegs,
    settings,
    until,
)


@pytest.fixture(scope="module")
def ensemble():
    return ray_app.load_ensemble("default")


def run(scenario):
    """A scenario to its end, in an event loop of its own."""
    return asyncio.run(asyncio.wait_for(scenario, 60))


def lines(results):
    return [json.loads(line) for line in results.decode().splitlines()]


async def refusal_of(asked):
    with pytest.raises(Refusal) as caught:
        await asked
    return caught.value


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


class TestTurns:
    def test_jobs_take_turns_image_by_image(self):
        async def scenario():
            scorer = LightScorer()
            scorer.gate.clear()
            async with book_of(settings(concurrency=1), scorer) as book:
                jobs = [await book.submit("me", jpegs(4)), await book.submit("me", jpegs(2, 10)), await book.submit("you", jpegs(1, 20))]
                scorer.gate.set()
                for owner, job in zip(("me", "me", "you"), jobs, strict=True):
                    await ended(book, owner, job.id)
            return scorer.started

        assert run(scenario()) == ["0.jpg", "1.jpg", "10.jpg", "20.jpg", "2.jpg", "11.jpg", "3.jpg"]

    def test_no_more_at_once_than_concurrency_over_all_jobs(self, ensemble):
        async def scenario():
            scorer = Scorer(ensemble)
            async with book_of(settings(concurrency=3), scorer) as book:
                jobs = [await book.submit("me", jpegs(6, 10 * number)) for number in range(3)]
                for job in jobs:
                    await ended(book, "me", job.id)
            return scorer.most_at_once, len(scorer.started)

        assert run(scenario()) == (3, 18)


class TestPatience:
    def test_a_busy_endpoint_is_waited_out(self):
        async def scenario():
            scorer, sleeper = LightScorer(), Sleeper()
            scorer.trouble = [Refusal("overloaded", headers={"Retry-After": "7"}), Refusal("not_ready"), Refusal("too_many_requests")] * 6
            async with book_of(settings(concurrency=1), scorer, sleep=sleeper) as book:
                job = await ended(book, "me", (await book.submit("me", jpegs(2))).id)
                return job, lines(await book.results("me", job.id)), sleeper.pauses

        job, answers, pauses = run(scenario())
        assert (job.state, [answer["name"] for answer in answers]) == ("done", ["0.jpg", "1.jpg"])
        assert len(pauses) == 18
        assert 3.5 <= pauses[0] <= 7  # what Retry-After said, with its random part
        assert max(pauses) <= LONGEST_PAUSE_S

    def test_a_fault_that_passes_costs_nothing(self):
        async def scenario():
            scorer = LightScorer()
            scorer.trouble = [RuntimeError("a replica went away")] * (FAULTS - 1)
            async with book_of(settings(concurrency=1), scorer) as book:
                return await ended(book, "me", (await book.submit("me", jpegs(2))).id)

        assert run(scenario()).state == "done"

    def test_a_fault_that_stays_fails_the_job_and_no_other(self):
        async def scenario():
            scorer = LightScorer()
            scorer.trouble = [RuntimeError("/secret/path")] * FAULTS
            async with book_of(settings(concurrency=1), scorer) as book:
                first = await ended(book, "me", (await book.submit("me", jpegs(3))).id)
                second = await ended(book, "me", (await book.submit("me", jpegs(2))).id)
                return first, second, await refusal_of(book.results("me", first.id))

        first, second, refusal = run(scenario())
        assert (first.state, first.detail, second.state) == ("failed", FAULT, "done")
        assert refusal.code == "conflict"

    def test_an_ensemble_that_is_gone_fails_the_job_in_its_words(self):
        async def scenario():
            scorer = LightScorer()
            scorer.trouble = [Refusal("malformed_request", "no such ensemble; served: other")]
            async with book_of(settings(concurrency=1), scorer) as book:
                assert (await refusal_of(book.submit("me", jpegs(1), ensemble="nobody's"))).code == "malformed_request"
                return await ended(book, "me", (await book.submit("me", jpegs(2))).id)

        job = run(scenario())
        assert (job.state, job.detail) == ("failed", "no such ensemble; served: other")


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


class TestDirectory:
    def test_a_new_process_answers_for_what_is_done(self, tmp_path):
        images = jpegs(3)

        async def first():
            async with book_of(settings(directory=str(tmp_path)), LightScorer()) as book:
                job = await ended(book, "me", (await book.submit("me", images, idempotency_key="k")).id)
                return job, await book.results("me", job.id)

        async def second(job):
            scorer = LightScorer()
            async with book_of(settings(directory=str(tmp_path)), scorer) as book:
                again = await book.submit("me", images, idempotency_key="k")
                return await book.status("me", job.id), await book.results("me", job.id), again, scorer.started

        job, results = run(first())
        assert run(second(job)) == (job, results, job, [])
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert not any(data[:64] in kept for _, data in images)

    def test_uploads_that_were_not_done_say_so(self, tmp_path):
        async def first():
            scorer = LightScorer()
            scorer.gate.clear()
            async with book_of(settings(directory=str(tmp_path)), scorer) as book:
                return await book.submit("me", jpegs(3))

        async def second(job):
            async with book_of(settings(directory=str(tmp_path)), LightScorer()) as book:
                return await ended(book, "me", job.id)

        job = run(second(run(first())))
        assert (job.state, job.detail, job.finished) == ("failed", RESTARTED, 0)
        assert kept_files(tmp_path) == [f"states/{job.id}.json"]

    def test_urls_with_credentials_are_not_written_down(self, tmp_path):
        url = "https://h/1.jpg?X-Amz-Signature=abc&token=def"

        async def first(server):
            config = settings(urls=True, directory=str(tmp_path), webhooks=True, concurrency=1)
            async with book_of(config, LightScorer(), LoopbackFetcher(server.url), notify=Sleeper()) as book:
                job = await book.submit("me", None, [url, "https://h/9.jpg"], webhook="https://h/?token=ghi")
                await until(lambda: _now(book._records[job.id].finished == 1))
                return job

        async def second(job, server):
            async with book_of(settings(urls=True, directory=str(tmp_path)), LightScorer(), LoopbackFetcher(server.url)) as book:
                return await ended(book, "me", job.id)

        with PictureServer(held_from=9) as server:
            job = run(first(server))
            kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            job = run(second(job, server))
        assert not any(secret in kept for secret in (b"abc", b"def", b"ghi"))
        assert (job.state, job.detail) == ("failed", RESTARTED)

    def test_a_successor_waits_until_its_predecessor_is_gone(self, tmp_path):
        async def scenario():
            config = settings(directory=str(tmp_path))
            async with book_of(config, LightScorer()) as old:
                job = await ended(old, "me", (await old.submit("me", jpegs(1))).id)
                async with book_of(config, LightScorer()) as new:
                    asking = asyncio.create_task(new.status("me", job.id))
                    await until(lambda: _now(new._opening is not None))
                    await asyncio.wait({asking}, timeout=0.2)
                    was_waiting = not asking.done()
                    await old.close()
                    return was_waiting, (await asking).state, (await refusal_of(old.status("me", job.id))).code

        assert run(scenario()) == (True, "done", "not_ready")

    @pytest.mark.slow
    def test_in_a_bucket(self, s3):
        directory = s3.bucket("jobs-of-an-endpoint") + "/jobs"

        async def first(server):
            config = settings(urls=True, directory=directory, concurrency=1)
            async with book_of(config, LightScorer(), LoopbackFetcher(server.url)) as book:
                job = await book.submit("me", None, [f"https://h/{number}.jpg" for number in range(6)])
                await until(lambda: _now(book._records[job.id].finished == 3))
                return job

        async def second(server, job):
            scorer = LightScorer()
            async with book_of(settings(urls=True, directory=directory), scorer, LoopbackFetcher(server.url)) as book:
                end = await ended(book, "me", job.id)
                results = lines(await book.results("me", job.id))
                await book.cancel("me", job.id)
                return end, results, scorer.started

        with PictureServer(held_from=3) as server:
            job = run(first(server))
            server.open.set()
            end, results, scored = run(second(server, job))
        assert (end.state, [line["name"] for line in results]) == ("done", [f"https://h/{number}.jpg" for number in range(6)])
        assert scored == [f"https://h/{number}.jpg" for number in range(3, 6)]

    def test_a_directory_out_of_reach_is_said_and_nothing_is_taken(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")

        async def scenario():
            async with book_of(settings(directory=str(tmp_path / "file" / "jobs")), LightScorer()) as book:
                return await refusal_of(book.submit("me", jpegs(1))), book._records

        refusal, records = run(scenario())
        assert records == {}
        assert (refusal.code, refusal.headers) == ("overloaded", {"Retry-After": "10"})
        assert str(tmp_path) not in refusal.message


@pytest.mark.parametrize("kind", ["light", pytest.param("real", marks=pytest.mark.slow)])
def test_killed_in_the_middle_and_finished_by_the_next(tmp_path, kind):
    count, held_from = 12, 7
    with PictureServer(held_from=held_from) as server:
        command = [sys.executable, "-m", "tests.serving.job_process", str(tmp_path), server.url, kind]
        first = subprocess.Popen([*command, *(f"https://h/{n}.jpg" for n in range(count))], stdout=subprocess.PIPE, text=True)
        job = first.stdout.readline().strip()
        for _ in range(held_from + 2):  # seven are scored or being so, two are held at the server
            assert server.arrived.acquire(timeout=60)
        first.kill()
        first.wait()
        first.stdout.close()
        before = list(server.asked)
        scored = sorted(path.name for path in (tmp_path / "lines").iterdir() if path.name.endswith(".json"))
        server.open.set()
        second = subprocess.run(command, input=job + "\n", capture_output=True, text=True, timeout=120, check=True)
    state, *answers = [json.loads(line) for line in second.stdout.splitlines()]
    assert (state["state"], state["finished"], state["verdicts"]["none"]) == ("done", count, 0)
    assert [answer["name"] for answer in answers] == [f"https://h/{n}.jpg" for n in range(count)]
    assert [answer["request_id"] for answer in answers] == [f"{job}-{n}" for n in range(count)]
    assert len(before) == held_from + 2
    assert len(scored) >= held_from - 2
    twice = {path for path in server.asked if server.asked.count(path) > 1}
    assert twice == {f"/{n}.jpg" for n in range(held_from + 2)} - {f"/{int(name[-11:-5])}.jpg" for name in scored}
    assert len(twice) <= 4  # two places: what was in flight
    assert kept_files(tmp_path) == [f"results/{job}.jsonl", f"states/{job}.json"]


def kept_files(root):
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("lease"))


async def _now(value):
    return value
