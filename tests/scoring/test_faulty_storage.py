"""Every tenth answer of a bucket is throttled, failed, reset, cut short or slow: the run completes,
every score is of a whole file.
"""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from tests.scoring.conftest import ROOT, comparable, rows_of
from tests.scoring.faulty_proxy import FAULTS, FaultyProxy
from tests.scoring.test_killed import fill_bucket

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MEMBERS = 200


@pytest.mark.timeout(600)
def test_a_run_through_faults_equals_one_without(s3, score):
    bucket = s3.bucket("faulty")
    fill_bucket(s3, bucket, MEMBERS)
    source, clean, through = f"{bucket}/photos", f"{bucket}/clean", f"{bucket}/through"
    score(source, clean, block_members=16)

    with FaultyProxy(s3.url, share=0.1) as proxy:
        command = [sys.executable, "-m", "ray_app.cli", "score", source, "--out", through, "--json"]
        command += ["--ensemble", "tiny", "--set", "block_members=16"]
        environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert all(proxy.met[fault] > 0 for fault in FAULTS), proxy.met
    session = json.loads(done.stdout)["session"]
    assert session["retried"] >= session["throttled"] > 0

    expected, found = rows_of(clean), rows_of(through)
    assert {uri: comparable(row) for uri, row in found.items()} == {
        uri: comparable(row) for uri, row in expected.items()
    }
    client = s3.client()
    for uri, row in found.items():
        body = client.get_object(Bucket="faulty", Key=uri.partition("faulty/")[2])["Body"].read()
        assert (row["status"], row["sha256"]) == ("ok", hashlib.sha256(body).hexdigest())
