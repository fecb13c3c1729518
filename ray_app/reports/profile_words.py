"""What a profile says, for people: generators by family, names with their titles, words. Knows a summary's figures; draws nothing."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ray_app.profiling.generators import family_title, title_of
from ray_app.reports import wording
from ray_app.reports.run_summary import GeneratorCount, ProfileSummary

NEAREST = "A name is the nearest of the generators that the identifier knows: no proof of where an image came from."
WORDS = "Words are a guess at the prompt. Many prompts lead to one image."
_MOST = 12
_MOST_IN_LINE = 4


class FamilyCount(NamedTuple):
    """A family of generators with its flagged images; `members`: title and count of its generators, where that tells more."""

    title: str
    flagged: int
    members: list[tuple[str, int]]


def families(counts: Sequence[GeneratorCount]) -> list[FamilyCount]:
    """Families with their generators, most frequent first; the rest of either as one line."""
    by_family: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for one in counts:
        names = by_family[family_title(one.family)]
        names[title_of(one.generator)] = names.get(title_of(one.generator), 0) + one.flagged
    ranked = sorted(by_family.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    shown = [FamilyCount(title, sum(names.values()), _members(title, names)) for title, names in ranked[:_MOST]]
    rest = sum(sum(names.values()) for _, names in ranked[_MOST:])
    return [*shown, FamilyCount(f"{len(ranked) - _MOST:,} other families", rest, [])] if rest else shown


def said_generator(name: str | None, family: str | None, ranking: Sequence[str] | None) -> str:
    """One image's generator in words: the name with its family, or that it is like none known and which is nearest; "" with no say."""
    if name is not None:
        title, base = title_of(name), family_title(family or name)
        return title if title.startswith(base) or base == name else f"{title} ({base})"
    return f"like no known generator; nearest: {title_of(ranking[0])}" if ranking else ""


def beginning(text: str, limit: int = 200) -> str:
    """A prompt cut where it gets long; its first words say most."""
    shown = wording.visible(text)
    return shown if len(shown) <= limit else f"{shown[:limit].rsplit(' ', 1)[0]} …"


def profile_lines(profile: ProfileSummary | None) -> list[str]:
    """A run's profile for the terminal; nothing without one."""
    if profile is None or not profile.flagged:
        return []
    lines = []
    if profile.identified:
        named = {one.title: one.flagged for one in families(profile.generators)}
        parts = [f"{wording.visible(title)} {number:,}" for title, number in wording.largest(named, _MOST_IN_LINE)]
        parts += [f"like no known generator {profile.unlike:,}"] if profile.unlike else []
        parts += [f"no say {profile.silent:,}"] if profile.silent else []
        lines.append(f"flagged images are nearest to: {', '.join(parts)}")
    if profile.describes:
        lines.append(f"words: predicted for {profile.described:,} of {wording.counted(profile.flagged, 'flagged image')}")
    return lines


def _members(title: str, names: dict[str, int]) -> list[tuple[str, int]]:
    """Nothing where the family's only generator bears its name."""
    return [] if list(names) == [title] else wording.largest(names, _MOST)
