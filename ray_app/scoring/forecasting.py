"""What a scoring run will do, before anything is spent: members, tensors, shared backbones, processes, and a rate from a short probe.

Starts no cluster and writes nothing: cores and GPUs are those stated in the config, else this machine's.
"""

import os
import random
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from ray_app.archives import Listed, open_source
from ray_app.errors import ConfigError, InputError
from ray_app.inference import BatchDecoder, ScoringSpec, StageClock
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.run import check_detectors, layout_for, spec_for
from ray_app.storage import Fetcher


def forecast(config: ScoreConfig, *, probe: int = 16, price_per_hour: float | None = None) -> dict[str, Any]:
    """The plan as plain JSON; `probe` members, drawn evenly, are scored on one core for the rate (0 = no probe). Weights are fetched.

    Raises ConfigError for an empty source or unknown card, DetectorError for weights that are missing.
    """
    if not config.source:
        raise ConfigError("nothing to plan for", hint="touchstone plan SOURCE")
    check_detectors(config)
    gpus = config.cluster.gpus or 0
    spec = spec_for(config, gpus)
    layout = layout_for(config, spec, config.cluster.cpus or len(os.sched_getaffinity(0)), gpus, _memory_bytes())
    members, size_bytes, sample = _counted(open_source(config.source, config.include, config.exclude), config.limit, probe)
    plan = {
        "members": members,
        "size_bytes": size_bytes,
        "ensemble": spec.ensemble.name,
        "rule": spec.ensemble.rule,
        "detectors": list(spec.cards),
        "tensors": _tensors(spec),
        "backbones": _backbones(spec),
        "pools": [list(pool) for pool in spec.pools],
        "kind": layout.kind,
        "layout": layout.described,
        "block_members": layout.block_members,
        "workers": layout.workers,
        "process_bytes": spec.process_bytes,
        "gmac_per_image": round(sum(spec.pool_gmac), 3),
        "probe": None,
    }
    if sample and spec.device == "cpu":
        plan["probe"] = _probed(spec, Fetcher(config.retry, signed=config.source), sample, members, layout.workers, price_per_hour)
    return plan


def _counted(listed: Iterable[Listed], limit: int | None, probe: int) -> tuple[int, int, list[Listed]]:
    """How many members, how many bytes, and an even draw of them (reservoir sampling, seeded)."""
    draw = random.Random(0)
    count = total = 0
    sample: list[Listed] = []
    for count, item in enumerate(islice(listed, limit), start=1):
        total += max(item.size_bytes, 0)
        if len(sample) < probe:
            sample.append(item)
        elif probe and (place := draw.randrange(count)) < probe:
            sample[place] = item
    return count, total, sample


def _tensors(spec: ScoringSpec) -> list[dict[str, Any]]:
    """Each distinct preprocessing with the detectors that share its tensor."""
    return [
        {"preprocessing": preprocessing.model_dump(mode="json", exclude_defaults=True), "shape": preprocessing.shape,
         "detectors": [name for name, card in spec.cards.items() if card.preprocessing == preprocessing]}
        for preprocessing in spec.preprocessings
    ]  # fmt: skip


def _backbones(spec: ScoringSpec) -> list[dict[str, Any]]:
    """Each named backbone with the groups of detectors for which it runs once per image."""
    groups: dict[str, dict[Any, list[str]]] = {}
    for name, card in spec.cards.items():
        if card.backbone is not None:
            groups.setdefault(card.backbone.name, {}).setdefault((card.preprocessing, spec.precision[name]), []).append(name)
    return [{"name": name, "runs_once_for": list(users.values())} for name, users in groups.items()]


def _memory_bytes() -> float:
    """What Ray would find on this machine: 70 % of its memory."""
    return 0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _probed(
    spec: ScoringSpec, fetcher: Fetcher, sample: list[Listed], members: int, workers: int, price_per_hour: float | None
) -> dict[str, Any]:
    """Fetch, decode and score the sample on one thread; the first batch warms up and is not counted where there are more."""
    import torch

    from ray_app.inference.scoring import EnsembleScorer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = StageClock()
        scorer, decoder = EnsembleScorer(spec, clock), BatchDecoder(spec, clock)
        counted, failed, seconds, stages = 0, 0, 0.0, dict.fromkeys(clock.seconds, 0.0)
        for start in range(0, len(sample), spec.slots):
            part = sample[start : start + spec.slots]
            begun = time.perf_counter()
            batch = decoder.decode([(0, _bytes(fetcher, item, spec, clock)) for item in part])
            scorer.score([batch])
            failed += batch.usable.count(False)
            if start or len(sample) <= spec.slots:
                counted, seconds = counted + len(part), seconds + time.perf_counter() - begun
                stages = {stage: stages[stage] + spent for stage, spent in clock.take().items()}
            clock.take()
    finally:
        torch.set_num_threads(threads)
    hours = members * seconds / counted / workers / 3600
    return {
        "images": counted,
        "failed": failed,
        "seconds_per_image": round(seconds / counted, 4),
        "seconds": {stage: round(spent / counted, 4) for stage, spent in stages.items() if spent},
        "images_per_s": round(workers * counted / seconds, 2),
        "hours": round(hours, 4),
        "cost": None if price_per_hour is None else round(hours * price_per_hour, 2),
    }


def _bytes(fetcher: Fetcher, item: Listed, spec: ScoringSpec, clock: StageClock) -> bytes | InputError:
    with clock("fetch"):
        try:
            return fetcher.fetch(item.uri, item.version, spec.limits.max_bytes)
        except InputError as refused:
            return refused
