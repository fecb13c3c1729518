"""Embeddings of a small CLIP, against transformers' own use of it text by text and image by image."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from ray_app.evaluation.prompts import PromptClip
from tests.evaluation.small_clip import CONTEXT, write_clip
from tests.make.images import photo

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
    found = clip.embed_texts(SHORT)
    for row, text in zip(found, SHORT, strict=True):
        np.testing.assert_allclose(row, of_ids(tokenizer(text)["input_ids"]), atol=1e-5)
    images = [photo(40, 30, seed) for seed in range(3)]
    for row, image in zip(clip.embed_images(images), images, strict=True):
        np.testing.assert_allclose(row, of_image(image), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_long_text_stands_at_the_mean_of_its_pieces(clip, reference):
    tokenizer, of_ids, _ = reference
    ids = tokenizer(LONG, add_special_tokens=False, verbose=False)["input_ids"]
    room = CONTEXT - 2
    assert len(ids) > 2 * room
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pieces = [
        of_ids([start, *ids[place : place + room], end]) for place in range(0, len(ids), room)
    ]
    mean = np.mean(pieces, axis=0)
    np.testing.assert_allclose(clip.embed_texts([LONG])[0], mean / np.linalg.norm(mean), atol=1e-5)
    # What a text is does not depend on those beside it.
    np.testing.assert_allclose(
        clip.embed_texts([*SHORT * 20, LONG])[-1], clip.embed_texts([LONG])[0], atol=1e-5
    )
