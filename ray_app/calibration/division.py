"""Labelled images together with how they are divided: into groups, into parts, and which of them are copies. Knows no scores."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_app.calibration.grouping import repeated
from ray_app.calibration.labelled import Labelled, Places
from ray_app.calibration.parts import CALIBRATE, CHOOSE, FIT, split
from ray_app.metrics.arrays import Bools


@dataclass(frozen=True)
class Division:
    """`groups` and `parts` (n,) of the images; `copies` (n,): those that another image stands for."""

    labelled: Labelled
    groups: Places
    parts: Places
    copies: Bools

    @classmethod
    def of(cls, labelled: Labelled, groups: Places, parts: Places) -> "Division":
        """That of images whose groups and parts are known."""
        return cls(labelled, groups, parts, repeated(labelled))

    @cached_property
    def fitting(self) -> Labelled:
        """The images that detectors' calibrations and the rule are fitted on."""
        return self.labelled.take(self.parts == FIT)

    @cached_property
    def calibrating(self) -> Labelled:
        """The images that the ensemble's calibration is fitted on."""
        return self.labelled.take(self.parts == CALIBRATE)

    @cached_property
    def choosing(self) -> Labelled:
        """The images that thresholds are chosen on, and nothing is fitted on."""
        return self.labelled.take(self.parts == CHOOSE)

    @property
    def choosing_reals(self) -> Bools:
        """Which of those are reals, each picture once."""
        reals: Bools = ~self.choosing.fake & ~self.copies[self.parts == CHOOSE]
        return reals

    def without(self, gone: Bools, seed: int) -> "Division":
        """The other images in the same parts; divided anew where a part would be left without fakes. Raises ConfigError as `split`."""
        kept = ~gone
        rest, parts = self.labelled.take(kept), self.parts[kept]
        groups = np.unique(self.groups[kept], return_inverse=True)[1]
        if set(parts[rest.fake].tolist()) < {FIT, CALIBRATE, CHOOSE}:
            parts = split(rest, groups, seed=seed)
        return Division(rest, groups, parts, self.copies[kept])
