"""Networks that say words: alone or in company the same, as likely as teacher forcing has it,
loaded from published files.
"""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ray_app.config import named_configs
from ray_app.detectors.detector import Normalise
from ray_app.errors import DetectorError
from ray_app.identification.captioners import build_captioner, build_describer, load_body
from ray_app.identification.cards import load_describer
from tests.make.networks.fill import with_part
from tests.make.networks.tiny_speakers import (
    ARCHITECTURES,
    SIDE,
    WIDTH,
    WORDS,
    card_of,
    dialogue_card,
    network_of,
)

KINDS = list(ARCHITECTURES)
GENERATION = {"no_repeat_ngram_size": 3, "max_new_tokens": 12, "do_sample": False}
NAMES = sorted(named_configs("describers"))
PARAMETERS = {"blip-base": 223_971_644, "git-base": 176_619_066, "vit-gpt2": 239_195_904}


def given_to(kind, count=7):
    rng = np.random.default_rng(5)
    if kind == "prefix":
        return rng.normal(size=(count, WIDTH)).astype(np.float32)
    return rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def check_said(said, logits_of, spoken, words):
    """What was said of an image is what the library generates of it alone, as likely as teacher
    forcing has it.
    """
    spoken = spoken[: spoken.index(0) + 1] if 0 in spoken else spoken
    with torch.inference_mode():
        logits = logits_of(torch.tensor([spoken[:-1]], dtype=torch.long))[0]
    chances = logits.log_softmax(1)[torch.arange(len(spoken)), torch.tensor(spoken)]
    assert said.text == words.decode(spoken)
    assert said.likelihood == pytest.approx(chances.mean().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "beams"), [(kind, 3) for kind in KINDS] + [("git", 1), ("prefix", 1)]
)
def test_describer_says_what_the_library_says_of_each_alone(tmp_path, kind, beams):
    card = card_of(tmp_path, kind, beams=beams)
    network, given = network_of(kind), given_to(kind, 5)
    seen = torch.from_numpy(given)
    if kind != "prefix":
        seen = Normalise(card.preprocessing)(seen)
    model, inputs = network.generation_inputs(seen)
    wanted = GENERATION | {"num_beams": beams}
    wanted |= {} if kind == "blip" else {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if kind == "vision-encoder-decoder":
        wanted |= {"decoder_start_token_id": 0}
    describer = build_describer(card)
    told = describer.describe(given)
    assert len({one.text for one in told}) > 1, "what is said depends on what is seen"
    assert list(describer.describe(given[:0])) == []
    for row, said in enumerate(told):
        one, image = {name: inputs[name][row : row + 1] for name in inputs}, seen[row : row + 1]
        spoken = model.generate(**one, **wanted)[0].tolist()

        def logits_of(ids, image=image):
            return network(image, torch.cat([torch.zeros(1, 1, dtype=torch.long), ids], dim=1))

        check_said(said, logits_of, spoken if kind == "prefix" else spoken[1:], WORDS)


def test_missing_embedding_has_no_words(tmp_path):
    describer, given = build_describer(card_of(tmp_path, "prefix")), given_to("prefix")
    given[2] = np.nan
    assert describer.describe(given)[2].text == ""
    assert describer.describe(given)[2].likelihood is None
    with pytest.raises(DetectorError, match="12 numbers"):
        describer.describe(given[:, :5])
    captioner = build_describer(card_of(tmp_path, "git"))
    with pytest.raises(DetectorError, match="shape \\(n, H, W, 3\\)"):
        captioner.describe(given)


def test_weights_that_do_not_fit_are_told(tmp_path):
    card_of(tmp_path, "git")
    state = load_file(tmp_path / "describer.safetensors")
    network = network_of("git")
    load_body(network, state | {"embeddings.position_ids": torch.zeros(1)}, "file")
    first = next(iter(state))
    lacking = {key: state[key] for key in state if key != first}
    for broken, told in (
        (lacking, f"1 missing \\({first}"),
        (state | {"other.weight": torch.zeros(3)}, "1 unexpected \\(other.weight"),
        (state | {first: torch.zeros(1, 1, 1)}, "1 of another shape"),
    ):
        with pytest.raises(DetectorError, match=told):
            load_body(network, broken, "file")


def test_file_without_tokenizer_and_unknown_key_are_refused(tmp_path):
    card = card_of(tmp_path, "git")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "describer.safetensors"), bare)
    with pytest.raises(DetectorError, match="not readable as a tokenizer"):
        build_describer(with_part(card, "weights", uri=str(bare), sha256=None, unverified="a test"))
    unknown = {"model": "git", "config": {"hidden": 3}}
    with pytest.raises(DetectorError, match="unknown keys hidden"):
        build_describer(card.model_copy(update={"architecture": unknown}))


def test_a_dialogue_asks_about_each_image(tmp_path):
    card, network, words = dialogue_card(tmp_path)
    describer, given = build_describer(card), given_to("llava", 3)
    said = describer.describe(given)
    seen = Normalise(card.preprocessing)(torch.from_numpy(given))
    model, inputs = network.generation_inputs(seen[1:2])
    question = inputs["input_ids"]
    spoken = model.generate(**inputs, **GENERATION, num_beams=3, eos_token_id=0, pad_token_id=1)

    def logits_of(ids):
        logits = model(pixel_values=seen[1:2], input_ids=torch.cat([question, ids], dim=1)).logits
        return logits[:, question.shape[1] - 1 :]

    check_said(said[1], logits_of, spoken[0, question.shape[1] :].tolist(), words)
    unknown = {**card.architecture, "image": ["", "<img>", ""]}
    with pytest.raises(DetectorError, match="must be a single token"):
        build_describer(card.model_copy(update={"architecture": unknown}))


def test_dialogue_weights_under_earlier_names_say_the_same(tmp_path):
    card, _, _ = dialogue_card(tmp_path)
    given = given_to("llava", 2)
    said = build_describer(card).describe(given)
    earlier = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    path = tmp_path / "describer.safetensors"
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    state = {}
    for key, tensor in load_file(path).items():
        prefix = next(prefix for prefix in earlier if key.startswith(prefix))
        state[earlier[prefix] + key.removeprefix(prefix)] = tensor
    save_file(state, tmp_path / "hub.safetensors", metadata=metadata)
    file = {"uri": "hub.safetensors", "sha256": None, "unverified": "a test"}
    renamed = with_part(card, "weights", **file)
    assert build_describer(renamed).describe(given) == said


def test_tokenizer_returns_the_words_that_it_encoded():
    text = "a red circle on the left ☃"
    ids = WORDS.encode(text, 77)
    assert ids[-1] == WORDS.end
    assert WORDS.decode([*ids, 5, 6]) == text
    assert WORDS.decode(WORDS.encode(text, 3)) == text[: len(WORDS.decode(WORDS.encode(text, 3)))]
    table = WORDS.encode_targets([text, ""], 77)
    assert table.shape == (2, len(ids))
    assert table[1].tolist() == [WORDS.end] + [-100] * (len(ids) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_card_is_the_network_that_it_states(name, tmp_path, monkeypatch):
    card = load_describer(name)
    assert card.preprocessing.shape is not None
    with torch.device("meta"):
        network = build_captioner(card.name, card.architecture)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=0.02)
    assert card.parameters is None or card.parameters == pytest.approx(count, rel=0.02)
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(tmp_path))
    monkeypatch.setenv("TOUCHSTONE_OFFLINE", "1")
    with pytest.raises(DetectorError, match=name):  # no weights
        build_describer(card)
