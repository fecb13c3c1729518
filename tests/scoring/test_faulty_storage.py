"""Every tenth answer of a bucket is throttled, failed, reset, cut short or slow: the run completes,
every score is of a whole file.
"""

import hashlib

import pytest

from ray_app.runs import RunDirectory
from tests.make.archives import fill_bucket
from tests.make.runs import comparable, rows_of, run_score
from tests.make.servers.faulty_proxy import FAULTS, FaultyProxy

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MEMBERS = 200


@pytest.mark.timeout(600)
def test_a_run_through_faults_equals_one_without(s3, score):
    bucket = s3.bucket("faulty")
    fill_bucket(bucket, MEMBERS)
    source, clean, through = f"{bucket}/photos", f"{bucket}/clean", f"{bucket}/through"
    score(source, clean, block_members=16)

    with FaultyProxy(s3.url, share=0.1) as proxy:
        words = ["--out", through, "--ensemble", "tiny", "--set", "block_members=16"]
        process = run_score(source, *words, environment={"AWS_ENDPOINT_URL": proxy.url})
        _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert all(proxy.met[fault] > 0 for fault in FAULTS), proxy.met
    session = RunDirectory.open(through).read_json("summary.json")["session"]
    assert session["retried"] >= session["throttled"] > 0

    expected, found = rows_of(clean), rows_of(through)
    assert found.keys() == expected.keys()
    client = s3.client()
    for uri, row in found.items():
        assert comparable(row) == comparable(expected[uri])
        body = client.get_object(Bucket="faulty", Key=uri.partition("faulty/")[2])["Body"].read()
        assert (row["status"], row["sha256"]) == ("ok", hashlib.sha256(body).hexdigest())
