"""Jobs from end to end, in this process: tables, files, refusals, resuming."""

import hashlib
import json
from importlib.metadata import version

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.archives import open_source
from ray_app.cli.main import main
from ray_app.datajobs.generate.pipelines import LoadedPipeline, find_model
from ray_app.datajobs.generate.run import generate_images, resolve_card
from ray_app.datajobs.generate.worker import crop_to_cover
from ray_app.datasets import DatasetSource, build_index
from ray_app.datasets.index import read_index
from ray_app.errors import ClusterError, ConfigError, DetectorError, IdentityError
from ray_app.images.provenance import ProvenancePolicy, ProvenanceReader
from ray_app.storage import Store
from tests.datajobs.generate.cards import job, write_card, write_prompts


def rows(out, name="generated"):
    return pq.read_table(out / f"{name}.parquet").to_pylist()


def source_types(data, kind):
    return ProvenanceReader(ProvenancePolicy()).read(data, kind).digital_source_type


def test_prompts_become_files_and_rows_that_an_index_takes(sd3, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.txt", 5)
    encode = {"format": "JPEG", "quality": [70, 73]}
    config = job(sd3, prompts, tmp_path / "out", per_prompt=2, encode=encode, steps=1)
    done = generate_images(config)
    assert done["made"] == 10
    made = rows(tmp_path / "out")
    assert sorted(row["index"] for row in made) == list(range(10))
    assert len({row["seed"] for row in made}) == 10
    for row in made:
        data = (tmp_path / "out" / row["uri"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert source_types(data, "JPEG") == ("trainedAlgorithmicMedia",)
        with Image.open(tmp_path / "out" / row["uri"]) as image:
            assert image.size == (row["width"], row["height"])
        assert (row["generated_width"], row["generated_height"]) == (row["width"], row["height"])
        assert (row["format"], row["generator"], row["label"]) == ("JPEG", "tiny-sd3", "fake")
        assert row["quality"] in range(70, 74)
        assert (row["steps"], row["guidance"], row["precision"]) == (1, 3.5, "fp32")
        assert row["diffusers"] == version("diffusers")
        assert row["revision"].startswith("sha256:")
        assert row["prompt_id"] == str(row["index"] // 2)
        assert row["prompt"] == prompts.read_text().splitlines()[row["index"] // 2]
    listed = list(open_source([str(tmp_path / "out/generated.parquet")]))
    assert {item.uri for item in listed} == {str(tmp_path / "out" / row["uri"]) for row in made}
    source = DatasetSource.model_validate({"at": [str(tmp_path / "out/generated.parquet")]})
    assert build_index(source, Store.open(str(tmp_path / "index"))).rows == 10
    inputs = read_index(str(tmp_path / "index"))["input"].to_pylist()
    assert {one["label"] for one in inputs} == {"fake"}
    assert {one["generator"] for one in inputs} == {"tiny-sd3"}
    assert len({one["group"] for one in inputs}) == 5

    # The same command has nothing to do; another one is refused.
    assert generate_images(config)["session"]["blocks"] == 0
    with pytest.raises(IdentityError, match="seed"):
        generate_images(config.model_copy(update={"seed": 1}))
    write_prompts(prompts, 6)
    with pytest.raises(IdentityError, match="orders"):
        generate_images(config)


def test_local_edits_have_masks_and_keep_the_pixels_outside(inpainting, reals, tmp_path):
    (reals.parent / "4.jpg").write_bytes((reals.parent / "4.jpg").read_bytes()[:200])
    config = job(inpainting, reals, tmp_path / "out", columns={"id": "file_name"})
    done = generate_images(config)
    assert done["made"] == 5
    [bad] = rows(tmp_path / "out", "failed")
    assert bad["real_uri"].endswith("4.jpg")
    assert bad["status"] in ("truncated_image", "corrupt_image")
    assert bad["uri"] is None
    made = rows(tmp_path / "out")
    for row in made:
        data = (tmp_path / "out" / row["uri"]).read_bytes()
        assert source_types(data, "PNG") == ("compositeWithTrainedAlgorithmicMedia",)
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert set(np.unique(mask)) == {0, 255}
        assert row["mask_share"] == pytest.approx((mask > 0).mean(), abs=1e-6)
        real = Image.open(row["real_uri"]).convert("RGB")
        expected = np.asarray(crop_to_cover(real, (32, 32)))
        found = np.asarray(Image.open(tmp_path / "out" / row["uri"]))
        assert np.array_equal(found[mask == 0], expected[mask == 0])
        assert (found[mask > 0] != expected[mask > 0]).any()
        assert row["group"] == f"scene-{row['index']}"
        if row["index"] < 3:
            assert row["mask_share"] == pytest.approx(0.5, abs=0.05)
    out = str(tmp_path / "out")
    source = DatasetSource(at=f"{out}/generated.parquet", arguments={"root": out})
    build_index(source, Store.open(str(tmp_path / "index")))
    inputs = read_index(str(tmp_path / "index"))["input"].to_pylist()
    assert {one["mask_uri"] for one in inputs} == {f"{out}/{row['mask']}" for row in made}


def test_blanked_image_is_a_row_without_a_file(checked, reals, tmp_path, capsys):
    config = job(checked, reals, tmp_path / "out", limit=2, columns={"id": "file_name"})
    done = generate_images(config)
    assert done["made"] == 0
    assert done["statuses"] == {"blanked": 2}
    failed = rows(tmp_path / "out", "failed")
    assert all(row["blanked"] and row["uri"] is None for row in failed)
    assert not (tmp_path / "out/images").exists()
    (tmp_path / "job.yaml").write_text(config.model_dump_json(exclude_unset=True))
    assert main(["data", "generate", str(tmp_path / "job.yaml"), "--retry", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["session"]["blocks"] == 0


def test_image_that_the_pipeline_rejects_is_a_row(sd3, tmp_path):
    model, arguments = sd3.parent / "model", {"max_sequence_length": 4096}
    card = write_card(tmp_path, "wrong", "StableDiffusion3Pipeline", model, arguments=arguments)
    config = job(card, write_prompts(tmp_path / "prompts.txt", 2), tmp_path / "out")
    assert generate_images(config)["statuses"] == {"pipeline_failed": 2}
    assert "max_sequence_length" in rows(tmp_path / "out", "failed")[0]["detail"]
    assert generate_images(config)["session"]["blocks"] == 0
    assert generate_images(config, retry=True)["session"]["blocks"] > 0


@pytest.mark.parametrize(("most", "tried"), [(1, [4, 2, 1, 1, 1, 1, 1, 1]), (0, [4, 2, 1])])
def test_short_memory_halves_the_batch_for_good(sd3, tmp_path, monkeypatch, most, tried):
    """`most`: images that the device holds at once. If it holds none, the job ends."""
    make, batches = LoadedPipeline.make, []

    def limited(self, requests, pictures=(), **settings):
        batches.append(len(requests))
        if len(requests) > most:
            raise MemoryError("CUDA out of memory")
        return make(self, requests, pictures, **settings)

    monkeypatch.setattr(LoadedPipeline, "make", limited)
    prompts, settings = write_prompts(tmp_path / "prompts.txt", 6), {"batch": 4, "steps": 1}
    config = job(sd3, prompts, tmp_path / "out", sizes=[[32, 32]], block_images=8, **settings)
    if most:
        assert generate_images(config)["made"] == 6
    else:
        with pytest.raises(ClusterError, match="not even a single image"):
            generate_images(config)
    assert batches == tried


def test_licence_has_to_be_accepted(sd3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "config.yaml"))
    prompts, out = write_prompts(tmp_path / "prompts.txt", 1), tmp_path / "out"
    more = {"terms": "non-commercial", "licence": "tiny-non-commercial"}
    card = write_card(tmp_path, "held", "StableDiffusion3Pipeline", sd3.parent / "model", **more)
    with pytest.raises(DetectorError, match="not accepted") as refused:
        generate_images(job(card, prompts, out))
    assert f"--accept-licence {card}" in refused.value.hint
    command = ["data", "generate", str(card), "--prompts", str(prompts), "--out", str(out)]
    command += ["--set", "device=cpu"]
    assert main(command) == 4
    assert main([*command, "--accept-licence", str(card), "--json"]) == 0
    said = capsys.readouterr()
    assert "accepted: held, licence tiny-non-commercial" in said.err
    assert json.loads(said.out)["made"] == 1
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "1 of 1 image by held" in told
    assert f"touchstone data index {out}/generated.parquet --layout columns --out INDEX" in told


def test_job_in_yaml_is_completed_by_options(sd3, tmp_path):
    (tmp_path / "job.yaml").write_text(
        f"pipeline: {sd3}\nsteps: 1\ndevice: cpu\nencode: {{format: WEBP, quality: 75}}\n"
    )
    prompts = write_prompts(tmp_path / "prompts.txt", 1)
    command = ["data", "generate", str(tmp_path / "job.yaml"), "--prompts", str(prompts)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    [row] = rows(tmp_path / "out")
    assert (row["format"], row["quality"], row["uri"]) == ("WEBP", 75, "images/00000000.webp")
    command += ["--per-prompt", "4", "--set", "encode.format=[JPEG,PNG]"]
    command += ["--set", "encode.quality=[70,95]"]
    assert main([*command, "--out", str(tmp_path / "drawn")]) == 0
    qualities = {row["format"]: row["quality"] for row in rows(tmp_path / "drawn")}
    assert qualities["PNG"] is None
    assert 70 <= qualities["JPEG"] <= 95


def test_model_of_the_hub_is_never_a_local_folder(sd3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    (tmp_path / "owner" / "model" / "model_index.json").write_text("{}")
    named = {
        name: resolve_card(job(sd3, tmp_path / "prompts.txt", tmp_path / "out", model=name))
        for name in ("owner/model", "./owner/model")
    }
    assert named["./owner/model"].local_folder == tmp_path / "owner" / "model"
    with pytest.raises(DetectorError, match="an id on the hub"):
        find_model(named["owner/model"])


def test_missing_model_and_foreign_directory_are_refused(sd3, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.txt", 1)
    card = write_card(tmp_path, "gone", "FluxPipeline", tmp_path / "nowhere")
    with pytest.raises(DetectorError, match=r"no model_index\.json"):
        generate_images(job(card, prompts, tmp_path / "out"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_text("{}")
    with pytest.raises(ConfigError, match="scored run"):
        generate_images(job(sd3, prompts, tmp_path / "other"))
