"""A plan in words: what somebody who pays for it reads."""

import re

import pytest
import yaml
from pydantic import TypeAdapter

from ray_app.reports import plan_lines
from ray_app.reports.plan_model import Plan
from tests.reports.example import DOCUMENTS

PLAN = yaml.safe_load((DOCUMENTS / "plan.yaml").read_text(encoding="utf-8"))


def plan_of(**changes):
    return TypeAdapter(Plan).validate_python(PLAN | changes)


def told(**changes):
    return "\n".join(plan_lines(plan_of(**changes)))


def test_plan_shows_work_speed_and_cost():
    text = told()
    for words in (
        "120,000 files, 240.0 GB",
        "100,000 tar in 50 files, 200.0 GB",
        "gpu-spot-pool: 16 cores, 4 GPUs; 2.60 per hour",
        "2 of 64 rejected: 1 truncated_image, 1 unsupported_format; of the archive 0.86 % to 10.7 % (95 % interval)",
        "bottleneck  decode: raise cores from 16 to 97 to keep the 4 GPUs busy",
        "1,000.0 images/s (2.0 GB/s from the source): 30 min 00 s in total, including 15.0 s to start and 12.0 s to list",
        "0.12  240.0 GB at 0.0005 per GB",
        "1.42  in the currency of the prices, 0.0118 per 1,000 files; 91.5 % of it is compute",
    ):
        assert words in text
    assert re.search(r"score +0\.00052 +7,742 images/s +4 GPU processes +estimated", text)


NO_PRICE = PLAN["prices"] | {"per_hour": 0.0}
UNKNOWN_SIZES = {
    "unknown_sizes": 80,
    "size_bytes": 0,
    "kinds": {"parquet": {"members": 80, "size_bytes": 0, "containers": 1}},
}
NO_PROBE = {"probe": None, "stages": [], "bottleneck": None, "forecast": None}
DONE = {"url": "s3://b/run", "blocks_done": 80, "members_done": 80_000, "blocks_left": 40}


@pytest.mark.parametrize(
    ("changes", "said", "not_said"),
    [
        (
            {"prices": NO_PRICE, "cluster": PLAN["cluster"] | {"nodes": [], "price_per_hour": 0.0}},
            ["no price per hour is set", "without the machines"],
            [],
        ),
        (
            {"members": 80} | UNKNOWN_SIZES,
            ["80 files, of unknown size", "80 Parquet in 1 file"],
            ["0 bytes"],
        ),
        (
            NO_PROBE | {"cost": PLAN["cost"] | {"compute": None, "compute_share": None}},
            ["none: there was no probe (--probe 0)", "without the machines"],
            [],
        ),
        (
            {"run": DONE | {"state": "unfinished", "members_left": 40_000}},
            ["80,000 files in 80 blocks already done, skipped", "the existing listing is used"],
            [],
        ),
        ({"run": DONE | {"state": "finished", "members_left": 0}}, ["left: nothing"], ["abstain"]),
    ],
)
def test_plan_marks_what_is_unknown_free_or_done(changes, said, not_said):
    text = told(**changes)
    assert all(words in text for words in said)
    assert not [words for words in not_said if words in text]


def test_plan_begins_with_an_unlike_archive():
    first = plan_lines(plan_of(unlike="jpeg_quality (PSI 1.2)"))[0]
    assert re.fullmatch(r"unlike +all verdicts abstain: jpeg_quality \(PSI 1\.2\)", first)


def test_plan_shows_the_cost_of_each_detector():
    costs = {
        "unifd": {"ms_per_image": 810.0, "spent_ms": 810.0, "share": 0.9, "basis": "measured"},
        "own-head": {"ms_per_image": 812.0, "spent_ms": 2.0, "share": 0.002, "basis": "measured"},
    }
    text = told(groups=[["unifd", "own-head"], ["npr"]], costs=costs)
    for said in (
        "1: unifd, own-head",
        "2: npr",
        "for a process in which detectors take turns, by the sizes on their cards",
    ):
        assert said in text
    assert re.search(r"own-head +812 +2 +0\.20 % +measured", text)
