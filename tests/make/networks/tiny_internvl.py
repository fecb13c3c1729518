"""A vision-language detector of 70 thousand parameters in the layout that the hub publishes the
8-billion one in.
"""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers

from ray_app.detectors.card import load_card
from ray_app.detectors.families.internvl import Dialogue

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
ANSWERS = ("Real", "AI", "Maybe")
CORPUS = "The picture is Real . Real pictures are Real . Maybe AI made it . Is it AI ? Maybe . AI or Real"


def write_tiny_internvl(folder: Path, mode: str = "reply", *, max_new_tokens: int = 3) -> Path:
    """Write weights in shards with an index, tokenizer.json, config.json and card.yaml into
    `folder`; returns the card's path.

    The head knows three words and the end of a reply, so that over many images all of real, fake
    and neither are said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    arguments = tiny_arguments(tokenizer, mode, max_new_tokens)
    network = tiny_network(arguments)
    teach_to_answer(network, tokenizer, arguments)
    network.save_pretrained(folder, max_shard_size="100KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    data = yaml.safe_load(
        (load_card("internvl-prompt").folder / "internvl-prompt.yaml").read_text()
    )
    beside = dict.fromkeys(
        [*sorted(set(index["weight_map"].values())), "tokenizer.json", "config.json"]
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    data |= {
        "name": "tiny-internvl",
        "architecture": {"name": "tiny", "arguments": arguments},
        "size": {"parameters": parameters, "tensors": len(network.state_dict()), "gmac": 0.01},
        "variants": {},
        "terms": "permissive",  # these weights are ours
        "batch": 3,
    }
    data["preprocessing"]["resize"]["size"] = 56
    data["weights"] = {
        "uri": "model.safetensors.index.json", "format": "safetensors-index", "unverified": "random weights", "config": "config.json",
        "beside": beside,
    }  # fmt: skip
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return path


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE like the published one, with its special tokens; "Real", "AI" and "Maybe" are
    one token each.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = " ".join([CORPUS, *(f"{word}\n{word}" for word in ANSWERS)])
    tokenizer.train_from_iterator(
        [words],
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(alphabet), show_progress=False),
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def tiny_arguments(
    tokenizer: tokenizers.Tokenizer, mode: str, max_new_tokens: int
) -> dict[str, object]:
    """The shipped card's arguments with a network of two narrow layers on either side: 4 tokens for
    an image of 56 × 56.
    """
    arguments = dict(load_card("internvl-prompt").architecture.arguments)
    widths = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    vision = {"attention_bias": True, "num_attention_heads": 2, **widths}
    text = {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2, **widths}
    text |= {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 1024}
    return arguments | {
        "mode": mode,
        "max_new_tokens": max_new_tokens,
        "image_token_id": tokenizer.token_to_id("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "vision_config": vision | {"image_size": [56, 56], "patch_size": [14, 14]},
        "text_config": text,
    }


def tiny_network(arguments: dict[str, object]) -> transformers.InternVLForConditionalGeneration:
    """transformers' own network with seeded weights, wide enough for images to matter."""
    keys = ("image_token_id", "image_seq_length", "vision_config", "text_config")
    config = transformers.InternVLConfig(
        tie_word_embeddings=False, **{key: arguments[key] for key in keys}
    )
    network = transformers.InternVLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                fan_in = parameter.numel() / parameter.shape[0]
                parameter.copy_(
                    1.5 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
                )
    return network


@torch.no_grad()
def teach_to_answer(
    network: transformers.InternVLForConditionalGeneration,
    tokenizer: tokenizers.Tokenizer,
    arguments: dict,
) -> None:
    """Give the head rows for the answers alone, and none of them to what all images have in common
    at the first place of a reply.
    """
    dialogue = Dialogue(
        **{key: arguments[key] for key in Dialogue.model_fields if key in arguments}
    )
    ids = torch.tensor([tokenizer.encode(dialogue.expanded_prompt(4)).ids] * 16)
    images = torch.randn(
        16, 3, 56, 56, generator=torch.Generator().manual_seed(0)
    ) + torch.linspace(-2, 2, 16).view(16, 1, 1, 1)
    features = network.model(input_ids=ids, pixel_values=images).last_hidden_state[:, -1]
    common = features.mean(0)
    spoken = [tokenizer.token_to_id(word) for word in (*ANSWERS, "<|im_end|>")]
    rows = network.lm_head.weight[spoken]
    rows = rows - (rows @ common / (common @ common)).unsqueeze(1) * common
    network.lm_head.weight.zero_()
    network.lm_head.weight[spoken] = 2 * rows / (features @ rows.T).std()
