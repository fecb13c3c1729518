"""A predicted prompt. Knows text and a number."""

from typing import NamedTuple


class Described(NamedTuple):
    """The words that an image may have been made from. `likelihood`: how much its model believes in them: the mean log-probability of a
    token (at most 0) where words were generated, the cosine to the nearest embedding where they were found.
    """

    text: str
    likelihood: float
