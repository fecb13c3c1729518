"""Jobs take turns, and wait out an endpoint that is busy."""

from ray_app.serving.http.errors import Refusal
from ray_app.serving.jobs.book import FAULT
from ray_app.serving.jobs.queue import FAULTS, LONGEST_PAUSE_S
from tests.serving.job_world import LightScorer, Scorer, Sleeper, book_of, ended, jpegs, lines, refusal_of, settings


async def test_jobs_take_turns_image_by_image():
    scorer = LightScorer()
    scorer.gate.clear()
    async with book_of(settings(concurrency=1), scorer) as book:
        jobs = [await book.submit("me", jpegs(4)), await book.submit("me", jpegs(2, 10)), await book.submit("you", jpegs(1, 20))]
        scorer.gate.set()
        for owner, job in zip(("me", "me", "you"), jobs, strict=True):
            await ended(book, owner, job.id)
    assert scorer.started == ["0.jpg", "1.jpg", "10.jpg", "20.jpg", "2.jpg", "11.jpg", "3.jpg"]


async def test_no_more_at_once_than_concurrency_over_all_jobs(ensemble):
    scorer = Scorer(ensemble)
    async with book_of(settings(concurrency=3), scorer) as book:
        jobs = [await book.submit("me", jpegs(6, 10 * number)) for number in range(3)]
        for job in jobs:
            await ended(book, "me", job.id)
    assert (scorer.most_at_once, len(scorer.started)) == (3, 18)


async def test_a_busy_endpoint_is_waited_out():
    scorer, sleeper = LightScorer(), Sleeper()
    scorer.trouble = [Refusal("overloaded", headers={"Retry-After": "7"}), Refusal("not_ready"), Refusal("too_many_requests")] * 6
    async with book_of(settings(concurrency=1), scorer, sleep=sleeper) as book:
        job = await ended(book, "me", (await book.submit("me", jpegs(2))).id)
        assert job.state == "done"
        assert [answer["name"] for answer in lines(await book.results("me", job.id))] == ["0.jpg", "1.jpg"]
    assert len(sleeper.pauses) == 18
    assert 3.5 <= sleeper.pauses[0] <= 7  # what Retry-After said, with its random part
    assert max(sleeper.pauses) <= LONGEST_PAUSE_S


async def test_a_fault_that_passes_costs_nothing_and_one_that_stays_fails_the_job_and_no_other():
    scorer = LightScorer()
    async with book_of(settings(concurrency=1), scorer) as book:
        for faults, state, detail in ((FAULTS - 1, "done", None), (FAULTS, "failed", FAULT), (0, "done", None)):
            scorer.trouble = [RuntimeError("/secret/path")] * faults
            job = await ended(book, "me", (await book.submit("me", jpegs(3))).id)
            assert (job.state, job.detail) == (state, detail)
            if state == "failed":
                assert (await refusal_of(book.results("me", job.id))).code == "conflict"


async def test_an_ensemble_that_is_gone_fails_the_job_in_its_words():
    scorer = LightScorer()
    scorer.trouble = [Refusal("malformed_request", "no such ensemble; served: other")]
    async with book_of(settings(concurrency=1), scorer) as book:
        assert (await refusal_of(book.submit("me", jpegs(1), ensemble="nobody's"))).code == "malformed_request"
        job = await ended(book, "me", (await book.submit("me", jpegs(2))).id)
    assert (job.state, job.detail) == ("failed", "no such ensemble; served: other")
