"""Jobs take turns, and wait out an endpoint that is busy."""

from ray_app.serving.http.errors import Refusal
from ray_app.serving.jobs.book import FAULT
from ray_app.serving.jobs.queue import FAULTS, LONGEST_PAUSE_S
from tests.serving.job_world import LightScorer, Scorer, Sleeper, book_of, ended, jpegs, lines, refusal_of, run, settings


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
