"""The learning rate of a step. Arithmetic alone: no torch."""

import math

from ray_app.learning.config import Schedule


def rate_at(schedule: Schedule, rate: float, step: int, total: int) -> float:
    """The learning rate of step `step`, counted from 0, of `total`; the formula stands at `Schedule`. After the last step: the floor."""
    warmup = warmup_steps(schedule, total)
    if step < warmup:
        return rate * (step + 1) / warmup
    passed = min((step - warmup) / (total - warmup), 1.0) if total > warmup else 1.0
    return rate * (schedule.floor + (1 - schedule.floor) * _left(schedule.shape, passed))


def warmup_steps(schedule: Schedule, total: int) -> int:
    """How many steps the rate rises: `warmup` itself from 1 on, below 1 that share of all, rounded."""
    return round(schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total)


def _left(shape: str, passed: float) -> float:
    if shape == "linear":
        return 1 - passed
    return (1 + math.cos(math.pi * passed)) / 2 if shape == "cosine" else 1.0
