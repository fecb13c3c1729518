"""What `touchstone plan` shows before a run, against the archive and the run directory."""

import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.archives import list_members, open_source
from ray_app.cli.main import main
from ray_app.errors import IdentityError
from ray_app.reports import plan_lines
from ray_app.runs import RunDirectory
from ray_app.scoring import ScoreConfig
from ray_app.scoring.config import ClusterDescription, Nodes, load_cluster
from ray_app.scoring.identity import resolve
from ray_app.scoring.plan import STARTING_S, plan_run
from ray_app.scoring.run import layout_for
from ray_app.storage import Store
from tests.scoring.conftest import files_below

MIB = 2**20


@pytest.fixture(scope="module")
def plan_of_eight(sample_archive, eight):
    return plan_run(
        ScoreConfig(source=(str(sample_archive),), ensemble=str(eight), cluster={"cpus": 4}),
        probe=0,
    )


@pytest.fixture(scope="module")
def measured(sample_archive):
    return plan_run(
        ScoreConfig(source=(str(sample_archive),), ensemble="tiny"), probe=8, price_per_hour=3.0
    ).to_dict()


@pytest.fixture(scope="module")
def on_gpus(sample_archive):
    return plan_run(
        ScoreConfig(source=(str(sample_archive),), ensemble="tiny"),
        cluster=load_cluster("gpu-spot-pool"),
    )


def test_members_are_those_of_the_archive_and_what_is_shared_is_named(
    plan_of_eight, sample_archive
):
    plan, files = (
        plan_of_eight.to_dict(),
        [path for path in sample_archive.rglob("*") if path.is_file()],
    )
    assert plan["members"] == plan["kinds"]["files"]["members"] == len(files)
    assert plan["size_bytes"] == sum(path.stat().st_size for path in files)
    users = [tensor["detectors"] for tensor in plan["tensors"]]
    assert ["unifd", "own-head"] in users
    assert len(users) == 7
    assert {"name": "openai-clip-vit-l14", "runs_once_for": [["unifd", "own-head"]]} in plan[
        "backbones"
    ]
    printed = "\n".join(plan_lines(plan_of_eight))
    assert "openai-clip-vit-l14 runs once for unifd and own-head" in printed
    assert "4 workers, each decodes and scores" in printed
    assert "own size for corvi2023" in printed
    assert "no probe was made" in printed


def test_hours_follow_from_the_rate_and_cost_from_the_hours(measured):
    told, cost = measured["forecast"], measured["cost"]
    seconds = STARTING_S + told["listing_s"] + measured["members"] / told["images_per_s"]
    assert told["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert told["basis"] == "measured"
    assert cost["compute"] == cost["total"] == pytest.approx(3.0 * told["hours"])
    assert cost["compute_share"] == 1
    assert measured["requests"] == {"list": 0, "get": 0, "put": 0}
    seconds = {stage["stage"]: stage["seconds_per_image"] for stage in measured["stages"]}
    assert list(seconds) == ["fetch", "decode", "prepare", "score", "write"]
    assert all(spent > 0 for spent in seconds.values())
    assert measured["bottleneck"]["stage"] == max(seconds, key=seconds.get)
    assert measured["probe"]["members"] == measured["probe"]["scored"] == 8


def test_seconds_are_those_of_the_worker(measured):
    cores = measured["cluster"]["cpus"]
    seconds = {stage["stage"]: stage["seconds_per_image"] for stage in measured["stages"]}
    assert measured["forecast"]["images_per_s"] == pytest.approx(cores / sum(seconds.values()))
    assert measured["probe"]["processes"] == min(cores, 2)  # two batches of four
    [detector] = measured["costs"].values()
    assert 0 < detector["spent_ms"] / 1000 <= seconds["score"]
    assert detector["share"] == pytest.approx(
        detector["spent_ms"] / 1000 / sum(seconds.values()), rel=0.01
    )
    assert {stage["basis"] for stage in measured["stages"]} == {"measured"}


def test_missing_gpus_are_estimated_from_the_cards(on_gpus):
    plan = on_gpus.to_dict()
    score = next(stage for stage in plan["stages"] if stage["stage"] == "score")
    assert score["basis"] == plan["forecast"]["basis"] == "estimated"
    assert score["seconds_per_image"] == pytest.approx(0.184 / 30_000)
    assert plan["probe"]["scored"] == 0
    assert sum(plan["probe"]["statuses"].values()) == plan["members"]
    assert (plan["cluster"]["cpus"], plan["cluster"]["gpus"]) == (64, 4)
    json.dumps(plan)
    assert plan["prices"]["per_hour"] == pytest.approx(2.6)
    lines = "\n".join(plan_lines(on_gpus))
    assert "decoded by" in lines
    assert "no measurement, since no GPU is here" in lines


def test_gpus_that_wait_for_decoding_are_too_many(sample_archive):
    nodes = (Nodes(count=1, cpus=16, gpus=8, price_per_hour=1.0),)
    config = ScoreConfig(source=(str(sample_archive),), ensemble="tiny", block_members=4)
    plan = plan_run(config, probe=4, cluster=ClusterDescription(nodes=nodes)).to_dict()
    assert plan["bottleneck"]["stage"] in ("decode", "prepare")
    assert 0 < plan["bottleneck"]["scorers_busy"] < 0.2


def test_probe_reports_refused_files_with_an_example(tmp_path, sample_archive):
    (tmp_path / "good.png").write_bytes(next(sample_archive.rglob("*.png")).read_bytes())
    (tmp_path / "empty.jpg").write_bytes(b"")
    probe = plan_run(
        ScoreConfig(source=(str(tmp_path),), ensemble="tiny"), cluster=load_cluster("laptop")
    ).to_dict()["probe"]
    assert probe["statuses"] == {"ok": 1, "empty_file": 1}
    assert probe["examples"]["empty_file"][0]["uri"].endswith("/empty.jpg")
    assert 0 < probe["refused_share"]["low"] < 0.5 < probe["refused_share"]["high"] < 1


def test_members_of_containers_are_counted_and_probed(tmp_path, sample_archive):
    images = sorted(sample_archive.rglob("*.png"))[:2]
    with (
        tarfile.open(tmp_path / "a.tar", "w") as tar,
        zipfile.ZipFile(tmp_path / "b.zip", "w") as packed,
    ):
        for number, image in enumerate(images):
            tar.add(image, f"{number}.png")
            packed.write(image, f"{number}.png")
    pq.write_table(
        pa.table({"image": [image.read_bytes() for image in images]}), tmp_path / "c.parquet"
    )
    plan = plan_run(ScoreConfig(source=(str(tmp_path),), ensemble="tiny")).to_dict()
    kept = {kind: (one["members"], one["containers"]) for kind, one in plan["kinds"].items()}
    assert kept == dict.fromkeys(("tar", "zip", "parquet"), (2, 1))
    assert plan["probe"]["statuses"] == {"ok": 6}
    assert plan["bytes_read"] >= 3 * sum(image.stat().st_size for image in images)


def test_probe_decodes_within_the_memory_of_a_node(tmp_path):
    Image.new("RGB", (9000, 8000)).save(tmp_path / "large.png")
    config = ScoreConfig(source=(str(tmp_path),), ensemble="tiny")
    small = ClusterDescription(nodes=(Nodes(cpus=2, memory_gb=0.5, price_per_hour=0),))
    plan = plan_run(config, probe=1, cluster=small).to_dict()
    assert plan["probe"]["statuses"] == {"image_too_large": 1}
    assert plan["memory"]["decode_bytes"] == 64 * MIB
    stated = config.cluster.model_copy(update={"decode_bytes": 1024 * MIB})
    plan = plan_run(config.model_copy(update={"cluster": stated}), probe=1).to_dict()
    assert plan["probe"]["statuses"] == {"ok": 1}


def test_plan_of_a_bucket_counts_requests_and_reads_a_sample(s3, sample_archive):
    store, images = Store.open(s3.bucket("plan")), sorted(sample_archive.rglob("*.jpg"))[:5]
    for image in images:
        store.write(f"photos/{image.name}", image.read_bytes())
    config = ScoreConfig(source=(f"{store.url}/photos",), ensemble="tiny", out=f"{store.url}/run")
    plan = plan_run(config, probe=0, price_per_hour=1.0).to_dict()
    assert plan["requests"] == {
        "list": 1,
        "get": 5 + 3 * plan["blocks"],
        "put": plan["blocks"] + 1 + 12,
    }
    assert plan["cost"]["compute"] is None
    plan = plan_run(config, probe=2).to_dict()
    assert plan["probe"]["statuses"] == {"ok": 2}
    assert {stage["stage"]: stage["basis"] for stage in plan["stages"]}["write"] == "estimated"
    assert plan["bytes_read"] == sum(image.stat().st_size for image in images)
    assert not RunDirectory.open(config.out).exists()


def begun(config, done):
    """A run directory as a session leaves it when only the first `done` blocks were committed."""
    run, settings = RunDirectory.open(config.out), resolve(config)
    spec = settings.spec(gpus=0)
    run.claim(settings.facts(spec), list(spec.cards), spec.ensemble.model_dump(mode="json"))
    plan = layout_for(config, spec, None, 2, 0, 2**40).block_plan(spec.slots)
    info = list_members(run.store, open_source(config.source, skip=[run.store.url]), plan)
    for block in range(min(done, info.blocks)):
        run.write_part(0, block, pa.table({"image_id": [block]}))
    return info


def test_an_unfinished_run_goes_on_with_the_blocks_that_are_left(archive, tmp_path):
    config = ScoreConfig(
        source=(str(archive),), ensemble="tiny", out=str(tmp_path / "run"), block_members=4
    )
    info = begun(config, done=2)
    before = files_below(tmp_path)
    plan = plan_run(config, probe=2).to_dict()
    assert files_below(tmp_path) == before
    assert plan["run"]["state"] == "unfinished"
    assert (plan["run"]["blocks_done"], plan["run"]["members_done"]) == (2, 8)
    assert (plan["run"]["blocks_left"], plan["run"]["members_left"]) == (
        info.blocks - 2,
        info.members - 8,
    )
    assert plan["members"] == info.members - 8
    with pytest.raises(IdentityError, match="another command"):
        plan_run(config.model_copy(update={"resize": "fast"}))
    RunDirectory.open(config.out).store.delete("manifest/0/_complete")
    plan = plan_run(config, probe=0)
    assert plan.run is not None
    assert (plan.run.state, plan.members) == ("begun", info.members)
    assert "its listing never ended and is made again" in "\n".join(plan_lines(plan))


def test_a_finished_run_is_asked_for_what_is_new_or_changed(archive, tmp_path, capsys):
    config = ScoreConfig(source=(str(archive),), ensemble="tiny", out=str(tmp_path / "run"))
    begun(config, done=1000)
    assert plan_run(config).to_dict()["run"]["members_left"] == 0
    (archive / "new.jpg").write_bytes(next(archive.rglob("*.jpg")).read_bytes())
    found = {"guarantee": {"unlike": "jpeg_quality (PSI 1.2)"}}
    RunDirectory.open(config.out).write_json("summary.json", found)
    assert (
        main(["plan", str(archive), "--out", str(tmp_path / "run"), "--probe", "1", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["run"]["state"] == "finished"
    assert told["members"] == told["run"]["members_left"] == told["probe"]["members"] == 1
    assert told["unlike"] == "jpeg_quality (PSI 1.2)"
