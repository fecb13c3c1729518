"""A real S3-protocol server (moto's) in a process of its own, with a request log that tests can
read.

    with S3Server.start(folder) as s3:
        s3.bucket("photos"); …; s3.requests()

Run as a program it is the server: `python tests/make/servers/s3.py LOG` prints its port and serves until
it is stopped.
"""

import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

KEY, SECRET, REGION = "testing", "testing-secret", "us-east-1"


class Request(NamedTuple):
    """One line of the log: `path` is decoded and has no query (`/bucket/key`)."""

    method: str
    path: str


@dataclass
class S3Server:
    """A running server: `url`, its buckets, and what it was asked."""

    url: str
    log: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, folder: Path) -> "S3Server":
        """Start a server on a port of its own choosing; its log lies in `folder`."""
        log = folder / "requests.log"
        log.touch()
        command = [sys.executable, __file__, str(log)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        return cls(f"http://127.0.0.1:{int(process.stdout.readline())}", log, process)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which any S3 client finds this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        """A boto3 client, to put and look at objects without the code under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
        )

    def bucket(self, name: str) -> str:
        """Create a bucket; returns its URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def requests(self, without: str = "\n") -> list[Request]:
        """Return all requests since the start or the last `clear_log`, in the order of their
        answers, except those whose path or query contains `without`.
        """
        lines = self.log.read_text().splitlines()
        return [
            Request(method, unquote(urlsplit(target).path))
            for method, _, target in (line.partition(" ") for line in lines)
            if without not in target
        ]

    def clear_log(self) -> None:
        """Forget the requests so far (the server appends, so it goes on at the new end)."""
        os.truncate(self.log, 0)

    def stop(self) -> None:
        """End the server's process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()

    def __enter__(self) -> "S3Server":
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def serve(log: Path) -> None:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    lines = log.open("a", buffering=1)

    class Handler(MotoRequestHandler):
        def log_request(self, code="-", size="-") -> None:
            lines.write(f"{self.command} {self.path}\n")

    app, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def answer(environ, start_response):
        # moto looks whether an object is there and puts it in two steps, with others in between; S3
        # does it in one.
        with one_at_a_time if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
            return app(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Handler)
    # The pipe closes when the tests' process ends, however it ends: no server outlives it.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
