import pytest

from benchmarks.processor import OWN, seconds_per_image


def test_only_the_window_counts():
    """Two seconds a second while it starts and ends, 1.5 between: 10 images a second."""
    finished = [(100.0 + second, 10 * second) for second in range(101)]
    samples, taken = [], 0.0
    for half in range(400):
        samples.append((50.0 + half / 2, {OWN: taken, "gcs": half * 0.01}))
        taken += 0.75 if 110 <= 50.0 + half / 2 < 195 else 1.0
    found = seconds_per_image(samples, finished, 1000, (0.15, 0.9))
    assert found == {OWN: pytest.approx(0.15), "gcs": pytest.approx(0.002)}
