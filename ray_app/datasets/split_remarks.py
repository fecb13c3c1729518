"""Remarks on the splits of an index (`remarks_on`), from the content of split.json."""

from collections.abc import Iterator, Mapping
from typing import Any

_LARGE = 0.1  # a group with more of all images than this makes shares uneven
_MAX_NAMES = 5


def remarks_on(document: Mapping[str, Any], *, even: bool, kept: bool) -> list[str]:
    """All of them. `even`: every generator was divided evenly; `kept`: splits that the index had
    were kept.
    """
    return [*_on_groups(document), *_on_classes(document, even), *_on_leaks(document, kept)]


def _on_groups(document: Mapping[str, Any]) -> Iterator[str]:
    if document["largest_group"] > _LARGE * document["images"] and document["groups"] > 1:
        yield (
            f"One group of bound images holds {document['largest_group']:,} of {document['images']:,}: it stays whole, so shares may be "
            "far from those asked. Fewer kinds of --by bind less."
        )
    if aside := document["splits"]["aside"]["images"]:
        yield f"{aside:,} fakes of held-out generators are aside, in no split: their groups are in train or validation."


def _on_classes(document: Mapping[str, Any], even: bool) -> Iterator[str]:
    for name, one in document["splits"].items():
        if name != "aside" and one["images"] and not (one["real"] and one["fake"]):
            yield f"All images of {name} are {'fake' if one['fake'] else 'real'}."
    without = [one["generator"] for one in document["strata"] if not one["test"]]
    if without and document["asked"]["shares"]["test"]:
        names = ", ".join(without[:_MAX_NAMES]) + (
            " and others" if len(without) > _MAX_NAMES else ""
        )
        yield f"Nothing of {names} is in test{'' if even else '; --even divides every generator'}."


def _on_leaks(document: Mapping[str, Any], kept: bool) -> Iterator[str]:
    unknown = {one["kind"] for one in document["bonds"] if not one["known"]}
    missing = [word for kind, word in (("bytes", "sha256"), ("looks", "phash")) if kind in unknown]
    if missing:
        missing_hashes = f"The index has no {' and no '.join(missing)}, so copies by {'it' if len(missing) == 1 else 'them'} were not looked for"
        yield f"{missing_hashes}: touchstone data index … --hash {','.join(missing)}."
    if leaking := [one["what"] for one in document["leaks"] if one["values"]]:
        yield f"Splits still share images by {', '.join(leaking)}; see leaks."
    if document["had"] and not kept:
        yield "The splits that the index had are replaced; --keep test keeps one."
