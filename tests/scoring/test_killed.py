"""A run killed with SIGKILL in the middle, resumed by the same command: nothing lost, nothing twice, nothing fetched again."""

import io

import numpy as np
import pytest
from PIL import Image

from ray_app.runs import RunDirectory
from ray_app.storage import Store
from tests.scoring.conftest import comparable, kill_family, rows_of, start, wait_until

pytestmark = pytest.mark.ray


def fill_bucket(s3, bucket, count):
    """`count` different small JPEGs, cheap to make."""
    rng = np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).resize((256, 192), Image.Resampling.BICUBIC)
    store = Store.open(f"{bucket}/photos")
    for index in range(count):
        image = base.rotate(0, translate=(index % 61, index // 61 % 53))
        image.putpixel((index % 256, index // 256), (index % 256, 0, 0))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80 + index % 15)
        store.write(f"{index % 7}/{index:05d}.jpg", buffer.getvalue())


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("count", [400, 3000])
@pytest.mark.timeout(900)
def test_killed_in_the_middle_equals_an_uninterrupted_run(s3, score, count):
    bucket = s3.bucket(f"killed-{count}")
    fill_bucket(s3, bucket, count)
    source, whole, broken = f"{bucket}/photos", f"{bucket}/whole", f"{bucket}/broken"
    score(source, whole, block_members=32)
    run = RunDirectory.open(broken)

    process = start(source, broken)
    wait_until(lambda: len(run.parts(0)) >= count // 64 or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    kill_family(process)
    committed = set(run.parts(0))
    assert committed, "nothing was committed before the kill"
    safe = {row["uri"] for table in run.tables(0) for row in table.to_pylist()}
    assert len(safe) < count, "the run had ended before the kill"

    s3.clear_log()
    finish(start(source, broken))
    fetched = {f"s3:/{path}" for method, path in s3.requests() if method == "GET" and "/photos/" in path and path.endswith(".jpg")}
    assert not fetched & safe
    assert len(fetched) == count - len(safe)

    expected, found = rows_of(whole), rows_of(broken)
    assert len(found) == count
    assert len({row["image_id"] for row in found.values()}) == count
    assert {uri: (row["image_id"], comparable(row)) for uri, row in found.items()} == {
        uri: (row["image_id"], comparable(row)) for uri, row in expected.items()
    }

    added = {f"new/{index}.jpg" for index in range(50)}
    rewritten = {f"{index % 7}/{index:05d}.jpg" for index in range(0, 100, 10)}
    store = Store.open(source)
    other = store.read("0/00007.jpg")
    for index, name in enumerate(sorted(added | rewritten)):
        store.write(name, other + bytes([index]))
    score(source, broken, block_members=32)
    assert run.read_json("summary.json")["session"]["rows"] == 60
    after = rows_of(broken)
    assert len(after) == count + 50
    for uri, row in after.items():
        again = uri.removeprefix(f"{source}/") in added | rewritten
        assert row["attempt"] == (3 if again else found[uri]["attempt"])
        assert again or row == found[uri]
