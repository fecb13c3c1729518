"""What a run says when its limits refused much of an archive: which, how many, how to raise each, and the memory that this takes."""

from ray_app.reports import wording
from ray_app.reports.run_summary import RunSummary

LOUD_SHARE = 0.01  # of the members; fewer stand in the table of statuses alone

_DECODING = "decoding takes 4 to 24 bytes of memory for each pixel, which all images over 50 megapixels on a node share in turns"
_MEANING = {
    "max_bytes": ("more bytes in one file", "a file is held as a whole while it is decoded"),
    "max_pixels": ("more pixels", _DECODING),
    "max_whole_pixels": ("more pixels, in a format other than JPEG, TIFF and WebP", _DECODING),
    "max_side": ("a longer side", "a resize takes memory by the longer side"),
    "max_aspect": ("a longer and narrower picture", "a resize takes memory by the longer side"),
    "max_ratio": ("fewer bytes for so many pixels", "the pixels bound the memory"),
    "max_text_bytes": ("more text and profiles", "all of it is held while the image is decoded"),
}


def limit_sentences(run: RunSummary) -> list[str]:
    """Nothing where limits refused no more than 1 % of the members; else first how many they are, then each limit."""
    refused = sum(run.refused_by_limits.values())
    if not run.members or refused <= LOUD_SHARE * run.members:
        return []
    share = wording.percent(refused / run.members)
    return [
        f"limits refused {share} of the archive, {wording.counted(refused, 'member')} that have no verdict",
        *(_sentence(run, name, number) for name, number in wording.largest(run.refused_by_limits, len(run.refused_by_limits))),
    ]


def _sentence(run: RunSummary, name: str, number: int) -> str:
    members = wording.counted(number, "member")
    if name == "decode_bytes":
        has = run.session.memory.decode_bytes
        return (
            f"decode_bytes ({wording.size(has)} of a node): {members} would have taken more memory; where there is more, "
            f"the same command with --retry image_too_large --set cluster.decode_bytes={2 * has}"
        )
    if name not in _MEANING:
        name = wording.visible(name)
        return f"{name}: {members}; --set {name}=… raises it, in a run directory of its own"
    what, memory = _MEANING[name]
    limit = run.identity.get("limits", {}).get(name)
    stated, twice = (f" ({limit:,})", str(2 * limit)) if isinstance(limit, int | float) else ("", "…")
    return f"{name}{stated}: {members} with {what}; --set limits.{name}={twice} admits more, in a run directory of its own; {memory}"
