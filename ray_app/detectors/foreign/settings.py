"""What a card says of the process that a detector of another package runs in (`ForeignSettings`)."""

from pydantic import Field

from ray_app.config import Frozen

GMAC_PER_S = 100.0  # what one core is reckoned with (`scoring.layout`): so seconds that were measured become multiply-adds
ASSUMED_BYTES = 3 * 2**30  # of a child that nobody measured: Python, torch and a network


class ForeignSettings(Frozen):
    """Where and how the process is started; nothing here decides a score.

    `python`: the interpreter that has the package; `folder`: where the process runs, and where a package with a cache beside its caller
    has it. `limit_s`: seconds that one batch may take before the process is ended, `start_limit_s` that loading may, downloads included.
    `peak_bytes` and `seconds`: the memory of a process and the time of a megapixel, as measured when the card was written.
    """

    python: str = Field(min_length=1)
    folder: str = Field(min_length=1)
    limit_s: float = Field(default=60.0, gt=0)
    start_limit_s: float = Field(default=900.0, gt=0)
    peak_bytes: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)

    @property
    def memory_bytes(self) -> int:
        """What one process is reckoned with."""
        return self.peak_bytes or ASSUMED_BYTES

    @property
    def gmac(self) -> float:
        """Billions of multiply-adds per megapixel that would take a core as long; a second where nobody measured."""
        return GMAC_PER_S * (self.seconds or 1.0)
