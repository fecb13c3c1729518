"""Similarities through a small CLIP, against transformers' own use of it text by text and image by image."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from ray_app.archives import manifests, member_rows, read_block, read_blocks
from ray_app.evaluation.prompts import FIGURES, PromptClip, similar_of
from tests.evaluation.small_clip import CONTEXT, write_clip
from tests.images.factory import photo
from tests.runs.small_run import new_run, relist


def similarities(*given, clip):
    found = similar_of(*given, clip=clip)
    return found.figures(), found.unread


SHORT = ["a red cat", "old man, on the sea", "house", ""]
LONG = "a red cat in the fog, old dog on the sea, a house, the old man"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return PromptClip(folder)


@pytest.fixture(scope="module")
def reference(folder):
    """Directions of one text's ids, and of one image, by transformers alone."""
    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)

    def unit(output):
        features = output.pooler_output[0].detach().double()
        return (features / features.norm()).numpy()

    def of_ids(ids):
        return unit(model.get_text_features(input_ids=torch.tensor([ids])))

    def of_image(image):
        return unit(model.get_image_features(**processor(images=image, return_tensors="pt")))

    return AutoTokenizer.from_pretrained(folder), of_ids, of_image


def test_short_texts_and_images_are_transformers_own(clip, reference):
    tokenizer, of_ids, of_image = reference
    found = clip.texts(SHORT)
    for row, text in zip(found, SHORT, strict=True):
        np.testing.assert_allclose(row, of_ids(tokenizer(text)["input_ids"]), atol=1e-5)
    images = [photo(40, 30, seed) for seed in range(3)]
    for row, image in zip(clip.images(images), images, strict=True):
        np.testing.assert_allclose(row, of_image(image), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_long_text_stands_at_the_mean_of_its_pieces(clip, reference):
    tokenizer, of_ids, _ = reference
    ids = tokenizer(LONG, add_special_tokens=False, verbose=False)["input_ids"]
    room = CONTEXT - 2
    assert len(ids) > 2 * room
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pieces = [of_ids([start, *ids[place : place + room], end]) for place in range(0, len(ids), room)]
    mean = np.mean(pieces, axis=0)
    np.testing.assert_allclose(clip.texts([LONG])[0], mean / np.linalg.norm(mean), atol=1e-5)
    # What a text is does not depend on those beside it.
    np.testing.assert_allclose(clip.texts([*SHORT * 20, LONG])[-1], clip.texts([LONG])[0], atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "archive").mkdir()
    for seed in range(5):
        photo(40, 30, seed).save(folder / "archive" / f"{seed}.png")
    (folder / "archive" / "broken.png").write_bytes(b"nothing")
    run = new_run(folder / "run")
    relist(run, folder / "archive")
    return run


def all_members(run):
    blocks = [ref for number in manifests(run.store) for ref in read_blocks(run.store, number)]
    return {member.image_id: member for ref in blocks for member in member_rows(read_block(run.store, ref))}


def test_scores_are_of_the_images_that_can_be_read(run, folder, clip):
    members = all_members(run)
    ids = sorted(members, key=lambda one: members[one].uri)  # ids hash the folder's name, which no two test runs share
    said, truth = ["a red cat"] * 6, [*SHORT, LONG, "dog"]
    found, unread = similarities(run, ids, said, truth, clip=folder)
    assert (tuple(found), unread) == (FIGURES, 1)
    ours, theirs = clip.texts(said), clip.texts(truth)
    assert found["clip_text"].value == pytest.approx((ours * theirs).sum(axis=1).mean(), abs=1e-6)
    readable = [place for place, one in enumerate(ids) if "broken" not in members[one].uri]
    seen = np.concatenate([clip.images([Image.open(members[ids[place]].uri).convert("RGB")]) for place in readable])
    scores = [2.5 * np.maximum((seen * texts[readable]).sum(axis=1), 0) for texts in (ours, theirs)]
    assert found["clip_score"].value == pytest.approx(scores[0].mean(), abs=1e-6)
    assert found["clip_score_truth"].value == pytest.approx(scores[1].mean(), abs=1e-6)
    assert found["clip_score"].n == 5
    assert found["clip_score_ratio"].value == pytest.approx(scores[0].mean() / scores[1].mean(), abs=1e-6)
    assert scores[0].min() > 0.1
    mine = np.array([place % 2 == 0 for place in range(6)])
    some, chosen = similar_of(run, ids, said, truth, clip=folder).figures(mine), np.isin(readable, np.flatnonzero(mine))
    assert some["clip_text"].value == pytest.approx((ours * theirs).sum(axis=1)[mine].mean(), abs=1e-6)
    assert (some["clip_score"].value, some["clip_score"].n) == (pytest.approx(scores[0][chosen].mean(), abs=1e-6), chosen.sum())
    assert abs(found["clip_score_ratio"].value - 1) > 0.01


def test_images_that_are_gone_leave_the_texts_and_without_weights_nothing_is_defined(run, folder):
    found, unread = similarities(run, [1, 2], ["a cat", "a dog"], ["a cat", "dog"], clip=folder)
    assert (unread, found["clip_text"].n) == (2, 2)
    assert {found[name].why for name in FIGURES[1:4]} == {"no image can be read any more"}
    found, unread = similarities(run, [1], ["a"], ["a"], clip=None)
    assert ({figure.why for figure in found.values()}, unread) == ({"needs a folder of CLIP weights"}, 0)
