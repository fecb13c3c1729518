"""Write remarks for the user of `touchstone data split` (`list_remarks`).

A remark is a sentence on a problem of the splits, such as images that two splits share.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_LARGE = 0.1  # A group with a larger fraction of all images makes splits uneven.
_MAX_NAMES = 5


def list_remarks(document: Mapping[str, Any], *, even: bool, has_kept_splits: bool) -> list[str]:
    """Return sentences on problems of the splits of an index, to print for the user.

    Args:
        document: The content of split.json, without `remarks`.
        even: Whether every generator was divided evenly, as `--even` requests.
        has_kept_splits: Whether the user kept splits that the index already had, by `--keep`.

    Returns:
        The sentences. Empty if the splits have no problem.
    """
    return [
        *_remark_on_groups(document),
        *_remark_on_classes(document, even),
        *_remark_on_leaks(document, has_kept_splits),
    ]


def _remark_on_groups(document: Mapping[str, Any]) -> Iterator[str]:
    if document["largest_group"] > _LARGE * document["images"] and document["groups"] > 1:
        yield (
            f"One group holds {document['largest_group']:,} of {document['images']:,} images and is not divided, so splits may be "
            "far from the requested fractions. Fewer kinds of --by make smaller groups."
        )
    if aside := document["splits"]["aside"]["images"]:
        yield f"{aside:,} fakes of held-out generators are aside, in no split, because their groups are in train or validation."


def _remark_on_classes(document: Mapping[str, Any], even: bool) -> Iterator[str]:
    for name, counts in document["splits"].items():
        if name != "aside" and counts["images"] and not (counts["real"] and counts["fake"]):
            yield f"All images of {name} are {'fake' if counts['fake'] else 'real'}."
    without = [counts["generator"] for counts in document["strata"] if not counts["test"]]
    if without and document["asked"]["shares"]["test"]:
        names = ", ".join(without[:_MAX_NAMES]) + (
            " and others" if len(without) > _MAX_NAMES else ""
        )
        yield f"No image of {names} is in test{'' if even else '; --even divides every generator'}."


def _remark_on_leaks(document: Mapping[str, Any], has_kept_splits: bool) -> Iterator[str]:
    unknown = {entry["kind"] for entry in document["bonds"] if not entry["known"]}
    missing = [name for kind, name in (("bytes", "sha256"), ("looks", "phash")) if kind in unknown]
    if missing:
        missing_hashes = (
            f"The index has no {' and no '.join(missing)}, so such copies were not searched for"
        )
        yield f"{missing_hashes}: run touchstone data index … --hash {','.join(missing)}."
    if leaking := [entry["what"] for entry in document["leaks"] if entry["values"]]:
        yield f"Splits still share images by {', '.join(leaking)}; see leaks."
    if document["had"] and not has_kept_splits:
        yield "The splits that the index had are replaced; --keep test keeps one."
