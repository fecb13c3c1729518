"""A process with a JobBook, to be killed: `python -m tests.serving.job_process DIRECTORY PICTURES_URL light|real [URL …]`.

Submits a job of the URLs, if there are any, and prints its id; then, whatever job is there, waits for its end and prints its state.
"""

import asyncio
import sys

from tests.serving.job_world import LightScorer, LoopbackFetcher, Scorer, book_of, ended, settings


async def main(directory, pictures, kind, *urls):
    if kind == "real":
        import ray_app

        scorer = Scorer(ray_app.load_ensemble("tiny"))
    else:
        scorer = LightScorer()
    async with book_of(settings(urls=True, directory=directory, concurrency=2), scorer, LoopbackFetcher(pictures)) as book:
        if urls:
            print((await book.submit("me", None, urls)).id, flush=True)
        else:
            id = sys.stdin.readline().strip()
            print((await ended(book, "me", id)).model_dump_json(), flush=True)
            print((await book.results("me", id)).decode(), end="", flush=True)
            return
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
