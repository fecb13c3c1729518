"""A CLIP of 0.1 M parameters with a tokenizer of a few words, in a folder as transformers publishes
them.
"""

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["a", "cat", "dog", "red", "house", "in", "fog", "on", "the", "sea", ",", "old", "man"]
CONTEXT = 9


def write_clip(folder, seed=8):
    """Letters and whole words are tokens, words by merges of letters from the left; returns the
    folder as text.

    Of this seed every picture of the tests lies on the side of every text: CLIPScore does not cut
    them off at 0.
    """
    letters = sorted(
        {letter for word in WORDS for letter in word} | set("abcdefghijklmnopqrstuvwxyz")
    )
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair, pieces = pieces[:2], ["".join(pieces[:2]), *pieces[2:]]
            if tuple(pair) not in merges:
                merges.append(tuple(pair))
                tokens.append(pieces[0])
    vocabulary = {
        token: number for number, token in enumerate(dict.fromkeys([*tokens, START, END]))
    }
    folder.mkdir(exist_ok=True)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT).save_pretrained(folder)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = sizes | {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": vocabulary[START],
    }
    config = CLIPConfig(
        text_config=text | {"eos_token_id": vocabulary[END], "pad_token_id": vocabulary[END]},
        vision_config=sizes | {"image_size": 28, "patch_size": 14}, projection_dim=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return str(folder)
