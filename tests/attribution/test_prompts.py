"""Prompts as they are found: where in a record, what is dropped from them, and which are none."""

import json

import pytest

from ray_app.attribution.prompts import cleaned, prompt_in

GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 5, "positive": ["6", 0], "negative": ["7", 0], "model": ["4", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry, worst quality", "clip": ["4", 1]}},
    "8": {"class_type": "Text", "inputs": {"text": "a lighthouse in fog", "text2": "at dawn"}},
}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("  oil painting\n of a   lighthouse ", "oil painting of a lighthouse"),
        ("(masterpiece:1.3), a red fox, <lora:detail:0.6>, NSFW", "masterpiece, a red fox"),
        ("sfw, a red fox in snow, rating:safe, R-18", "a red fox in snow"),
        ("https://host/a.png https://host/b.png a red fox in snow --ar 16:9 --v 5.2", "a red fox in snow"),
        ("a red fox::2 in snow::1", "a red fox in snow"),
        ("a transfer window, unsafe for workers", "a transfer window, unsafe for workers"),
        ("狐と雪のある静かな冬の朝の風景", "狐と雪のある静かな冬の朝の風景"),
    ],
)
def test_what_is_left_of_a_prompt(prompt, words):
    assert cleaned(prompt) == words
    assert cleaned(words) == words


@pytest.mark.parametrize(
    "prompt", [None, "", "   ", "too short", "1234567890, 2024", "nsfw, sfw, rating_explicit", "x" * 2001, "<lora:abc:1>"]
)
def test_what_is_no_prompt(prompt):
    assert cleaned(prompt) is None


def test_lengths_are_those_of_the_cleaned_text():
    assert cleaned("a" * 10) == "a" * 10
    assert cleaned("a" * 2000) == "a" * 2000
    assert cleaned("a" * 9 + " nsfw") is None


def test_a_prompt_is_looked_for_in_order():
    record = {"prompt": "first", "meta": {"prompt": "second", "comfy": json.dumps(GRAPH)}, "description": "fourth", "caption": "fifth"}
    assert prompt_in(record) == "first"
    assert prompt_in(record | {"prompt": " "}) == "second"
    assert prompt_in(record | {"prompt": None, "meta": {"comfy": json.dumps({"prompt": GRAPH})}}) == "a lighthouse in fog, at dawn"
    assert prompt_in({"description": "fourth", "caption": "fifth"}) == "fourth"
    assert prompt_in({"caption": "fifth"}) == "fifth"
    assert prompt_in({"meta": None}) is None


def test_a_graph_without_a_sampler_leaves_out_what_is_refused_and_a_broken_one_says_nothing():
    loose = {"1": {"inputs": {"text_positive": "a fox"}}, "2": {"inputs": {"negative": ["7", 0]}}, "7": {"inputs": {"text": "blurry"}}}
    assert prompt_in({"meta": {"comfy": loose}}) == "a fox"
    circle = {"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"a": ["1", 0], "text": "a fox"}}}
    assert prompt_in({"meta": {"comfy": circle}}) == "a fox"
    for broken in ("{", "[]", "[" * 5000, {"1": 5}, 7, {"prompt": "x"}):
        assert prompt_in({"meta": {"comfy": broken}}) is None
