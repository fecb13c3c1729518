"""`LocalGroup`: a group of detectors in the process that asks it, behind the calls of `engine.GroupHandle`."""

import functools

from ray_app.serving import attribution
from ray_app.serving.batcher import Batcher
from ray_app.serving.config import ServeConfig
from ray_app.serving.metrics import Meter
from ray_app.serving.release import Release
from ray_app.serving.replica import DetectorGroup, ReleaseOffer, ScoreRequest, ScoreResponse


class LocalGroup:
    """Images of several requests share a batch; networks run in a thread of their own. Nothing is asked before something is loaded."""

    def __init__(self, name: str, meter: Meter) -> None:
        self._group = DetectorGroup(name)
        self._scoring: Batcher[ScoreRequest, ScoreResponse | ReleaseOffer] = Batcher(
            self._group.score, noted=functools.partial(meter.batch, name)
        )
        self._profiling: Batcher[attribution.ProfileRequest, attribution.ProfileResponse | ReleaseOffer] = Batcher(self._group.profile)
        self.is_loaded = False

    def load(self, config: ServeConfig) -> Release:
        """Load what `config` requests; requests are answered by what was loaded before until then. Blocks for seconds.

        Raises ConfigError and DetectorError, and then nothing changed.
        """
        release = self._group.load(config)
        self._scoring.slots, self._scoring.wait_s = release.spec.slots, config.batching.wait_ms / 1000
        self._profiling.slots = release.spec.slots
        self.is_loaded = True
        return release

    async def score(self, request: ScoreRequest) -> ScoreResponse | ReleaseOffer:
        """What the group says of one image, scored together with others that come at the same time."""
        return await self._scoring(request)

    async def profile(self, request: attribution.ProfileRequest) -> attribution.ProfileResponse | ReleaseOffer:
        """What the group's heads and describers say of one image; whatever came while others were at work goes together."""
        return await self._profiling(request)

    async def describe(self) -> Release:
        """What it serves."""
        return self._group.generation

    def check_health(self) -> None:
        """Raises DetectorError where its detectors gave no score for many images in a row: a device may have failed under them."""
        self._group.check_health()
