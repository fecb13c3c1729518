"""How version 1 of DFLIP-3K marks answers in words. Knows its sentences and names; knows no run and no image.

Source: specs/localization.md §5.1 (utils/evaluate.py of dflip3k/DFLIP-3K). Detection: an answer is right if it holds "ai generated" for a
fake, "real" for a real. Identification: the whole sentence counts; a name that is none of the known ones counts as `sd`. Departures, where
theirs is not known or plainly a slip: an answer that is no such sentence is wrong rather than `sd`, a missing one too, and groups are
divided by their size, not by their size and .001.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.intervals import proportion

Answers = Mapping[tuple[str, str, str | None], int]
"""How many images have each label (real or fake), generator and answer; None = no answer."""
FAMILIES = ("dalle", "mj", "sd")
GROUPS = (*FAMILIES, "sdft", "imagen", "parti", "sdftood")
OUT_OF_DISTRIBUTION = ("imagen", "parti", "sdftood")  # groups that are detected, not identified
REAL = "This is a real image."
_FAKE = re.compile(r"This is an ai generated image by (.+)\.")
_NAMES = {"StableDiffusion": "sd", "Midjourney": "mj", "DALLE": "dalle"}
_FAMILY_OF = (
    (re.compile(r"dall-?e(-?2)?", re.IGNORECASE), "dalle"),
    (re.compile(r"mj|midjourney.*", re.IGNORECASE), "mj"),
    (re.compile(r"sd|stable-?diffusion", re.IGNORECASE), "sd"),
    (re.compile(r"imagen.*", re.IGNORECASE), "imagen"),
    (re.compile(r"parti.*", re.IGNORECASE), "parti"),
    (re.compile(r"sdftood", re.IGNORECASE), "sdftood"),
)
_NO_IMAGE = "no image"


def class_of(label: str, generator: str) -> str:
    """The class that a label stands for: `real`, a family, a group out of distribution, or a fine-tuned model by its own name."""
    if label == "real":
        return "real"
    return next((family for pattern, family in _FAMILY_OF if pattern.fullmatch(generator)), generator)


def named_in(answer: str | None, known: Collection[str]) -> str | None:
    """The class that an answer names, `sd` for an unknown one; None where it is no sentence of theirs."""
    if answer is None:
        return None
    if answer.strip() == REAL:
        return "real"
    found = _FAKE.fullmatch(answer.strip())
    if found is None:
        return None
    name = _NAMES.get(found[1], found[1])
    return name if name in known else "sd"


def detects(label: str, answer: str | None) -> bool:
    """Whether an answer counts as right about real or fake."""
    return answer is not None and ("ai generated" if label == "fake" else "real") in answer


def dflip_v1(answers: Answers, missing: int = 0) -> dict[str, Any]:
    """The section `identification` under their rules, figures as JSON; `missing`: images of the test list without any row, all wrong.

    `accuracy` is of identification, by the images of its classes and all that are missing; `macro_f1` as scikit-learn has it by default,
    over all classes that are true or answered. `detection`: the same of real or fake, as a whole and by group, whose reals are their own.
    """
    truths = {(label, generator): class_of(label, generator) for label, generator, _ in answers}
    known = {"real", *FAMILIES, *truths.values()} - set(OUT_OF_DISTRIBUTION)
    pairs: Counter[tuple[str, str | None]] = Counter()
    for (label, generator, answer), n in answers.items():
        if (truth := truths[label, generator]) in known:
            pairs[truth, named_in(answer, known)] += n
    right, total = sum(n for (truth, said), n in pairs.items() if truth == said), sum(pairs.values())
    wrong = sorted(
        ((truth, said, n) for (truth, said), n in pairs.items() if truth != said), key=lambda one: (-one[2], one[0], one[1] or "")
    )
    return {
        "protocol": "dflip-v1",
        "accuracy": proportion(right, total + missing, _NO_IMAGE).row(),
        "macro_f1": _macro_f1(pairs).row(),
        "pairs": [list(pair) for pair in wrong[:50]],
        "detection": _detection(answers, missing),
    }


def _macro_f1(pairs: Mapping[tuple[str, str | None], int]) -> Figure:
    from sklearn.metrics import f1_score

    if not pairs:
        return undefined(_NO_IMAGE)
    truth, said = [one for one, _ in pairs], [other or "" for _, other in pairs]
    classes = sorted({*truth, *said} - {""})
    value = f1_score(truth, said, labels=classes, sample_weight=list(pairs.values()), average="macro", zero_division=0)
    return Figure(float(value), n=sum(pairs.values()))


def _detection(answers: Answers, missing: int) -> dict[str, Any]:
    if not any(answer and ("ai generated" in answer or "real" in answer) for _, _, answer in answers):
        return {"accuracy": undefined("the answers are names, not sentences").row(), "groups": []}
    hits: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for (label, generator, answer), n in answers.items():
        truth = class_of(label, generator)
        group = truth if truth in (*GROUPS, "real") else "sdft"
        sizes[group] += n
        hits[group] += n * detects(label, answer)
    rows = [{"name": one, "n": sizes[one], "accuracy": proportion(hits[one], sizes[one], _NO_IMAGE).row()} for one in sorted(sizes)]
    return {"accuracy": proportion(hits.total(), sizes.total() + missing, _NO_IMAGE).row(), "groups": rows}
