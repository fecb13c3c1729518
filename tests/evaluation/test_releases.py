import pyarrow as pa

from ray_app.evaluation.releases import releases_of


def rows(*entries, struct=True, told=None):
    """Entries of generator, label and the date of the run's own column; `told`: the dates of the labels."""
    made = [{"release_date": date} for *_, date in entries] if struct else [{"other": 1} for _ in entries]
    generators, labels = [one[0] for one in entries], [one[1] for one in entries]
    dates = pa.array(told or [None] * len(entries), pa.string())
    return pa.table(
        {"input": pa.array(made), "release_date": dates, "generator": pa.array(generators).dictionary_encode(), "label": labels}
    )


def test_the_earliest_date_of_each_generator():
    tables = [
        rows(("a", "fake", "2025-03-01"), ("b", "fake", None), ("real", "real", "2001"), ("a", "fake", "2024-12-31")),
        rows(("a", "fake", "2025-01-01"), ("c", "fake", "unknown"), ("d", "fake", "2023")),
    ]
    assert releases_of(tables) == {"a": "2024-12-31", "d": "2023"}


def test_rows_that_tell_nothing():
    nothing = pa.table({name: pa.nulls(1, pa.string()) for name in ("input", "release_date")} | {"generator": ["a"], "label": ["fake"]})
    assert releases_of([rows(("a", "fake", ""), struct=False), nothing, rows(("b", "fake", "2025"))]) == {"b": "2025"}
    assert releases_of([]) == {}


def test_a_date_of_the_labels_holds_over_that_of_the_run():
    both = rows(("a", "fake", "2020"), ("b", "fake", "2021"), told=["2025-01-01", None])
    assert releases_of([both, rows(("c", "fake", ""), struct=False, told=["2024"])]) == {"a": "2025-01-01", "b": "2021", "c": "2024"}
