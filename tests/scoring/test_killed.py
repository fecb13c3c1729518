"""A run killed with SIGKILL in the middle, resumed by the same command: nothing lost, nothing
twice, nothing fetched again.
"""

import io

import numpy as np
import pytest
from PIL import Image

from ray_app.runs import RunDirectory, current_tables
from ray_app.storage import Store
from tests.scoring.conftest import comparable, kill_family, rows_of, start, wait_until

pytestmark = pytest.mark.ray

COUNT = 400
# A report's pictures are read from the archive again (docs/pages.md); here every file that is
# fetched is one that is scored.
SETTINGS = ("block_members=16", "thumbnails=false")


def fill_bucket(s3, bucket, count):
    """`count` different small JPEGs, cheap to make."""
    rng = np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).resize(
        (256, 192), Image.Resampling.BICUBIC
    )
    store = Store.open(f"{bucket}/photos")
    for index in range(count):
        image = base.rotate(0, translate=(index % 61, index // 61 % 53))
        image.putpixel((index % 256, index // 256), (index % 256, 0, 0))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80 + index % 15)
        store.write(f"{index % 7}/{index:05d}.jpg", buffer.getvalue())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_the_middle_equals_an_uninterrupted_run(s3, score):
    bucket = s3.bucket("killed")
    fill_bucket(s3, bucket, COUNT)
    source, whole, broken = f"{bucket}/photos", f"{bucket}/whole", f"{bucket}/broken"
    score(source, whole, block_members=16)
    run = RunDirectory.open(broken)

    process = start(source, broken, *SETTINGS)
    wait_until(lambda: len(run.parts(0)) >= 6 or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    kill_family(process)
    safe = {
        row["uri"] for table in current_tables(run, unfinished=True) for row in table.to_pylist()
    }
    assert 0 < len(safe) < COUNT, "nothing was committed before the kill, or the run had ended"

    s3.clear_log()
    process = start(source, broken, *SETTINGS)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    fetched = [
        f"s3:/{path}"
        for method, path in s3.requests()
        if method == "GET" and "/photos/" in path and path.endswith(".jpg")
    ]
    assert not set(fetched) & safe
    assert len(fetched) == len(set(fetched)) == COUNT - len(safe)

    expected, found = rows_of(whole), rows_of(broken)
    assert len({row["image_id"] for row in found.values()}) == COUNT
    assert {uri: (row["image_id"], comparable(row)) for uri, row in found.items()} == {
        uri: (row["image_id"], comparable(row)) for uri, row in expected.items()
    }
