"""A comparison as `touchstone compare` writes it, made from small arrays by the functions that make
real ones.
"""

import numpy as np

from ray_app.evaluation.compare.changes import (
    QUANTILES,
    STATUSES,
    ImageTruth,
    distribution_of,
    flagged_of,
    flips_of,
    labelled_changes,
    shift_of,
    statuses_of,
)  # fmt: skip

N = 2_400
GENERATORS = ("flux-1-dev", "sdxl-turbo", "midjourney-6", "gpt-image-1")


def example_comparison(*, shift=0.3, shared=True, n=N):
    """`shared`: whether the runs share images."""
    draw = np.random.default_rng(4)
    fake = np.arange(n) % 3 == 0
    base = {
        name: draw.normal(np.where(fake, 1.0, -1.5), 1.3)
        for name in ("ensemble", "touchstone-tiny", "community-forensics-vits384")
    }
    after = {
        name: column + shift * (name != "community-forensics-vits384") * draw.normal(1, 0.4, n)
        for name, column in base.items()
    }
    codes = [
        np.where(one["ensemble"] > 1, 0, np.where(one["ensemble"] < -1, 2, 1)).astype(np.int8)
        for one in (base, after)
    ]
    statuses = np.zeros(n, np.int8)
    later = np.where(draw.random(n) < 0.004, STATUSES.index("corrupt_image"), statuses).astype(
        np.int8
    )
    groups = [("real", "real:camera"), *(("fake", name) for name in GENERATORS)]
    whose = np.where(fake, 1 + np.arange(n) // 3 % 4, 0).astype(np.int32)
    truth = ImageTruth(
        "truth.csv", whose, groups, np.array([name for _, name in groups], object)[whose]
    )
    none = np.empty(0)
    systems = [
        {
            "name": name,
            "shift": shift_of(base[name], after[name]) if shared else shift_of(none, none),
            "distribution": distribution_of(base[name], after[name]),
        }
        for name in base
    ]
    pairs = codes if shared else [np.empty(0, np.int8)] * 2
    both = n if shared else 0
    return {
        "schema": 2, "version": "0.1", "made_at": "2026-11-21T13:00:00+00:00",
        "runs": {side: _run(side) for side in "ab"},
        "rows": {"by": "image_id", "why": None, "a": n, "b": n, "both": both, "only_a": n - both, "only_b": n - both,
                 "doubled_a": 2, "doubled_b": 0, "unnamed_a": 0, "unnamed_b": 1},
        "identity": [{"key": "precision.touchstone-tiny", "a": '"fp32"', "b": '"bf16"'}] * 3,
        "only_detectors": {"a": ["npr"], "b": []},
        "statuses": statuses_of(statuses[:both], later[:both]), "verdicts": flips_of(*pairs), "flagged": flagged_of(*codes),
        "examples": [_example(place) for place in range(12 if shared else 0)],
        "systems": systems, "quantiles": list(QUANTILES),
        "labelled": labelled_changes(truth, list(base), lambda name: (base[name], after[name]), (codes[0], codes[1])) if shared else None,
        "equal": shift == 0 and shared and not statuses_of(statuses[:both], later[:both])["pairs"],
    }  # fmt: skip


def _run(side):
    url = f"s3://archive/runs/2026-11-{20 if side == 'a' else 21}"
    return {
        "url": url,
        "created_at": "2026-11-20T21:00:00+00:00",
        "detectors": [],
        "ensemble": "published",
        "finished": side == "a",
    }


def _example(place):
    member = f"{place}.jpg" if place % 2 else None
    named = {
        "image_id": place,
        "uri": f"s3://archive/photos/2024/{place % 3:02d}/IMG_{place:04d}.jpg",
        "member": member,
    }
    return named | {
        "verdict_a": "real",
        "verdict_b": "fake",
        "score_a": -2.4 + place / 10,
        "score_b": 3.1 - place / 10 if place else None,
    }
