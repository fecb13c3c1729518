"""Prompts as they are found: what is dropped from them, and which are none."""

import pytest

from ray_app.identification.prompts import clean_prompt, normalise_prompt


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("  oil painting\n of a   lighthouse ", "oil painting of a lighthouse"),
        ("(masterpiece:1.3), a red fox, <lora:detail:0.6>, NSFW", "masterpiece, a red fox"),
        ("a transfer window, unsafe for workers", "a transfer window, unsafe for workers"),
        ("狐と雪のある静かな冬の朝の風景", "狐と雪のある静かな冬の朝の風景"),
    ],
)
def test_prompt_is_cleaned(prompt, words):
    assert clean_prompt(prompt) == words
    assert clean_prompt(words) == words


def test_text_that_is_not_a_prompt_is_dropped():
    short = ("   ", "too short", "1234567890, 2024", "a" * 9 + " nsfw")
    for prompt in (None, *short, "nsfw, sfw, rating_explicit", "x" * 2001):
        assert clean_prompt(prompt) is None, prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a lighthouse in fog, <lora:foo:0.6>", "a lighthouse in fog"),
        ("(masterpiece:1.3), ((best)), [blurry], cat", "masterpiece, best, blurry, cat"),
        ("a (red (fox:1.2):0.8) on snow", "a red fox on snow"),
        ("a [cat:dog:0.5] on [grass|sand]", "a cat dog on grass sand"),
        ("hot dog:: food::2 red::-.5 plate --ar 16:9 --v 5.2", "hot dog food red plate"),
        ("https://host/a.png <https://host/b.png> a castle --iw 2 --no trees, cars", "a castle"),
        ("castle, , ,moat ,  BREAK tower,", "castle, moat, tower"),
        ("a dog - brown, half-timbered, 5:4 image", "a dog - brown, half-timbered, 5:4 image"),
        ("", ""),
        ("ﬁne café", "fine café"),
    ],
)
def test_front_end_syntax_is_dropped(prompt, expected):
    assert normalise_prompt(prompt) == expected
    assert normalise_prompt(expected) == expected


def test_normalising_takes_time_in_proportion():
    for repeated in ("(", "[", "--no ", "--a ", "::", "<a:", ", ", "https://"):
        hostile = repeated * (100_000 // len(repeated))
        assert len(normalise_prompt(hostile)) <= len(hostile)
