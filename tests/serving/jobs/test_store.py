"""What of jobs outlives the process, in a directory."""

import asyncio
import json
import subprocess
import sys

import pytest

from ray_app.serving.jobs.book import RESTARTED
from tests.serving.job_world import (
    LightScorer,
    LoopbackFetcher,
    PictureServer,
    Sleeper,
    book_of,
    ended,
    jpegs,
    kept_files,
    lines,
    refusal_of,
    settings,
    until,
)


async def test_a_new_process_answers_for_what_is_done(tmp_path):
    images, scorer = jpegs(3), LightScorer()
    async with book_of(settings(directory=str(tmp_path)), LightScorer()) as book:
        job = await ended(book, "me", (await book.submit("me", images, idempotency_key="k")).id)
        results = await book.results("me", job.id)
    async with book_of(settings(directory=str(tmp_path)), scorer) as book:
        assert await book.submit("me", images, idempotency_key="k") == await book.status("me", job.id) == job
        assert await book.results("me", job.id) == results
    assert scorer.started == []
    assert not any(data[:64] in kept_bytes(tmp_path) for _, data in images)


async def test_uploads_that_were_not_done_say_so(tmp_path):
    scorer = LightScorer()
    scorer.gate.clear()
    async with book_of(settings(directory=str(tmp_path)), scorer) as book:
        job = await book.submit("me", jpegs(3))
    async with book_of(settings(directory=str(tmp_path)), LightScorer()) as book:
        job = await ended(book, "me", job.id)
    assert (job.state, job.detail, job.finished) == ("failed", RESTARTED, 0)
    assert kept_files(tmp_path) == [f"states/{job.id}.json"]


async def test_urls_with_credentials_are_not_written_down(tmp_path):
    url = "https://h/1.jpg?X-Amz-Signature=abc&token=def"
    with PictureServer(held_from=9) as server:
        config = settings(urls=True, directory=str(tmp_path), webhooks=True, concurrency=1)
        async with book_of(config, LightScorer(), LoopbackFetcher(server.url), notify=Sleeper()) as book:
            job = await book.submit("me", None, [url, "https://h/9.jpg"], webhook="https://h/?token=ghi")
            await until(lambda: book._records[job.id].finished == 1)
        kept = kept_bytes(tmp_path)
        async with book_of(settings(urls=True, directory=str(tmp_path)), LightScorer(), LoopbackFetcher(server.url)) as book:
            job = await ended(book, "me", job.id)
    assert not any(secret in kept for secret in (b"abc", b"def", b"ghi"))
    assert (job.state, job.detail) == ("failed", RESTARTED)


async def test_a_successor_waits_until_its_predecessor_is_gone(tmp_path):
    config = settings(directory=str(tmp_path))
    async with book_of(config, LightScorer()) as old:
        job = await ended(old, "me", (await old.submit("me", jpegs(1))).id)
        async with book_of(config, LightScorer()) as new:
            asking = asyncio.create_task(new.status("me", job.id))
            await until(lambda: new._opening is not None)
            await asyncio.wait({asking}, timeout=0.2)
            assert not asking.done()
            await old.close()
            assert (await asking).state == "done"
            assert (await refusal_of(old.status("me", job.id))).code == "not_ready"


@pytest.mark.slow
async def test_in_a_bucket(s3):
    directory, urls = s3.bucket("jobs-of-an-endpoint") + "/jobs", [f"https://h/{number}.jpg" for number in range(6)]
    with PictureServer(held_from=3) as server:
        async with book_of(settings(urls=True, directory=directory, concurrency=1), LightScorer(), LoopbackFetcher(server.url)) as book:
            job = await book.submit("me", None, urls)
            await until(lambda: book._records[job.id].finished == 3)
        server.open.set()
        scorer = LightScorer()
        async with book_of(settings(urls=True, directory=directory), scorer, LoopbackFetcher(server.url)) as book:
            assert (await ended(book, "me", job.id)).state == "done"
            assert [line["name"] for line in lines(await book.results("me", job.id))] == urls
            await book.cancel("me", job.id)
    assert scorer.started == urls[3:]


async def test_a_directory_out_of_reach_is_said_and_nothing_is_taken(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    async with book_of(settings(directory=str(tmp_path / "file" / "jobs")), LightScorer()) as book:
        refusal = await refusal_of(book.submit("me", jpegs(1)))
        assert book._records == {}
    assert (refusal.code, refusal.headers) == ("overloaded", {"Retry-After": "10"})
    assert str(tmp_path) not in refusal.message


def kept_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def finished_by_this_process(directory, pictures, job):
    """What a second process would print, without the seconds that it takes to start."""
    config = settings(urls=True, directory=str(directory), concurrency=2)
    async with asyncio.timeout(60), book_of(config, LightScorer(), LoopbackFetcher(pictures)) as book:
        state = await ended(book, "me", job)
        return state.model_dump_json() + "\n" + (await book.results("me", job)).decode()


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
        if kind == "light":
            second = asyncio.run(finished_by_this_process(tmp_path, server.url, job))
        else:
            second = subprocess.run(command, input=job + "\n", capture_output=True, text=True, timeout=120, check=True).stdout
    state, *answers = [json.loads(line) for line in second.splitlines()]
    assert (state["state"], state["finished"], state["verdicts"]["none"]) == ("done", count, 0)
    assert [answer["name"] for answer in answers] == [f"https://h/{n}.jpg" for n in range(count)]
    assert [answer["request_id"] for answer in answers] == [f"{job}-{n}" for n in range(count)]
    assert len(before) == held_from + 2
    assert len(scored) >= held_from - 2
    twice = {path for path in server.asked if server.asked.count(path) > 1}
    assert twice == {f"/{n}.jpg" for n in range(held_from + 2)} - {f"/{int(name[-11:-5])}.jpg" for name in scored}
    assert len(twice) <= 4  # two places: what was in flight
    assert kept_files(tmp_path) == [f"results/{job}.jsonl", f"states/{job}.json"]
