"""`python -m tests.scoring.older CHECKOUT FILE`: make the older runs anew, by the code of a checkout of that version."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.s3_server import S3Server
from tests.scoring import faulty_proxy
from tests.scoring.older import BUCKET, SOURCE, pack_runs, put_pictures

SETTINGS = ("block_members=4", "cluster.workers=1", "cluster.grace_s=0")


def main(checkout: str, file: str) -> None:
    with tempfile.TemporaryDirectory() as folder, S3Server.start(Path(folder)) as s3:
        s3.bucket(BUCKET)
        client = s3.client()
        put_pictures(client)
        environment = os.environ | s3.environment | {"PYTHONPATH": checkout, "RAY_AUTH_MODE": "disabled"}

        def score(out: str, **variables: str) -> subprocess.Popen:
            command = [sys.executable, "-m", "ray_app.cli.main", "score", SOURCE, "--out", f"s3://{BUCKET}/{out}"]
            command += [word for setting in SETTINGS for word in ("--set", setting)]
            return subprocess.Popen(command, cwd=checkout, env=environment | variables)

        faulty_proxy.FAULTS = ("slow",)
        with faulty_proxy.FaultyProxy(s3.url, share=1.0) as slow:
            half = score("half", AWS_ENDPOINT_URL=slow.url)
            while client.list_objects_v2(Bucket=BUCKET, Prefix="half/parts/").get("KeyCount", 0) < 3:
                time.sleep(0.01)
            half.send_signal(signal.SIGTERM)
            assert half.wait() == 130
        assert score("finished").wait() == 0
        pack_runs(client, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
