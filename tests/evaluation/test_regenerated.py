"""Images made anew from predicted prompts against their originals: as DFLIP-3K computes it, and
from a run to the document.
"""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from ray_app.datajobs.generate import GenerateConfig
from ray_app.datajobs.generate.requests import read_prompts
from ray_app.errors import ConfigError
from ray_app.evaluation.prompts import PromptClip, Prompts, collect_prompts, regenerated_similarity
from ray_app.runs import current_rows
from tests.evaluation.small_clip import write_clip
from tests.make.evaluations import measured
from tests.make.images import photo
from tests.make.small_run import finish, new_run, relist, score_blocks

SIDE = 28  # of the small CLIP; the authors' has 224
MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Five photographs and a broken file, each with a predicted prompt but the last of them."""
    folder = tmp_path_factory.mktemp("regenerated")
    (folder / "archive").mkdir()
    for seed in range(5):
        photo(60, 30 + 5 * seed, seed).save(folder / "archive" / f"{seed}.png")
    (folder / "archive" / "broken.png").write_bytes(b"nothing")
    found = new_run(folder / "run")
    relist(found, folder / "archive")
    score_blocks(found, 0)
    for part in (folder / "run" / "parts").rglob("*.parquet"):
        rows = pq.read_table(part)
        words = [
            None if uri.endswith("4.png") else f"a red cat, {uri[-5]}"
            for uri in rows["uri"].to_pylist()
        ]
        place = rows.schema.get_field_index("predicted_prompt")
        pq.write_table(
            rows.set_column(place, "predicted_prompt", pa.array(words, pa.string())), part
        )
    finish(found)
    return found


@pytest.fixture(scope="module")
def ids(run):
    """Of 0.png to 4.png and broken.png."""
    return [row["image_id"] for row in sorted(current_rows(run), key=lambda row: row["uri"])]


def written(folder, pictures):
    """What `data generate` writes: a table beside `images/`; of (prompt_id, picture or bytes)."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (prompt_id, picture) in enumerate(pictures):
        name = f"images/{number:08}.png"
        if isinstance(picture, bytes):
            (folder / name).write_bytes(picture)
        else:
            picture.save(folder / name)
        rows.append({"uri": name, "label": "fake", "prompt": "p", "prompt_id": str(prompt_id)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "generated.parquet")
    return str(folder)


def as_the_authors(model, picture):
    """`process_image`, then their un-normalisation and CLIP's own normalisation (dflip3k/DFLIP-3K,
    utils/evaluate.py).
    """
    bicubic = Image.Resampling.BICUBIC
    squashed = np.array(picture.convert("RGB").resize((SIDE, SIDE), resample=bicubic))
    pixels = torch.from_numpy((squashed / 127.5 - 1).astype(np.float32)).permute(2, 0, 1)
    plain = (pixels + 1) / 2
    mean, deviation = (torch.tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
    output = model.get_image_features(pixel_values=((plain - mean) / deviation)[None])
    found = output.pooler_output[0].detach().double()
    return (found / found.norm()).numpy()


def test_similarity_equals_that_of_the_authors(run, ids, clip, tmp_path):
    """Of 0 two pictures, of 1 one, of 2 one that is broken, of 3 none; the original of the last is
    broken; and one of a stranger.
    """
    again = [photo(48, 48, seed) for seed in range(10, 14)]
    pairs = [(ids[0], again[0]), (ids[1], again[1]), (ids[0], again[2])]
    pairs += [(ids[2], b"nothing"), (ids[5], again[3]), (7, again[3])]
    found = regenerated_similarity(run, ids, written(tmp_path / "again", pairs), PromptClip(clip))
    model = CLIPModel.from_pretrained(clip)
    ours = [as_the_authors(model, photo(60, 30 + 5 * seed, seed)) for seed in range(2)]
    theirs = [as_the_authors(model, one) for one in again]
    same = [np.mean([ours[0] @ theirs[0], ours[0] @ theirs[2]]), ours[1] @ theirs[1]]
    other = [
        np.mean([ours[0] @ theirs[1], ours[0] @ theirs[3]]),
        np.mean([ours[1] @ theirs[place] for place in (0, 2, 3)]),
    ]
    np.testing.assert_allclose(found[:2], np.stack([same, other], axis=1), atol=1e-5)
    assert np.isnan(found[2:]).all()
    prompts = Prompts(["sd", *["imagen"] * 5], {}, found)
    figures = prompts.measure({"sd", "imagen"})
    assert figures["clip_image"].value == pytest.approx(np.mean(same), abs=1e-5)
    assert figures["clip_image"].n == 2
    assert figures["clip_image_chance"].value == pytest.approx(np.mean(other), abs=1e-5)
    assert abs(np.mean(same) - np.mean(other)) > 1e-4
    some = prompts.measure({"imagen"})["clip_image"]
    assert (some.value, some.n) == (pytest.approx(same[1], abs=1e-5), 1)


def test_images_of_another_run_and_missing_clip_are_refused(run, ids, clip, tmp_path):
    again = written(tmp_path / "again", [(1, photo(48, 48, 1))])
    with pytest.raises(
        ConfigError, match="no image was generated from a prompt that this run predicted"
    ):
        regenerated_similarity(run, ids, again, PromptClip(clip))
    rows = [
        {"image_id": one, "generator": "sd", "prompt": "a", "predicted_prompt": "a"} for one in ids
    ]

    def tables(columns):
        yield pa.Table.from_pylist(rows).select(list(columns))

    with pytest.raises(ConfigError, match="needs a CLIP network"):
        collect_prompts(tables, run, regenerated=again)


def test_predictions_of_a_run_are_regenerated_and_evaluated(run, ids, clip, tmp_path):
    config = GenerateConfig(pipeline="sd-3.5", prompts=run.store.url)
    drawn = [int(one.id) for one in read_prompts(config, images=False)]
    assert drawn == sorted(set(ids) - {ids[4]})  # The image without a prediction is left out.
    again = written(tmp_path / "again", [(one, photo(48, 48, 1)) for one in drawn])
    truth = {"label": "fake", "generator": "sd", "prompt": "a red cat"}
    lines = [json.dumps({"image_id": one} | truth) for one in ids]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    settings = {"labels": str(tmp_path / "labels.jsonl"), "protocol": "dflip-v1"}
    found = measured(tmp_path, run.store.url, clip=clip, regenerated=again, **settings)
    prompts, similarity = found.meta.prompts, found.metrics.find("clip_image", scope="prompts")
    assert (prompts.counts["compared"], prompts.counts["not_regenerated"]) == (5, 1)
    assert similarity.n == 4  # One original is broken.
    assert similarity.low < similarity.value < similarity.high
    assert prompts.notes[-1].startswith("1 images have no readable")
    sd, dalle = (
        found.metrics.find("clip_image", scope=one.scope)
        for name in ("sd", "dalle")
        for one in found.meta.groups
        if one.name == name
    )
    assert (sd.n, dalle.value) == (4, None)
    assert dalle.why == "no readable image has a readable regenerated image"
