"""What a run that stops early is made of."""

from tests.scoring.conftest import archive, sample_archive, score  # noqa: F401  (fixtures)
