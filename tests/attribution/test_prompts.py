"""Prompts as they are found: what is dropped from them, and which are none."""

import pytest

from ray_app.attribution.prompts import cleaned


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("  oil painting\n of a   lighthouse ", "oil painting of a lighthouse"),
        ("(masterpiece:1.3), a red fox, <lora:detail:0.6>, NSFW", "masterpiece, a red fox"),
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
    "prompt", [None, "   ", "too short", "1234567890, 2024", "nsfw, sfw, rating_explicit", "x" * 2001, "a" * 9 + " nsfw"]
)
def test_what_is_no_prompt(prompt):
    assert cleaned(prompt) is None
