"""One line of a verification: what was looked at, and what was found."""

from typing import Literal, NamedTuple

Outcome = Literal["agrees", "differs", "not checked"]


class Check(NamedTuple):
    """One thing that was looked at, and what was found."""

    name: str
    outcome: Outcome
    told: str


def hashed(name: str, ours: str, theirs: str, what: str) -> Check:
    """Whether a hash that was computed here is the recorded one; `what` it is of."""
    if ours == theirs:
        return Check(name, "agrees", f"{what}: {ours}")
    return Check(name, "differs", f"{what} is {ours}, recorded is {theirs}")
