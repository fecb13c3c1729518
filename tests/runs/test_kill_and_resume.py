"""kill∘resume = one run: a session that dies between any two writes, any number of times, leaves
what an undisturbed one leaves.
"""

import random
import tempfile
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_app.archives import list_complete_manifests, read_blocks
from ray_app.runs import RunDirectory, check_conservation, current_tables
from ray_app.storage import Store
from tests.archives.given import SWEEPS, Dying
from tests.make.small_run import new_run, relist, score_blocks, write_files

NAMES = [f"{index:02d}.jpg" for index in range(30)]


def session(store, folder, attempt, order):
    """What one session does, with blocks finished in any order."""
    run = RunDirectory(store)
    if not run.exists():
        run.claim({"detectors": {}}, [], {})
    if not list_complete_manifests(store):
        relist(run, folder)
    [left] = run.find_pending({0: read_blocks(store, 0)})
    pending = list(left)
    random.Random(order).shuffle(pending)
    for ref in pending:
        score_blocks(run, 0, attempt=attempt, blocks={ref.block})
    run.publish(0)
    check_conservation(run)


def rows(folder):
    run = RunDirectory.open(str(folder))
    assert run.parts(0) == []
    tables = [
        table.drop_columns(["attempt", "scored_at"])
        for table in current_tables(run, unfinished=True)
    ]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive") / "files"
    write_files(folder, NAMES)
    undisturbed = tmp_path_factory.mktemp("run") / "undisturbed"
    new_run(undisturbed)
    session(Store.open(str(undisturbed)), folder, 1, 0)
    return folder, rows(undisturbed)


@pytest.mark.parametrize("examples", SWEEPS)
def test_killed_and_resumed_run_equals_an_undisturbed_one(archive, examples):
    folder, expected = archive

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 16), st.booleans(), st.integers(0, 9)), max_size=5))
    @example([(moment, moment % 2 == 0, moment) for moment in (3, 9, 14)])
    def check(deaths):
        with tempfile.TemporaryDirectory(prefix="killed-") as out:
            for attempt, (moment, after, order) in enumerate(deaths, 1):
                with suppress(KeyboardInterrupt):
                    session(Dying(out, moment - 1, after=after), folder, attempt, order)
            session(Store.open(out), folder, len(deaths) + 1, 0)
            assert rows(out) == expected

    check()
