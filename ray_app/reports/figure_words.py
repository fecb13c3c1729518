"""Figures of an evaluation in words: what each is called, how it is written, what it means. Knows no page."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from ray_app.reports import wording
from ray_app.reports.figure_facts import FigureFacts


class Meaning(NamedTuple):
    """What people call a figure, what it means in a sentence, and whether it is a share, written in per cent."""

    words: str
    sentence: str
    is_share: bool = True


MEANINGS: Mapping[str, Meaning] = {
    "auc": Meaning(
        "ROC AUC", "The chance that a fake scores higher than a real image, both drawn blindly: 1 is perfect, one half is a coin.", False
    ),
    "tpr_at_fpr_1": Meaning("fakes found at 1 % false flags", "The share of fakes above a threshold that one real image in 100 passes."),
    "tpr_at_fpr_01": Meaning("fakes found at 0.1 % false flags", "The same where one real image in 1,000 passes."),
    "balanced_accuracy": Meaning("balanced accuracy", "The mean of the shares told right, of fakes and of real images, at the threshold."),
    "tpr": Meaning("fakes found", "The true-positive rate: the share of fakes that is called fake at the threshold."),
    "tnr": Meaning("real images cleared", "The true-negative rate: the share of real images that is not called fake."),
    "accuracy": Meaning("accuracy", "The share of all images told right. It depends on how many of them are fake."),
    "precision": Meaning("precision", "The share of fakes among what is called fake, with as many fakes as there are here."),
    "f1": Meaning("F1", "The harmonic mean of precision and fakes found. It depends on how many images are fake.", False),
    "average_precision": Meaning(
        "average precision",
        "Precision, averaged over all thresholds by the fakes that each finds. It depends on the share of fakes.",
        False,
    ),
    "eer": Meaning("equal error rate", "The share told wrong where as large a share of fakes is missed as of real images flagged."),
    "log_loss": Meaning("log loss", "Mean cross-entropy of the stated probabilities, in nats: 0.693 is a coin, less is better.", False),
    "brier": Meaning("Brier score", "Mean squared distance of the stated probability from what is true; 0.25 is a coin.", False),
    "ece": Meaning(
        "calibration error, debiased", "How far stated probabilities lie from the share that is fake, less what chance alone would give."
    ),
    "precision_at_prior_01": Meaning("flags that are right if 0.1 % are fake", "Precision as it would be if one image in 1,000 were fake."),
    "precision_at_prior_1": Meaning("flags that are right if 1 % are fake", "Precision as it would be if one image in 100 were fake."),
    "precision_at_prior_10": Meaning("flags that are right if 10 % are fake", "Precision as it would be if one image in 10 were fake."),
    "tpr_mean": Meaning("fakes found, mean of generators", "Each generator counts the same, however many images it has."),
    "tpr_weighted": Meaning("fakes found, by number of images", "Each generator counts by its images: the share of all fakes."),
    "reals_named": Meaning("real images given a generator’s name", "The share of real images of which a generator was named all the same."),
    "top_1": Meaning(
        "nearest known is right", "The share of fakes by known generators of which the nearest known one is right, given up or not."
    ),
    "top_3": Meaning("among the first 3", "The share of fakes whose generator is among the three likeliest names."),
    "top_5": Meaning("among the first 5", "The share of fakes whose generator is among the five likeliest names."),
    "unknown_named": Meaning("unknown ones given a known name", "The share of fakes by unknown generators that got a known one’s name."),
    "abstained_known": Meaning("known ones given up", "The share of fakes by known generators that were taken for none of them."),
    "abstained_unknown": Meaning("unknown ones given up", "The share of fakes by unknown generators that were taken for none."),
    "abstained": Meaning("taken for none of the known", "The share of the images asked for which no generator was named."),
    "family_accuracy": Meaning("family named right", "The share of fakes whose base architecture is named right, whichever its version."),
    "coverage": Meaning("coverage", "The share of images that get a verdict, fake or no evidence, and no abstention."),
    "accuracy_of_decided": Meaning("accuracy where it decides", "The share told right of the images that get a verdict."),
    "tpr_of_decided": Meaning("fakes found where it decides", "The share called fake of the fakes that get a verdict."),
    "tnr_of_decided": Meaning("real images cleared where it decides", "The share not flagged of the real images that get a verdict."),
    "accuracy_strict": Meaning(
        "accuracy, abstaining is wrong", "The share told right of all images: no verdict and no score count as wrong."
    ),
    "balanced_accuracy_strict": Meaning("balanced accuracy, abstaining is wrong", "The mean of the two strict shares."),
    "tpr_strict": Meaning("fakes found, abstaining is wrong", "The share called fake of all fakes, those without a score included."),
    "tnr_strict": Meaning("real images cleared, abstaining is wrong", "The share cleared of all real images."),
    "aurc": Meaning(
        "area under risk–coverage",
        "The share told wrong, averaged over all ways to abstain where the score is nearest the threshold.",
        False,
    ),
    "pixel_f1": Meaning("F1 of pixels", "Overlap of mask and truth, counted twice, over the size of both; mean over images.", False),
    "pixel_iou": Meaning("IoU of pixels", "Overlap of mask and truth over what either covers; mean over images.", False),
    "pixel_auc": Meaning("AUC of pixels", "The chance that an altered pixel scores above an unaltered one of the same image.", False),
    "pixel_accuracy": Meaning("accuracy of pixels", "The share of pixels told right. Small edits make it high whatever is marked."),
    "macro_f1": Meaning("macro F1", "F1 of each generator by name, averaged: rare ones count as much as frequent ones.", False),
    "micro_f1": Meaning("micro F1", "F1 of all answers together; those that were named none lower it less than accuracy.", False),
    "weighted_f1": Meaning("weighted F1", "F1 of each generator by name, averaged by number of images.", False),
    "macro_precision": Meaning("macro precision", "The share of each name’s answers that are right, averaged over names."),
    "micro_precision": Meaning("right where a name was given", "The share of names given that are right."),
    "recall": Meaning("recall", "The share of a generator’s images that is named right."),
    "macro_recall": Meaning("macro recall", "The share of each generator’s images named right, averaged over names."),
    "open_set_auroc": Meaning("open-set AUROC", "How well confidence tells known generators from those that cannot be named.", False),
    "bleu4": Meaning("BLEU-4", "Runs of up to four words that the predicted prompt shares with the true one.", False),
    "rouge_l": Meaning("ROUGE-L", "The longest common subsequence of words of both prompts, as an F1.", False),
    "token_f1": Meaning("token F1", "Words that both prompts share, in any order, as an F1.", False),
    "tag_jaccard": Meaning("Jaccard of tags", "What stands between commas in both prompts over what does in either.", False),
    "clip_text": Meaning("CLIP, both prompts", "Cosine of the CLIP embeddings of both prompts.", False),
    "clip_score": Meaning("CLIPScore", "How alike CLIP finds the image and the predicted prompt: 2.5 times their cosine, or 0.", False),
    "clip_score_truth": Meaning("CLIPScore of the true prompt", "The same of the image and the true prompt.", False),
    "clip_score_ratio": Meaning("CLIPScore by the true prompt’s", "The first by the second: 1 where both fit alike.", False),
}

KEY_FIGURES = ("auc", "tpr_at_fpr_1", "balanced_accuracy", "tpr", "tnr", "ece")
METHODS: Mapping[str, str] = {
    "clopper-pearson": "Clopper–Pearson",
    "delong": "DeLong",
    "bootstrap": "bootstrap",
    "cluster bootstrap": "bootstrap by generator",
    "student": "Student",
    "bonett-price": "Bonett–Price",
    "agresti-caffo": "Agresti–Caffo",
}


def named(key: str) -> str:
    """What people call a figure; an unknown key with spaces for underscores."""
    return MEANINGS[key].words if key in MEANINGS else wording.shortened(key.replace("_", " "), 60)


def written(key: str, value: float | None) -> str:
    """A value of that figure: shares in per cent, losses with three digits, others with four and never 1 by rounding."""
    if value is None or not math.isfinite(value):
        return wording.NONE
    if key in MEANINGS and MEANINGS[key].is_share:
        return wording.percent(value)
    if key == "log_loss":
        return wording.measured(value)
    return "> 0.9999" if 0.99995 <= value < 1 else f"{value:.4f}".replace("-", "−")


def span(key: str, figure: FigureFacts) -> str:
    """A figure's interval, "90.1 to 92.4 %"; nothing where there is none."""
    if figure.ends is None:
        return ""
    low, high = (written(key, end) for end in figure.ends)
    same_unit = low.endswith(" %") and high.endswith(" %") and not high.startswith("<")
    return f"{low.removesuffix(' %') if same_unit else low} to {high}"


def in_words(key: str, figure: FigureFacts) -> str:
    """A figure with its interval in brackets, or a dash."""
    ends = span(key, figure)
    return written(key, figure.number) + (f" ({ends})" if ends else "")


def three_digits(value: float | None) -> str:
    """A value as published tables write it: three digits, never 0 or 1 by rounding."""
    if value is None or not math.isfinite(value):
        return wording.NONE
    if 0 < value < 0.0005:
        return "< 0.001"
    return "> 0.999" if 0.9995 <= value < 1 else f"{value:.3f}".replace("-", "−")


def three_digit_ends(ends: tuple[float, float]) -> tuple[str, str]:
    """An interval's ends likewise, rounded outwards where rounding would reach 0 or 1."""
    low, high = ends
    return ("0.999" if 0.9995 <= low < 1 else f"{low:.3f}", "0.001" if 0 < high < 0.0005 else f"{high:.3f}")


def p_value(p: float | None) -> str:
    """A p-value; none is ever nought."""
    if p is None or not math.isfinite(p):
        return wording.NONE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
