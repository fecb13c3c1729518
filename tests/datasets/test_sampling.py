import math
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.datasets.config import Sampling
from ray_app.datasets.labels import INPUT
from ray_app.datasets.sampling import SampleOrder
from ray_app.errors import ConfigError
from tests.make.datasets import labelled, mixture

BALANCED = Sampling(classes="balanced")
SAMPLINGS = {
    "natural": Sampling(),
    "in windows": Sampling(window=16, run=4),
    "twins": Sampling(twins=True),
    "twins in windows": Sampling(twins=True, window=8, run=2),
}


def bare(labels: list[str], generators: list[str], groups: list[str | None]) -> pa.Table:
    """Only what an order looks at."""
    nothing = pa.nulls(len(labels), pa.string())
    columns = {"label": pa.array(labels), "generator": pa.array(generators)}
    columns["group"] = pa.array(groups, pa.string())
    arrays = [columns.get(name, nothing) for name in INPUT.names]
    return pa.table({"input": pa.StructArray.from_arrays(arrays, fields=list(INPUT))})


def pairs(count: int, alone: int = 0) -> pa.Table:
    """So many groups of a real and a fake, and further fakes without a group."""
    labels, groups = ["real", "fake"] * count, [f"p{number // 2}" for number in range(2 * count)]
    return bare(labels + ["fake"] * alone, ["g"] * (2 * count + alone), groups + [None] * alone)


def seen(order: SampleOrder, count: int) -> np.ndarray:
    """The first rows of the whole training."""
    steps = math.ceil(count / order.batch)
    return np.concatenate([order.select_rows(step)[0] for step in range(steps)])[:count]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLINGS)),
    st.integers(1, 40),
    st.integers(0, 5),
    st.integers(1, 12),
    st.integers(0, 2**40),
)
def test_an_epoch_sees_every_row_once(name, groups, alone, half, seed):
    rows = pairs(groups, alone)
    order = SampleOrder(rows, SAMPLINGS[name], seed, 2 * half)
    assert order.rows_per_epoch == len(rows)
    epochs = seen(order, 3 * len(rows)).reshape(3, -1)
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(len(rows)), (3, 1)))
    other = seen(SampleOrder(rows, SAMPLINGS[name], seed + 1, 2 * half), len(rows))
    assert len(rows) < 20 or len({tuple(one) for one in (*epochs, other)}) == 4, (
        "epochs and seeds differ"
    )


def test_batch_may_span_epochs():
    order = SampleOrder(pairs(5), Sampling(), 0, 8)
    rows, positions = order.select_rows(1)
    assert positions.tolist() == list(range(8, 16))
    assert set(rows[:2]) == set(range(10)) - set(order.select_rows(0)[0])
    many, _ = SampleOrder(pairs(5), Sampling(), 0, 40).select_rows(3)
    assert np.bincount(many).tolist() == [4] * 10


@pytest.mark.parametrize(
    ("batch", "epochs", "steps"),
    [(16, 1, 7), (16, 0.5, 4), (16, 2, 13), (16, 0.001, 1), (10, 0.1 * 3, 3)],
)
def test_steps_of_epochs_whatever_their_rounding(batch, epochs, steps):
    assert SampleOrder(pairs(50), Sampling(), 0, batch).count_steps(epochs) == steps


SHARED = [*SAMPLINGS.values(), Sampling(classes="balanced", generators=0.3, epoch_rows=50)]


@pytest.mark.parametrize("sampling", SHARED, ids=str)
def test_step_does_not_depend_on_process_order_or_workers(sampling):
    whole = SampleOrder(pairs(37, alone=3), sampling, 3, 24)
    expected = [whole.select_rows(step) for step in range(40)]
    again = SampleOrder(pairs(37, alone=3), sampling, 3, 24)
    for asked in (again, pickle.loads(pickle.dumps(whole))):
        for step in random.Random(0).sample(range(40), 40):
            world = (1, 2, 3, 4, 6)[step % 5]
            shares = [asked.shard(step, rank, world) for rank in range(world)]
            assert {len(rows) for rows, _ in shares} == {24 // world}
            for together, all_of_it in zip(zip(*shares, strict=True), expected[step], strict=True):
                assert np.array_equal(np.concatenate(together), all_of_it)


@pytest.mark.parametrize(
    ("rows", "sampling", "batch", "said"),
    [
        (pairs(10), Sampling(), 16, "cannot be divided equally among 3 workers"),
        (pairs(10), Sampling(twins=True), 9, "batch must be even"),
        (pairs(10), Sampling(twins=True), 8, "3 workers of twins"),
        (pairs(10), Sampling(epoch_rows=5), 3, "cannot be set with natural fractions"),
        (
            pairs(10),
            Sampling(twins=True, classes="balanced"),
            6,
            "sampling.classes must be natural",
        ),
        (pairs(10), Sampling(twins=True, generators=0), 6, "twins"),
        (pairs(1).slice(0, 0), Sampling(), 3, "no images"),
        (bare(["real", "maybe"], ["a", "b"], [None] * 2), BALANCED, 3, "found 'maybe'"),
        (pa.table({"image_id": [1, 2]}), BALANCED, 3, "have no labels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_sampling_is_refused(rows, sampling, batch, said):
    with pytest.raises(ConfigError, match=said):
        SampleOrder(rows, sampling, 0, batch).shard(0, 0, 3)


# Shares


def shares_of(rows: pa.Table, order: SampleOrder, epochs: int) -> dict[str, float]:
    generators = rows["input"].combine_chunks().field("generator").dictionary_encode()
    codes = generators.indices.to_numpy()[seen(order, epochs * order.rows_per_epoch)]
    names = generators.dictionary.to_pylist()
    return dict(zip(names, np.bincount(codes, minlength=len(names)) / len(codes), strict=True))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("classes", ["natural", "balanced"])
def test_shares_of_an_uneven_mixture_are_as_requested(classes, power):
    counts = {"few": 10, "some": 100, "many": 10_000}
    mixed = labelled(mixture(real=250, **counts))
    order = SampleOrder(mixed, Sampling(classes=classes, generators=power), 7, 128)
    fake = 0.5 if classes == "balanced" else 10_110 / 10_360
    weights = {name: count**power for name, count in counts.items()}
    expected = {name: fake * weight / sum(weights.values()) for name, weight in weights.items()}
    expected["real"] = 1 - fake
    for epochs in (1, 5):  # within 2 %, or one row if 2 % is less than a row
        found, row = shares_of(mixed, order, epochs), 1 / len(mixed) / epochs
        assert found == pytest.approx(expected, rel=0.02, abs=row)


@pytest.mark.parametrize("length", [1, 999])
def test_shares_are_kept_to_one_row_in_epochs_of_any_length(length):
    rows = labelled(mixture(real=40, a=1, b=3, c=200))
    order = SampleOrder(rows, Sampling(classes="balanced", generators=0, epoch_rows=length), 0, 16)
    assert order.rows_per_epoch == length
    for epochs in (1, 10, 60):
        assert shares_of(rows, order, epochs).get("real", 0) == pytest.approx(1 / 2, abs=1 / length)
    share = shares_of(rows, order, 60).get("a", 0)
    assert share == pytest.approx(1 / 6, abs=2 / 60 / length + 1e-9)


def test_rows_of_a_stratum_come_equally_often():
    rows = labelled(mixture(real=30, a=10, b=690))
    order = SampleOrder(rows, Sampling(classes="balanced", generators=0), 0, 33)
    came = seen(order, 4 * order.rows_per_epoch)
    times = np.bincount(came, minlength=len(rows))
    for first, count in ((0, 30), (30, 10), (40, 690)):
        assert np.ptp(times[first : first + count]) <= 1
    reals_per_tenth = (came[: order.rows_per_epoch] < 30).reshape(10, -1).sum(axis=1)
    assert np.abs(reals_per_tenth - order.rows_per_epoch / 20).max() <= 2


# Twins


@pytest.mark.parametrize("alone", [0, 3])
def test_twins_are_side_by_side_in_one_share(alone):
    rows = pairs(20, alone)
    order = SampleOrder(rows, Sampling(twins=True), 5, 12)
    together = 0
    for step in range(40):
        for rank in range(6):
            mine = order.shard(step, rank, 6)[0]
            together += int(mine[0] // 2 == mine[1] // 2 and mine[0] < 40)
    assert together == pytest.approx(40 * 6 * 40 / (40 + alone), abs=4)


def test_of_larger_groups_a_real_stands_by_a_fake():
    labels = ["real", "fake", "fake", "fake", "real", "real", "fake"]
    rows = bare(labels, ["g"] * 7, ["a"] * 4 + [None] + ["b"] * 2)
    order = SampleOrder(rows, Sampling(twins=True), 0, 2)
    # Two epochs of an odd number of rows.
    steps = [set(order.select_rows(step)[0].tolist()) for step in range(7)]
    assert steps.count({0, 1}) == steps.count({5, 6}) == 2


# Reading


def test_a_window_keeps_neighbours_near():
    rows = pairs(2048)
    # Each loader receives the order.
    assert len(pickle.dumps(SampleOrder(rows, Sampling(), 0, 64))) < 10_000
    runs = [
        len(np.unique(seen(SampleOrder(rows, sampling, 0, 64), 512) // 64))
        for sampling in (Sampling(), Sampling(window=512, run=64))
    ]
    assert runs == [64, 8], "512 rows of all 64 runs, or of 8"
