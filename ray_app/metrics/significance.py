"""Correct p-values of several tests by Holm's method (`holm`)."""

from collections.abc import Sequence


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for the number of tests (Holm 1979), in the order of `ps`.

    None is not counted as a test and stays None. The probability that any test without a true
    difference has a corrected p-value below α is at most α, for all tests together.
    """
    tests = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, index) in enumerate(tests):
        highest = max(highest, min(1.0, p * (len(tests) - rank)))
        corrected[index] = highest
    return corrected
