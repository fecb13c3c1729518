"""A plan in words: what somebody who pays for it reads."""

import re

import pytest

from ray_app.reports import plan_lines, summary_lines

PLAN = {
    "members": 120_000,
    "size_bytes": 240_000_000_000,
    "unknown_sizes": 0,
    "kinds": {
        "files": {"members": 20_000, "size_bytes": 40_000_000_000, "containers": 0},
        "tar": {"members": 100_000, "size_bytes": 200_000_000_000, "containers": 50},
    },
    "refused_in_listing": {"encrypted_member": 3},
    "run": None,
    "ensemble": "default",
    "rule": "mean-logit",
    "detectors": ["touchstone-tiny"],
    "tensors": [{"preprocessing": {"resize": {"mode": "squash", "size": 224}}, "shape": (224, 224), "detectors": ["touchstone-tiny"]}],
    "backbones": [],
    "pools": [["touchstone-tiny"]],
    "kind": "split",
    "layout": "12 decoders feed 4 GPU scorers",
    "block_members": 1024,
    "blocks": 118,
    "workers": 16,
    "process_bytes": 2_000_000_000,
    "memory": {
        "processes": 4,
        "process_bytes": 2_000_000_000,
        "decode_bytes": 4_000_000_000,
        "file_bytes": 1_000_000_000,
        "total_bytes": 13_000_000_000,
        "worst_bytes": 4_500_000_000,
    },
    "gmac_per_image": 15.5,
    "cluster": {
        "name": "gpu-spot-pool",
        "cpus": 16,
        "gpus": 4,
        "price_per_hour": 2.6,
        "nodes": [{"name": "g6.xlarge", "count": 4, "cpus": 4, "gpus": 1, "gpu": "NVIDIA L4", "price_per_hour": 0.65}],
    },
    "probe": {
        "members": 64,
        "scored": 0,
        "score_basis": "estimated",
        "statuses": {"ok": 62, "truncated_image": 1, "unsupported_format": 1},
        "refused": 2,
        "refused_share": {"value": 0.03125, "low": 0.0086, "high": 0.107},
        "examples": {"truncated_image": [{"uri": "s3://b/a.tar", "member": "x\u202e.jpg", "detail": "ends early"}]},
    },
    "stages": [
        {"stage": "decode", "seconds_per_image": 0.012, "images_per_s": 1000.0, "processes": 12, "basis": "measured", "detectors": ()},
        {"stage": "score", "seconds_per_image": 0.00052, "images_per_s": 7742.0, "processes": 4, "basis": "estimated", "detectors": ()},
    ],
    "bottleneck": {"stage": "decode", "advice": "raise cores from 16 to 97 to keep the 4 GPUs busy"},
    "forecast": {
        "images_per_s": 1000.0,
        "hours": 0.5,
        "bytes_per_s": 2_000_000_000,
        "starting_s": 15.0,
        "listing_s": 12.0,
        "basis": "estimated",
        "assumed_gmac_per_s": 30_000.0,
    },
    "stops": {"max_hours": 0.25, "max_cost": None, "share": 0.5},
    "requests": {"list": 21, "get": 44_000, "put": 145},
    "bytes_read": 240_000_000_000,
    "prices": {"per_hour": 2.6, "get_per_1000": 0.0004, "put_per_1000": 0.005, "egress_per_gb": 0.0},
    "cost": {
        "compute": 1.3,
        "gets": 0.0176,
        "puts": 0.000725,
        "lists": 0.000105,
        "egress": 0.0,
        "requests": 0.01843,
        "total": 1.31843,
        "compute_share": 0.986,
        "per_1000_members": 0.010987,
    },
}


def told(**changes):
    return "\n".join(plan_lines(PLAN | changes))


@pytest.mark.parametrize(
    "words",
    [
        "120,000 files, 240.0 GB",
        "100,000 tar in 50 files, 200.0 GB",
        "3 refused by the listing: encrypted_member, an encrypted file in an archive",
        "gpu-spot-pool: 16 cores, 4 GPUs; 2.60 per hour",
        "4 × g6.xlarge: 4 cores, 1 × NVIDIA L4; 0.6500 per hour each",
        "2 of 64 refused: 1 truncated_image, 1 unsupported_format; of the archive 0.86 % to 10.7 % (95 % interval)",
        "truncated_image: e.g. s3://b/a.tar › x\\u202e.jpg: ends early",
        "bottleneck  decode: raise cores from 16 to 97 to keep the 4 GPUs busy",
        "1,000.0 images/s (2.0 GB/s from the source): 30 min 00 s in all, 15.0 s of it starting and 12.0 s listing",
        "the detectors' time is no measurement, since no GPU is here: multiply-adds on their cards at 30,000 billion a second on each GPU",
        "--max-hours 0.25 would stop it at about 50.0 % of that; the same command goes on from there",
        "21 LIST, 44,000 GET, 145 PUT, at the least; 240.0 GB read",
        "0.5 hours at 2.6",
        "44,000 at 0.0004 per 1,000",
        "1.32  in the currency of the prices, 0.0110 per 1,000 files; 98.6 % of it is compute",
    ],
)
def test_it_says_what_will_be_done_and_paid(words):
    assert words in told()


def test_it_says_what_a_node_gives_and_what_is_too_large_for_it():
    text = told()
    assert "at most 13.0 GB on a node: 4 processes, 4.0 GB for large images, which take turns, 1.0 GB for large files" in text
    assert "the limits let in up to 4.5 GB: --set cluster.decode_bytes=4500000000" in text
    assert "image_too_large" not in told(memory={**PLAN["memory"], "worst_bytes": 4_000_000_000})
    nobody_said = {**PLAN["memory"], "decode_bytes": None, "file_bytes": None, "total_bytes": None}
    assert "a quarter of each node's memory, which nobody has stated" in told(memory=nobody_said)


def test_stages_that_are_estimates_say_so():
    score = next(line for line in plan_lines(PLAN) if line.split()[:1] == ["score"])
    assert "7,742 images/s" in score
    assert "4 GPU processes" in score
    assert "estimated" in score


def test_without_a_price_the_total_does_not_pretend_to_be_one():
    nobody = PLAN["cluster"] | {"nodes": [], "price_per_hour": 0.0}
    text = told(prices=PLAN["prices"] | {"per_hour": 0.0}, cluster=nobody)
    assert "no price per hour is given" in text
    assert "without the machines" in text


def test_sizes_that_nobody_knows_are_no_zero_bytes():
    kinds = {"parquet": {"members": 80, "size_bytes": 0, "containers": 1}}
    text = told(members=80, unknown_sizes=80, size_bytes=0, kinds=kinds)
    assert "80 files, of unknown size" in text
    assert "80 Parquet in 1 file" in text
    assert "0 bytes" not in text
    assert "80 files, 1.0 MB and 3 of unknown size" in told(members=80, unknown_sizes=3, size_bytes=10**6)


def test_machines_that_cost_nothing_are_no_unknown():
    free = PLAN["cost"] | {"compute": 0.0, "total": 0.0, "compute_share": None, "per_1000_members": 0.0}
    text = told(prices=PLAN["prices"] | {"per_hour": 0.0}, cost=free)
    assert "0.5 hours at 0 per hour" in text
    assert "not known" not in text


def test_without_a_probe_nothing_is_forecast():
    text = told(probe=None, stages=[], bottleneck=None, forecast=None, cost=PLAN["cost"] | {"compute": None, "compute_share": None})
    assert "none: no probe was made (--probe 0)" in text
    assert "without the machines" in text


def test_a_local_folder_has_no_bill_for_requests():
    text = told(requests={"list": 0, "get": 0, "put": 0})
    assert "none that a store would bill" in text
    assert "egress" not in text


@pytest.mark.parametrize(
    ("state", "left", "words"),
    [("unfinished", 40_000, "the listing is there"), ("finished", 40_000, "new or changed since"), ("finished", 0, "left: nothing")],
)
def test_a_run_that_is_there_is_skipped(state, left, words):
    run = {"url": "s3://b/run", "state": state, "blocks_done": 80, "members_done": 80_000, "blocks_left": 40, "members_left": left}
    text = told(run=run)
    assert "80,000 files in 80 blocks done before, skipped" in text
    assert words in text


def test_the_end_of_a_run_says_what_it_cost():
    session = {"rows": 10, "cost": {"compute": 3.0, "requests": 0.2, "egress": 0.0, "total": 3.2}}
    lines = summary_lines({"members": 10, "statuses": {"ok": 10}, "session": session})
    assert "cost: 3.20 by the prices set: machines 3.00, requests 0.2000, egress 0.00" in lines
    assert not [line for line in summary_lines({"members": 10, "statuses": {"ok": 10}, "session": {"rows": 10}}) if "cost" in line]


@pytest.mark.parametrize(("share", "words"), [(None, "they are not in the forecast"), (0.25, "25.0 % of the probed images")])
def test_recompressed_views_are_forecast_where_a_probe_saw_them(share, words):
    lines = plan_lines(PLAN | {"stability": {"views": 5, "margin": 2.0, "share": share}})
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("stability")] == [
        f"5 recompressed views of every image within 2 log-odds of a threshold; {words}"
    ]


def test_embeddings_say_what_they_take():
    lines = plan_lines(PLAN | {"features": {"unifd": 768}})
    (told,) = [line for line in lines if line.startswith("embeddings")]
    assert told.split(maxsplit=1)[1] == "768 numbers per image, of unifd: about 368.6 MB in the run directory, for touchstone runs rescore"
    assert not [line for line in plan_lines(PLAN) if line.startswith("embeddings")]


def test_the_passes_of_a_zoo_and_what_each_detector_costs():
    shared = [{"name": "clip", "runs_once_for": [["unifd", "own-head"]]}]
    passes = [
        {
            "detectors": ["unifd", "own-head"],
            "layout": "2 workers",
            "process_bytes": 3_500_000_000,
            "backbones": shared,
            "images_per_s": 2.0,
        },
        {"detectors": ["npr"], "layout": "8 workers", "process_bytes": 1_100_000_000, "images_per_s": 40.0},
    ]
    costs = {
        "unifd": {"ms_per_image": 810.0, "spent_ms": 810.0, "share": 0.9, "cost_per_million": 270.0, "basis": "measured"},
        "own-head": {"ms_per_image": 812.0, "spent_ms": 2.0, "share": 0.002, "cost_per_million": 0.6, "basis": "measured"},
    }
    million = {"hours": 146.0, "cost": 300.0, "share_read": 0.03, "passes": 2}
    text = "\n".join(plan_lines(PLAN | {"passes": passes, "slowest_pass": 1, "costs": costs, "million": million}))
    assert "2, one after another, since the detectors do not fit together; each fetches and decodes every image once" in text
    assert "1: unifd, own-head" in text
    assert "2 workers, about 3.5 GB for a process; 2 images/s" in text
    assert "clip runs once for unifd and own-head" in text
    assert "of pass 1, the slowest:" in text
    assert re.search(r"own-head +812 +2 +0\.20 % ", text)
    assert "a million images take 146 h 00 min, 300.00 for the machines; 3.0 % of the time is reading and decoding" in text
    assert "which each of 2 passes repeats" in text
