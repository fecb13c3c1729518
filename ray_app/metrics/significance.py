"""Holm's correction of p-values for several tests (`holm`)."""

from collections.abc import Sequence


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all of them (Holm 1979), in the same order; None stays None and is no
    test.

    The chance that anything below α here is no difference, in the whole family, is at most α.
    """
    tests = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, place) in enumerate(tests):
        highest = max(highest, min(1.0, p * (len(tests) - rank)))
        corrected[place] = highest
    return corrected
