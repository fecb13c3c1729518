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
from tests.make.runs import begin, files_below
from tests.make.stages import plan_here, probed_here


def tiny(source, **settings):
    return ScoreConfig(source=(str(source),), ensemble="tiny", **settings)


@pytest.fixture(scope="module")
def measured(sample_archive):
    """A plan whose probe has processes of its own, as every user's."""
    return plan_run(tiny(sample_archive), probe=8, price_per_hour=3.0).to_dict()


def test_plan_counts_members_and_names_what_is_shared(eight, sample_archive):
    config = ScoreConfig(source=(str(sample_archive),), ensemble=str(eight), cluster={"cpus": 4})
    planned = plan_here(config, probe=0)
    plan, files = planned.to_dict(), files_below(sample_archive)
    assert plan["members"] == plan["kinds"]["files"]["members"] == len(files)
    assert plan["size_bytes"] == sum(size_of(path) for path in files)
    users = [tensor["detectors"] for tensor in plan["tensors"]]
    assert ["unifd", "own-head"] in users
    assert len(users) == 7
    shared = {"name": "openai-clip-vit-l14", "runs_once_for": [["unifd", "own-head"]]}
    assert shared in plan["backbones"]
    printed = "\n".join(plan_lines(planned))
    for words in (
        "openai-clip-vit-l14 runs once for unifd and own-head",
        "4 workers, each decodes and scores",
        "own size for corvi2023",
        "there was no probe",
    ):
        assert words in printed


def size_of(path):
    with open(path, "rb") as file:
        return len(file.read())


def test_rate_hours_and_cost_follow_from_the_probe(measured):
    forecast, cost = measured["forecast"], measured["cost"]
    seconds = {stage["stage"]: stage["seconds_per_image"] for stage in measured["stages"]}
    assert list(seconds) == ["fetch", "decode", "prepare", "score", "write"]
    assert all(spent > 0 for spent in seconds.values())
    assert {stage["basis"] for stage in measured["stages"]} == {forecast["basis"]} == {"measured"}
    assert measured["bottleneck"]["stage"] == max(seconds, key=seconds.get)
    assert measured["probe"]["members"] == measured["probe"]["scored"] == 8
    cores = measured["cluster"]["cpus"]
    assert measured["probe"]["processes"] == min(cores, 2), "two batches of four"
    assert forecast["images_per_s"] == pytest.approx(cores / sum(seconds.values()))
    needed_s = STARTING_S + forecast["listing_s"] + measured["members"] / forecast["images_per_s"]
    assert forecast["hours"] == pytest.approx(needed_s / 3600, rel=1e-3)
    assert cost["compute"] == cost["total"] == pytest.approx(3.0 * forecast["hours"])
    assert cost["compute_share"] == 1
    assert measured["requests"] == {"list": 0, "get": 0, "put": 0}
    [detector] = measured["costs"].values()
    spent_s = detector["spent_ms"] / 1000
    assert 0 < spent_s <= seconds["score"]
    assert detector["share"] == pytest.approx(spent_s / sum(seconds.values()), rel=0.01)


def test_missing_gpus_are_estimated_from_the_cards(sample_archive):
    planned = plan_here(tiny(sample_archive), cluster=load_cluster("gpu-spot-pool"))
    plan = planned.to_dict()
    score = next(stage for stage in plan["stages"] if stage["stage"] == "score")
    assert score["basis"] == plan["forecast"]["basis"] == "estimated"
    assert score["seconds_per_image"] == pytest.approx(1 / 20_000), (
        "a small network does not fill a GPU"
    )
    assert plan["probe"]["scored"] == 0
    assert sum(plan["probe"]["statuses"].values()) == plan["members"]
    assert (plan["cluster"]["cpus"], plan["cluster"]["gpus"]) == (64, 4)
    json.dumps(plan)
    assert plan["prices"]["per_hour"] == pytest.approx(2.6)
    lines = "\n".join(plan_lines(planned))
    assert "decoded by" in lines
    assert "not measured, because this machine has no GPU" in lines


def test_gpus_that_wait_for_decoding_are_too_many(sample_archive):
    nodes = (Nodes(count=1, cpus=16, gpus=8, price_per_hour=1.0),)
    described = ClusterDescription(nodes=nodes)
    config = tiny(sample_archive, block_members=4)
    planned = plan_here(config, probe=4, cluster=described)
    plan = planned.to_dict()
    assert plan["bottleneck"]["stage"] in ("decode", "prepare")
    assert 0 < plan["bottleneck"]["scorers_busy"] < 0.2
    seconds = {stage["stage"]: stage["seconds_per_image"] for stage in plan["stages"]}
    on_core_s = sum(seconds[stage] for stage in seconds.keys() - {"score", "write"})
    cores = plan["bottleneck"]["cores_per_gpu"]
    assert cores == pytest.approx(on_core_s / seconds["score"])
    assert f"cores that keep one GPU busy: {cores:,.0f}" in "\n".join(plan_lines(planned))


def test_probe_reads_containers_and_reports_refused_files(tmp_path, sample_archive):
    (tmp_path / "empty.jpg").write_bytes(b"")
    images = sorted(sample_archive.rglob("*.png"))[:2]
    with (
        tarfile.open(tmp_path / "a.tar", "w") as tar,
        zipfile.ZipFile(tmp_path / "b.zip", "w") as packed,
    ):
        for number, image in enumerate(images):
            tar.add(image, f"{number}.png")
            packed.write(image, f"{number}.png")
    blobs = [image.read_bytes() for image in images]
    pq.write_table(pa.table({"image": blobs}), tmp_path / "c.parquet")
    plan = plan_here(tiny(tmp_path), cluster=load_cluster("laptop")).to_dict()
    kept = {kind: (one["members"], one["containers"]) for kind, one in plan["kinds"].items()}
    assert kept.pop("files")[0] == 1
    assert kept == dict.fromkeys(("tar", "zip", "parquet"), (2, 1))
    assert plan["bytes_read"] >= 3 * sum(map(len, blobs))
    probe = plan["probe"]
    assert probe["statuses"] == {"ok": 6, "empty_file": 1}
    assert probe["examples"]["empty_file"][0]["uri"].endswith("/empty.jpg")
    assert 0 < probe["refused_share"]["low"] < 1 / 7 < probe["refused_share"]["high"] < 1


def test_probe_decodes_within_the_memory_of_a_node(tmp_path):
    Image.new("RGB", (9000, 8000)).save(tmp_path / "large.png", compress_level=1)
    small = ClusterDescription(nodes=(Nodes(cpus=2, memory_gb=0.5, price_per_hour=0),))
    plan = plan_here(tiny(tmp_path), probe=1, cluster=small).to_dict()
    assert plan["probe"]["statuses"] == {"image_too_large": 1}
    assert plan["memory"]["decode_bytes"] == 64 * 2**20
    stated = tiny(tmp_path, cluster={"decode_bytes": 2**30})
    assert plan_here(stated, probe=1).to_dict()["probe"]["statuses"] == {"ok": 1}


def test_plan_of_a_bucket_counts_requests_and_reads_a_sample(s3, sample_archive):
    store, images = Store.open(s3.bucket("plan")), sorted(sample_archive.rglob("*.jpg"))[:5]
    for image in images:
        store.write(f"photos/{image.name}", image.read_bytes())
    config = tiny(f"{store.url}/photos", out=f"{store.url}/run")
    plan = plan_here(config, probe=0, price_per_hour=1.0).to_dict()
    requests = {"list": 1, "get": 5 + 3 * plan["blocks"], "put": plan["blocks"] + 1 + 12}
    assert plan["requests"] == requests
    assert plan["cost"]["compute"] is None
    plan = plan_here(config, probe=2).to_dict()
    assert plan["probe"]["statuses"] == {"ok": 2}
    assert {stage["stage"]: stage["basis"] for stage in plan["stages"]}["write"] == "estimated"
    assert plan["bytes_read"] == sum(image.stat().st_size for image in images)
    assert not RunDirectory.open(config.out).exists()


def begun(config, done):
    """A run directory as a session leaves it when only the first `done` blocks were committed."""
    run, spec = begin(**config.model_dump(exclude_unset=True)), resolve(config).spec(gpus=0)
    plan = layout_for(config, spec, None, 2, 0, 2**40).block_plan(spec.slots)
    info = list_members(run.store, open_source(config.source, skip=[run.store.url]), plan)
    for block in range(min(done, info.blocks)):
        run.write_part(0, block, pa.table({"image_id": [block]}))
    return info


def test_plan_of_an_unfinished_run_has_the_blocks_left(archive, tmp_path):
    config = tiny(archive, out=str(tmp_path / "run"), block_members=4)
    info = begun(config, done=2)
    before = files_below(tmp_path)
    plan = plan_here(config, probe=2).to_dict()
    assert files_below(tmp_path) == before
    run = plan["run"]
    assert (run["state"], run["blocks_done"], run["members_done"]) == ("unfinished", 2, 8)
    left = (info.blocks - 2, info.members - 8)
    assert (run["blocks_left"], run["members_left"]) == left
    assert plan["members"] == info.members - 8
    with pytest.raises(IdentityError, match="another command"):
        plan_here(config.model_copy(update={"batch_slots": 3}))
    RunDirectory.open(config.out).store.delete("manifest/0/_complete")
    plan = plan_here(config, probe=0)
    assert (plan.run.state, plan.members) == ("begun", info.members)
    assert "its listing did not finish and starts again" in "\n".join(plan_lines(plan))


def test_plan_of_a_finished_run_has_what_is_new(archive, tmp_path, capsys):
    config = tiny(archive, out=str(tmp_path / "run"))
    begun(config, done=1000)
    assert plan_here(config).to_dict()["run"]["members_left"] == 0
    (archive / "new.jpg").write_bytes(next(archive.rglob("*.jpg")).read_bytes())
    found = {"guarantee": {"unlike": "jpeg_quality (PSI 1.2)"}}
    RunDirectory.open(config.out).write_json("summary.json", found)
    with probed_here():
        assert main(["plan", str(archive), "--out", config.out, "--probe", "1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["run"]["state"] == "finished"
    assert plan["members"] == plan["run"]["members_left"] == plan["probe"]["members"] == 1
    assert plan["unlike"] == "jpeg_quality (PSI 1.2)"
