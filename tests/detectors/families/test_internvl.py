import math
import sys
from collections import Counter

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image

from ray_app.detectors.card import load_card
from ray_app.detectors.checkpoints import load_strictly, read_state_dict
from ray_app.detectors.detector import Normalise, build_network
from ray_app.detectors.families.internvl import answer_of, published_keys, score_of
from ray_app.detectors.precision import autocast, lower_to_bf16
from ray_app.errors import DetectorError
from tests.make.networks.fill import pattern_image, with_arguments
from tests.make.networks.tiny_internvl import write_tiny_internvl

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internvl")
    write_tiny_internvl(folder, max_new_tokens=10)
    return folder


@pytest.fixture(scope="module")
def pixels(folder):
    preprocessing = load_card(folder / "card.yaml").preprocessing
    sizes = [(40 + 9 * i, 200 - 11 * i) for i in range(12)]
    images = [Image.fromarray(pattern_image(*size)) for size in sizes]
    noise = np.random.default_rng(0).integers(0, 256, (12, 7, 7, 3), dtype=np.uint8)
    images += [Image.fromarray(image // (1 + i % 3)) for i, image in enumerate(noise)]
    prepared = np.stack([preprocessing.prepare(image) for image in images])
    return Normalise(preprocessing)(torch.as_tensor(prepared))


@pytest.fixture(scope="module")
def reference(folder):
    """transformers' own way from the folder to a network, with its own renaming of the published
    keys.
    """
    return transformers.InternVLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


def _network(folder, **changes):
    card = load_card(folder / "card.yaml")
    network = build_network(with_arguments(card, dict(card.architecture.arguments) | changes))
    state = read_state_dict(folder / card.weights.uri, card.weights)
    load_strictly(network, published_keys(state, network), "tiny")
    network.attach(folder)
    return network


@torch.inference_mode()
def _ask(network, pixels):
    return network(pixels)


def _prompt_ids(folder, question):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    image = "<img>" + 4 * "<IMG_CONTEXT>" + "</img>"
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer, torch.tensor([tokenizer(text).input_ids])


REPLIES = {
    "real": ("Real", "It is not real, it was made by AI", "unreal"),
    "fake": ("AI", "The image was generated.", "There is rain in it"),
    "unknown": ("I don't know",),
}


def test_replies_are_read_in_the_published_order():
    for answer, replies in REPLIES.items():
        for reply in replies:
            assert answer_of(reply) == answer, reply
    assert (score_of("Real"), score_of("AI")) == (-1, 1)
    assert math.isnan(score_of("I don't know"))


def test_reply_is_what_transformers_generates_for_each_alone(folder, pixels, reference):
    network = _network(folder)
    prediction = _ask(network, pixels)
    tokenizer, ids = _prompt_ids(folder, network.dialogue.question)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = []
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    for image in pixels:
        spoken = reference.generate(input_ids=ids, pixel_values=image[None], **options)
        reply = tokenizer.decode(spoken[0, ids.shape[1] :], skip_special_tokens=True)
        expected.append(reply.strip())
    assert prediction.replies == tuple(expected)
    scores = torch.tensor([[score_of(reply)] for reply in expected])
    torch.testing.assert_close(prediction.logits, scores, equal_nan=True)
    assert set(Counter(answer_of(reply) for reply in expected)) == {"real", "fake", "unknown"}


def test_first_token_score_is_the_difference_of_the_answers(folder, pixels, reference):
    network = _network(folder, mode="first-token")
    prediction = _ask(network, pixels)
    tokenizer, ids = _prompt_ids(folder, network.dialogue.question)
    with torch.inference_mode():
        said = reference(input_ids=ids.expand(len(pixels), -1), pixel_values=pixels)
    logits, vocabulary = said.logits[:, -1].double(), tokenizer.get_vocab()
    # The card's "ai" and "real" are more than one token here: they count for nothing.
    assert not {"ai", "real"} & set(vocabulary)
    of_fake, of_real = (
        logits[:, vocabulary[word]].exp() + logits[:, vocabulary[f"Ġ{word}"]].exp()
        for word in ("AI", "Real")
    )
    expected = (of_fake / of_real).log()
    torch.testing.assert_close(prediction.logits[:, 0].double(), expected, rtol=0, atol=1e-5)
    assert prediction.replies is None
    assert prediction.logits.std() > 0.1


@pytest.mark.parametrize("mode", ["reply", "first-token"])
def test_batch_split_by_tokens_keeps_the_scores(folder, pixels, mode):
    whole = _network(folder, mode=mode)
    tokens = len(whole._tokens.prompt)
    expected = _ask(whole, pixels)
    network, seen = _network(folder, mode=mode, max_tokens_per_batch=6 * tokens - 1), []
    network.chat.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    prediction = _ask(network, pixels)
    assert max(seen) == 5
    assert sum(seen) == len(pixels)
    assert prediction.replies == expected.replies
    near = {"rtol": 0, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(prediction.logits, expected.logits, **near)


def test_weights_are_those_that_transformers_loads(folder, reference):
    loaded = _network(folder).chat.state_dict()
    expected = reference.state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())
    embeddings = loaded["model.language_model.embed_tokens.weight"]
    assert not torch.equal(loaded["lm_head.weight"], embeddings)


def test_bf16_leaves_residual_stream_and_head_in_fp32(folder, pixels):
    seen = []
    for precision in ("fp32", "bf16"):
        network = _network(folder, mode="first-token")
        network.chat.model.language_model.norm.register_forward_hook(
            lambda module, given, made: seen.append((given[0], made[:, -1]))
        )
        lowered = lower_to_bf16(network, "cpu") if precision == "bf16" else network
        with autocast("cpu", precision):
            assert _ask(lowered, pixels).logits.dtype == seen[-1][0].dtype == torch.float32
    assert network.chat.lm_head.weight.dtype == torch.float32
    assert network.chat.model.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    exact, rounded = (made for _, made in seen)
    assert 0 < ((rounded - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.03


def test_a_prompt_needs_a_tokenizer_that_fits(folder, tmp_path):
    card = load_card(folder / "card.yaml")
    network = build_network(card)
    with pytest.raises(DetectorError, match="no tokenizer"):
        network(torch.zeros(1, 3, 56, 56))
    with pytest.raises(DetectorError, match=r"tokenizer\.json: not readable"):
        network.attach(tmp_path)
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DetectorError, match="<IMG_CONTEXT> must be token"):
        network.attach(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"answers": {"fake": ["synthetic"], "real": ["Real"]}},
            "none of synthetic is a single token",
        ),
        ({"max_tokens_per_batch": 20}, "max_tokens_per_batch is 20"),
        (
            {"template": "Is it real?"},
            r"arguments: template: Value error, template must contain \{image\}",
        ),
    ],
)
def test_card_that_cannot_work_is_refused(folder, changes, told):
    with pytest.raises(DetectorError, match=told):
        _network(folder, **changes)


def test_wrong_transformers_version_names_one_that_fits(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.initialization", None)
    told = "cannot build a network without initial values"
    with pytest.raises(DetectorError, match=told) as refused:
        _network(folder)
    assert refused.value.hint == "run pip install transformers==5.23.0"
