"""Tiny captioners and language models with drawn weights, kept as published files are: what tests
of describers load.
"""

import hashlib

import torch
import yaml
from safetensors.torch import save_file

from ray_app.identification.captioners import (
    body_state,
    build_captioner,
    build_network,
    build_prefix,
)
from ray_app.identification.cards import DescriberCard, load_describer
from ray_app.identification.tokenizer import HEADER, train_tokenizer

PROMPTS = [
    "a red circle on the left",
    "a blue square above a green triangle",
    "an oil painting of a lighthouse",
    "ein grünes Häuschen ☃",
]
WORDS = train_tokenizer(PROMPTS, 290)
V = WORDS.tokenizer.get_vocab_size()
WIDTH, SIDE = 12, 32
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"intermediate_size": 64}
_TEXT = {"vocab_size": V, **_SIZES}
_VISION = {**_SIZES, "image_size": SIDE, "patch_size": 8}
_MARKS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_GPT2 = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_MARKS}
_SAID = {**_TEXT, **_MARKS, "max_position_embeddings": 64}
_BLIP = {**_SAID, "sep_token_id": 0, "encoder_hidden_size": 32}
_DECODER = {"model_type": "gpt2", **_GPT2, "add_cross_attention": True, "is_decoder": True}
_CONFIGS = {
    "git": {**_SAID, "vision_config": _VISION},
    "blip": {"text_config": _BLIP, "vision_config": _VISION},
    "vision-encoder-decoder": {"encoder": {"model_type": "vit", **_VISION}, "decoder": _DECODER},
}
ARCHITECTURES = {name: {"model": name, "config": config} for name, config in _CONFIGS.items()}
ARCHITECTURES["prefix"] = {"width": WIDTH, "config": _GPT2}
PIXELS = {"resize": {"mode": "squash", "size": SIDE}, "mean": [0.5] * 3, "std": [0.5] * 3}
COMMON = {
    "title": "Tiny",
    "licence": "mine",
    "source": "tests",
    "training_data": {"name": "none", "licence": "none"},
    "most_tokens": 12,
}


def drawn(network, seed=3, spread=0.35):
    """The network with values large enough that what it says depends on what it is given."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def network_of(kind):
    """A network of ARCHITECTURES with drawn values."""
    torch.manual_seed(1)
    if kind == "prefix":
        return drawn(build_prefix("tiny", ARCHITECTURES[kind], 3))
    return drawn(build_captioner("tiny", ARCHITECTURES[kind]))


def card_of(folder, kind, **changes):
    """A card in FOLDER with the weights of `network_of(kind)` in the published format, the
    tokenizer in their header.
    """
    tier = "prefix" if kind == "prefix" else "captioner"
    return kept(folder, network_of(kind), ARCHITECTURES[kind], tier, **changes)


def kept(folder, network, architecture, tier, words=WORDS, **changes):
    save_file(
        body_state(network),
        folder / "describer.safetensors",
        metadata={HEADER: words.tokenizer.to_str()},
    )
    digest = hashlib.sha256((folder / "describer.safetensors").read_bytes()).hexdigest()
    sees = {"preprocessing": PIXELS}
    if tier == "prefix":
        sees = {"detector": "x", "embedding": {"width": WIDTH}, "prefix": 3}
    told = {"name": "tiny", "tier": tier, "architecture": architecture, **sees}
    told |= {"weights": {"uri": "describer.safetensors", "sha256": digest}}
    (folder / "describer.yaml").write_text(yaml.safe_dump(COMMON | told | changes))
    return load_describer(folder / "describer.yaml")


def dialogue_card(folder):
    """A tiny LLaVA that is asked a question; 16 tokens of an image. Returns its card, its network,
    and its tokenizer.
    """
    words = train_tokenizer([*PROMPTS, "<image> write a prompt"], 300)
    words.tokenizer.add_special_tokens(["<image>", "<|user|>"])
    size = words.tokenizer.get_vocab_size()
    architecture = {
        "model": "llava",
        "config": {
            "image_token_index": words.tokenizer.token_to_id("<image>"), "vision_feature_select_strategy": "default",
            "vision_config": {"model_type": "clip_vision_model", **_VISION},
            "text_config": {**_TEXT, **_MARKS, "model_type": "llama", "vocab_size": size, "num_key_value_heads": 4},
        },
        "template": "<|user|>{image} {question}", "image": ["", "<image>", ""], "image_tokens": 16,
    }  # fmt: skip
    told = {"name": "asked", "tier": "dialogue", "architecture": architecture}
    told |= {"preprocessing": PIXELS, "weights": {"uri": "w", "sha256": "0" * 64}}
    card = DescriberCard.model_validate(COMMON | told)
    torch.manual_seed(2)
    network = drawn(build_network(card, words), spread=0.2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return kept(folder, network, architecture, "dialogue", words, name="asked"), network, words
