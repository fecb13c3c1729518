"""What one driver costs per block, and how many images a second it could feed: the engine on simulated clusters, with costless workers.

    python -m benchmarks.cluster --nodes 2 8 16 --json cluster.json
    python -m benchmarks.cluster --nodes 2 --layout split --score-s 2     scorers that sleep in a device's place: how long do they wait?

Every node is a Ray node of its own on this machine (`ray.cluster_utils`), the head has no cores. Each size runs in a process of its own. Of
the driver the processor time is counted (`getrusage`) from the first report to the last; Ray's own processes and the workers are apart. The
ceiling is what a driver that had a core for itself could feed.
"""

import argparse
import contextlib
import io
import json
import os
import re
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STORE_BYTES = 100 * 2**20
CPUS_PER_NODE = 2


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One cluster, one layout, in this process."""
    import ray
    from ray.cluster_utils import Cluster

    from benchmarks import costless
    from ray_app.cluster.progress import Progress
    from ray_app.runs import RunDirectory
    from ray_app.scoring import engine, stages
    from ray_app.scoring.layout import ScoringLayout
    from ray_app.scoring.session import ScoringSession

    [nodes], split = options.nodes, options.layout == ["split"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    for _ in range(nodes):
        cluster.add_node(wait=False, num_cpus=CPUS_PER_NODE, num_gpus=int(split), object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes(timeout=300)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    kind = "split" if split else "fused"
    scorers, decoders = (nodes, nodes) if split else (nodes * CPUS_PER_NODE, 0)
    layout = ScoringLayout(
        kind, (scorers,), decoders, options.members, worker_cpus=0.9, scorer_cpus=0.05, scorer_gpus=float(split), grows=False
    )
    with tempfile.TemporaryDirectory() as folder, costless.costless():
        run = RunDirectory.open(folder)
        session = ScoringSession(run, {}, time.monotonic())
        progress = Progress(options.blocks * options.members, stream=io.StringIO())
        job = stages.ScoringJob(run, costless.ONE_POOL, None, 1, Path(folder), None,  # type: ignore[arg-type]
                                 decode_limit_s=options.score_s, decode_bytes=options.image_bytes)  # fmt: skip
        quiet: Any = SimpleNamespace(reason=None, avoided=frozenset(), progressed=lambda: None)
        given = costless.blocks(options.blocks, options.members)
        counts: Counter[str] = Counter()
        began, first, reports = time.monotonic(), None, 0
        for report in engine.score_blocks(given, job, lambda: layout, stopper=quiet, watch=quiet):
            if first is None:
                first = (time.monotonic(), _cpu_s())
            session.committed(report)
            progress.advance(report.ref.members, report.bad)
            reports += 1
            if reports > options.blocks // 10:  # once all are at work
                counts.update({name: report.work.counts.get(name, 0) for name in (costless.BUSY_US, costless.WAITED_US)})
        assert first is not None
        assert reports == options.blocks
        cpu_s, wall_s = _cpu_s() - first[1], time.monotonic() - first[0]
    figures = {
        "nodes": nodes,
        "layout": kind,
        "blocks": reports,
        "members": options.members,
        "start_s": round(first[0] - began, 2),
        "wall_s": round(wall_s, 2),
        **driver_figures(cpu_s, reports, options.members),
        "waited": counts[costless.WAITED_US] / max(sum(counts.values()), 1) if split and options.score_s else None,
    }
    with contextlib.suppress(Exception):
        ray.shutdown()
        cluster.shutdown()
    return figures


def driver_figures(cpu_s: float, blocks: int, members: int) -> dict[str, Any]:
    """What a driver's processor time is per block and image."""
    return {
        "cpu_s_per_1000_blocks": round(1000 * cpu_s / blocks, 3),
        "cpu_s_per_100k_images": round(1e5 * cpu_s / (blocks * members), 4),
        "ceiling_blocks_per_s": round(blocks / cpu_s),
        "ceiling_images_per_s": round(blocks * members / cpu_s),
        "driver_rss_mib": round(int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024),
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure each size and layout in a process of its own; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 8, 16])
    parser.add_argument("--layout", nargs="+", default=["fused", "split"], choices=["fused", "split"])
    parser.add_argument("--blocks", type=int, default=4000)
    parser.add_argument("--members", type=int, default=2048, help="of a block")
    parser.add_argument("--image-bytes", type=int, default=1000, help="of prepared pixels per image, between processes")
    parser.add_argument("--score-s", type=float, default=0.0, help="a scorer sleeps so long per block")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options)), flush=True)
        return 0
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(ROOT),
                                "RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}  # fmt: skip
    from benchmarks.machine import machine  # torch: not in a driver whose memory is measured

    figures: dict[str, Any] = {"machine": machine(), "sizes": []}
    print("layout  nodes  CPU-s/1,000 blocks  CPU-s/10⁵ images  ceiling blocks/s  ceiling images/s  driver MiB  scorers waited")
    for layout in options.layout:
        for nodes in options.nodes:
            command = [sys.executable, "-m", "benchmarks.cluster", "--here", "--nodes", str(nodes), "--layout", layout]
            for name in ("blocks", "members", "image-bytes", "score-s"):
                command += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1200)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            one = json.loads(done.stdout.strip().splitlines()[-1])
            figures["sizes"].append(one)
            waited = "–" if one["waited"] is None else f"{one['waited']:.1%}"
            print(
                f"{layout:6}  {nodes:5}  {one['cpu_s_per_1000_blocks']:18.2f}  {one['cpu_s_per_100k_images']:16.3f}"
                f"  {one['ceiling_blocks_per_s']:16,}  {one['ceiling_images_per_s']:16,}  {one['driver_rss_mib']:10,}  {waited:>14}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
