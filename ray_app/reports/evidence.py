"""One image's record → one HTML page that loads nothing and runs nothing (`render_evidence`), and a few lines (`evidence_lines`).

Every text in the document of `touchstone runs evidence` is taken for hostile.
"""

from collections.abc import Mapping
from typing import Any

from ray_app.images import FLAG_MEANING
from ray_app.images.provenance import Provenance
from ray_app.reports import format as wording
from ray_app.reports import run
from ray_app.reports.html import jpeg_uri, render, settings

_GENERATOR, _WORDS = "nearest generator", "words"
_OUTCOMES = {"agrees": "agrees", "differs": "DIFFERS", "not checked": "–"}
_PROVENANCE = {
    "make": "camera, make",
    "model": "camera, model",
    "taken": "taken",
    "software": "software",
    "generator": "generator",
    "prompt": "prompt",
    "checkpoint": "model of the generator",
    "digital_source_type": "digital source type (IPTC)",
    "c2pa": "C2PA manifest",
    "signed_by": "signed by",
    "unread": "not read",
}


def render_evidence(evidence: Mapping[str, Any], picture: bytes | str | None = None) -> str:
    """Write a record (`ray_app.evaluation.evidence.record.make_evidence`) as one self-contained HTML page.

    `picture`: JPEG bytes of the image, made anew from the file of the record's SHA-256; or in words why there is none; None: not asked for.
    """
    record = evidence["record"]
    return render(
        "evidence.html",
        document=evidence,
        record=record,
        headline=_headline(record),
        picture=jpeg_uri(picture) if isinstance(picture, bytes) else None,
        no_picture=picture if isinstance(picture, str) else None,
        remarks={name: _remarks(one) for name, one in record["detectors"].items()},
        facts=_facts(record),
        said=provenance_rows(record["provenance"]),
        origin=_origin(record.get("profile") or {}),
        settings=settings,
    )


def evidence_lines(evidence: Mapping[str, Any]) -> list[str]:
    """A record in words, for the terminal."""
    record = evidence["record"]
    image, decision = record["image"], record["decision"]
    lines = [_headline(record), f"file sha256: {image['sha256'] or wording.NONE}"]
    for ground in (record.get("finding") or {}).get("grounds", ()):
        lines.append(wording.visible(f"  {ground['says']} ({ground['error']})"))
    if decision["verdict"] is not None:
        kind = "calibrated" if decision["calibrated"] else "not calibrated"
        score, cut = wording.score(decision["score"]), wording.score(decision["thresholds"]["fake_above"])
        lines.append(f"score {score}, fake from {cut}; probability {wording.probability(decision['probability'])} ({kind})")
        lines += [f"  {name}: {wording.score(one['score'])}" for name, one in record["detectors"].items()]
    lines += [f"{name}: {wording.visible(value)}" for name, value in _origin(record.get("profile") or {}) if name in (_GENERATOR, _WORDS)]
    lines += [wording.visible(f"why: {wording.why(decision['reason'], decision.get('detail'))}")] if decision["reason"] else []
    lines += [wording.visible(words) for words in record["guarantee"]["words"]]
    if not decision["rederived"]:
        lines.append("The cards do not give this decision again from the recorded scores: see `touchstone runs evidence --verify`.")
    return [
        *lines,
        f"digest: {evidence['sha256']}",
        *([f"signed with the key: {evidence['signature']['key']}"] if "signature" in evidence else []),
    ]


def check_line(name: str, outcome: str, message: str) -> str:
    """One line of a verification."""
    return wording.visible(f"{_OUTCOMES[outcome]:8}  {name}: {message}")


def _origin(profile: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a profile predicted, as name and value."""
    generator, prompt = profile.get("generator"), profile.get("prompt")
    entries: list[tuple[str, Any]] = []
    if generator:
        ranking = generator["ranking"] or []
        entries.append((_GENERATOR, run.generator_in_words(generator["name"], generator["family"], ranking)))
    if prompt:
        entries.append((_WORDS, prompt["text"]))
    if generator:
        entries.append(("nearest known ones, best first", ", ".join(ranking)))
        entries.append(("probability of the first, among the known", wording.probability(generator["probability"])))
        entries.append(("confidence that it is a known one", wording.score(generator["confidence"])))
    if prompt:
        entries.append(("likelihood of the words", wording.score(prompt["likelihood"])))
    return [(name, str(value)) for name, value in entries if value]


def _headline(record: Mapping[str, Any]) -> str:
    image, verdict = record["image"], record["decision"]["verdict"]
    found = (record.get("finding") or {}).get("finding") or wording.VERDICT_WORDS.get(verdict)
    path = wording.file_name(image["uri"], image["member"])
    name = wording.shortened(path.rstrip("/").rpartition("/")[2] or path, 80)
    return f"{name}: {wording.visible(found or 'not scored, ' + image['status'])}."


def _remarks(one: Mapping[str, Any]) -> list[str]:
    """How a detector's score came about, in words."""
    remarks = [f"calibrated {one['calibration']}" if one["calibration"] else "not calibrated"]
    remarks += [f"outside its valid range: {one['doubt']}"] if one["doubt"] else []
    remarks += [f"it replied “{one['replies']}”"] if one.get("replies") else []
    if one.get("mask_area") is not None:
        remarks.append(f"altered, by its mask: {wording.percent(one['mask_area'])} of the pixels")
    return remarks + ([f"computed in {one['precision']}"] if one["precision"] else [])


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was read of the file."""
    row = record["row"]
    size = f"{row['width']:,} × {row['height']:,} px" if row["width"] and row["height"] else None
    flags = [f"{flag}: {FLAG_MEANING.get(flag, 'a word of another version')}" for flag in row.get("flags") or ()]
    rows = {
        "format": row["format"],
        "size": size,
        "mode": row.get("mode"),
        "JPEG quality": row.get("quality") and f"{row['quality']} (estimated from its tables)",
        "decoder": row["decoder"],
        "status": f"{row['status']}, {wording.meaning(row['status'])}",
        "detail": row.get("detail"),
        "remarks": "; ".join(flags),
        "scored at": row.get("scored_at") and wording.moment(row["scored_at"]),
        "reused": "the scores are those of another file with the same bytes" if row.get("reused") else None,
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def provenance_rows(said: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a file says of its own origin, as name and value."""
    if not said:
        return []
    stated = Provenance.model_validate(said)
    rows = [(_PROVENANCE.get(name, name), words) for name, words in stated.lines().items()]
    if stated.c2pa is not None:
        rows.append(("signature", wording.C2PA_WORDS[stated.c2pa.state]))
    return [*rows, ("declares itself generated", "yes" if said.get("ai_declared") else "no")]
