"""Describe an evaluation in sentences: its `headline`, four `answers`, and `warnings`.

The page and the terminal show the same sentences. Names in them are escaped and shortened.
Sentences claim no more than their intervals support.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ray_app.metrics import shortcut, uncertainty
from ray_app.metrics.detection import ranks_backwards
from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports.evaluation.result import (
    EvaluationResult,
    GeneratorInfo,
    PairedTest,
    ProtocolInfo,
    SystemResult,
    kind_scope,
)
from ray_app.reports.format import (
    format_metric,
    format_metric_interval,
    format_metric_with_interval,
    name_metric,
    number,
    percent,
    pluralize,
    probability,
)

_MAX_NAME_WIDTH = 60
_SHARP_DROP = 0.02
_MAX_INTERVAL = 0.5  # A wider interval says almost nothing.
_WIDE_INTERVAL = 0.1  # A wider interval is shown in the headline.


class EvaluationWarning(NamedTuple):
    """A warning that limits how far the metrics of an evaluation can be trusted.

    Attributes:
        heading: Heading of the warning.
        text: Its text.
        is_grave: Whether the results may be misleading. The terminal then prints "warning",
            otherwise "note".
    """

    heading: str
    text: str
    is_grave: bool


def short(name: str) -> str:
    """Return a name as sentences show it: escaped and shortened; a dash for ""."""
    return wording.truncate(name, _MAX_NAME_WIDTH) or wording.NONE


def headline(result: EvaluationResult) -> str:
    """Describe in one sentence how many fakes and real images the leading system flags.

    The leading system is the ensemble, or else the best detector. If an interval is too wide to
    state these fractions, the sentence says so.
    """
    system = result.leading
    if system is None:
        return "Nothing was evaluated: the document names no system."
    name = short(system.info.called)
    if not system.info.n:
        return f"{name}: no labelled image has a score."
    text = (
        _describe_wide_interval(name, result, system)
        or f"{_describe_rates(name, system)}{_describe_confounding(result)}."
    )
    return (
        text
        if any(sign in name for sign in "<>")
        else text.replace("< ", "under ").replace("> ", "over ")
    )


def answers(result: EvaluationResult) -> list[tuple[str, list[str]]]:
    """Return questions on an evaluation, each with the sentences that answer it.

    The questions are "How good", "On what", "How sure", and "Where it breaks". A question without
    an answer is left out.
    """
    system = result.leading
    if system is None:
        return []
    answers_ = [
        ("How good", _describe_quality(system)),
        ("On what", _describe_data(result, system)),
        ("How sure", _describe_certainty(result, system)),
        ("Where it breaks", _describe_weaknesses(system)),
    ]
    return [(question, sentences) for question, sentences in answers_ if sentences]


def warnings(result: EvaluationResult) -> list[EvaluationWarning]:
    """Return the warnings on an evaluation, such as labels that may be swapped."""
    meta, data, labels = result.meta, result.meta.data, result.meta.labels
    warnings_, names = [], ", ".join(map(short, data.features))
    if data.confounded:
        text = f"Without any pixel, file facts{f' ({names})' if names else ''} separate fakes from real images with AUC "
        text += f"{format_metric_with_interval('auc', result.shortcut_auc)}. A detector can look as good as it does here for the same reason. "
        text += "Read the metrics by format and size before the headline."
        warnings_.append(EvaluationWarning("Confounded.", text, True))
    warnings_ += [
        EvaluationWarning("Classes differ.", wording.escape_invisible(text), not data.confounded)
        for text in meta.data_warnings
    ]
    warnings_ += [
        EvaluationWarning("About the data.", wording.escape_invisible(text), False)
        for text in meta.faults
    ]
    parts = (
        [f"{pluralize(labels.without_row, 'label')} without a row in the run"]
        if labels.without_row
        else []
    )
    parts += (
        [f"{pluralize(labels.rows_without_label, 'row')} without a label"]
        if labels.rows_without_label
        else []
    )
    parts += (
        [f"{pluralize(labels.doubled, 'label')} repeated (and equal)"] if labels.doubled else []
    )
    texts = [wording.escape_invisible(text) for text in meta.label_warnings] or (
        [f"{'; '.join(parts)}."] if parts else []
    )
    warnings_ += [EvaluationWarning("Labels and run differ.", text, False) for text in texts]
    if meta.protocol and meta.table and not any(row.n for row in meta.table):
        warnings_.append(_warn_of_empty_protocol(result, meta.protocol))
    if meta.localization and meta.localization.warning:
        warnings_.append(
            EvaluationWarning(
                "Masks may be misread.", wording.escape_invisible(meta.localization.warning), True
            )
        )
    if meta.localization:
        for reason in meta.localization.unreadable:
            example = f", for example {reason.example}" if reason.example else ""
            text = f"{pluralize(reason.n, 'mask')} of the labels: {reason.reason}{example}."
            warnings_.append(
                EvaluationWarning(
                    "Some masks could not be used.", wording.escape_invisible(text), True
                )
            )
    if backwards := [
        system
        for system in result.systems
        if ranks_backwards(system.figure("auc"), system.info.n_real, system.info.n_fake)
    ]:
        systems = ", ".join(
            f"{short(system.info.called)} {format_metric_with_interval('auc', system.figure('auc'))}"
            for system in backwards[:6]
        )
        text = f"ROC AUC far below 0.5: {systems}. Such a detector scores real images higher than fakes: "
        warnings_.append(
            EvaluationWarning(
                "Labels may be swapped.",
                f"{text}check which label is real and which is fake.",
                True,
            )
        )
    if late := [system for system in result.systems if system.info.late]:
        systems = ", ".join(f"{short(system.info.called)} {system.info.n:,}" for system in late[:6])
        text = f"Images in the second stage of the cascade: {systems}. The metrics of these detectors cover only such images, the hard ones."
        warnings_.append(
            EvaluationWarning("Some detectors scored only part of the images.", text, True)
        )
    if unscored := [
        system for system in result.systems if system.info.unscored and not system.info.late
    ]:
        systems = ", ".join(
            f"{short(system.info.called)} {system.info.unscored:,}" for system in unscored[:6]
        )
        text = f"Images without a score: {systems}. They count in the strict metrics only."
        warnings_.append(EvaluationWarning("Not all images have a score.", text, False))
    if marked := [
        short(reference.column) for reference in meta.reference if reference.mark or reference.marks
    ]:
        text = f"{', '.join(marked)}: the notes under the table show the reason."
        warnings_.append(
            EvaluationWarning("Some published metrics cannot be compared.", text, False)
        )
    return warnings_


def _warn_of_empty_protocol(result: EvaluationResult, protocol: ProtocolInfo) -> EvaluationWarning:
    """Warn that no image of the data belongs to a row of the protocol."""
    names = [
        short(generator.name)
        for generator in result.systems[0].info.generators
        if generator.label == "fake"
    ]
    generators = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
    text = f"The rows of {short(protocol.name)} select images by the name of their generator. "
    text += f"The data has {generators or 'no fake'}. `touchstone protocols show {short(protocol.name)}` lists the names of the rows."
    return EvaluationWarning("The table of the protocol is empty.", text, True)


def format_rounded_interval(metric: MetricValue) -> str:
    """Format the interval of a fraction in whole per cent: "90 to 93 %"; "" if it has none."""
    if metric.interval is None:
        return ""
    low, high = (percent(bound, 0) for bound in metric.interval)
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _describe_rates(
    name: str, system: SystemResult, article: str = "the", *, has_intervals: bool = True
) -> str:
    """Describe the rates of a system as a clause.

    Args:
        name: Name of the system.
        system: The system.
        article: "the" for images in general, or "these" for the evaluated images.
        has_intervals: Whether to show wide intervals.
    """
    tpr, flagged, auc, balanced_accuracy = (
        metric if has_intervals else metric.without_interval()
        for metric in (
            system.figure("tpr"),
            system.flagged,
            system.figure("auc"),
            system.figure("balanced_accuracy"),
        )
    )
    finds = f"{name} finds {_format_fraction(tpr, article, 'fake')}"
    flags = f"wrongly flags {_format_fraction(flagged, article, 'real image')}"
    if tpr.value is not None and flagged.value is not None:
        return f"{finds} and {flags}"
    if tpr.value is not None:
        return f"{finds}; there was no real image to test it on"
    if flagged.value is not None:
        return f"{name} {flags}; there was no fake to test it on"
    if auc.value is not None:
        return f"{name} scores a fake above a real image with a probability of {percent(auc.value, 0)}{_format_wide_interval(auc)}"
    if balanced_accuracy.value is not None:
        return (
            f"{name} judges {percent(balanced_accuracy.value, 0)}{_format_wide_interval(balanced_accuracy)} of images correctly, "
            "with equal weight of both classes"
        )
    return f"{name} scored {pluralize(system.info.n, 'image')}, and no metric is defined"


def _format_fraction(metric: MetricValue, article: str, noun: str) -> str:
    """Format a fraction as "every fake", "none of the fakes", or "91 % of the fakes".

    A wide interval is added.
    """
    bounds = _format_wide_interval(metric)
    if metric.value == 1 and not bounds:
        return f"every {noun}" if article == "the" else f"every one of {article} {noun}s"
    fraction = "none" if metric.value == 0 else percent(metric.value, 0)
    return f"{fraction}{bounds} of {article} {noun}s"


def _format_wide_interval(metric: MetricValue) -> str:
    return (
        f" ({format_rounded_interval(metric)})"
        if metric.interval and metric.interval[1] - metric.interval[0] > _WIDE_INTERVAL
        else ""
    )


def _describe_wide_interval(name: str, result: EvaluationResult, system: SystemResult) -> str:
    """Describe an interval that is too wide for a claim on further images, generators, or sources.

    Return "" if no interval is.
    """
    intervals = result.meta.intervals
    metrics = (("AUC", system.figure("auc"), False), ("fraction of fakes found", system.figure("tpr"), False),
               ("fraction of real images flagged", system.flagged, True))  # fmt: skip
    for title, metric, is_of_reals in metrics:
        if metric.interval is None or metric.interval[1] - metric.interval[0] <= _MAX_INTERVAL:
            continue
        if not intervals.is_for_images and not (is_of_reals and intervals.reals != "sources"):
            groups = intervals.sources if is_of_reals else intervals.generators
            few = (
                f"{pluralize(groups, 'source')} of real images"
                if is_of_reals
                else pluralize(groups, "generator")
            )
            too_few = f"{few} {_are(groups)} too few to say how it does on others"
            return f"{_describe_rates(name, system, 'these', has_intervals=False)}, but {too_few}{_describe_confounding(result, 'and')}."
        low, high = (
            number(bound, 1, decimals=2) if title == "AUC" else percent(bound, 0)
            for bound in metric.interval
        )
        images = f"{pluralize(system.info.n, 'image')} {_are(system.info.n)} too few to say how good {name} is"
        return f"{images}: its {title} could be anything from {low} to {high}."
    return ""


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _describe_confounding(result: EvaluationResult, conjunction: str = "but") -> str:
    """Return the end of the headline if file facts alone separate the classes, else ""."""
    data = result.meta.data
    names = f" ({', '.join(short(name) for name in data.features[:2])})" if data.features else ""
    return (
        f", {conjunction} the form of the files alone{names} gives many fakes away"
        if data.confounded
        else ""
    )


def _describe_quality(system: SystemResult) -> list[str]:
    tpr, tnr, auc = (system.figure(key) for key in ("tpr", "tnr", "auc"))
    sentences, parts = [], []
    if tpr.value is not None:
        parts.append(
            f"finds {format_metric_with_interval('tpr', tpr)} of {pluralize(system.info.n_fake, 'fake')}"
        )
    if tnr.value is not None:
        parts.append(
            f"clears {format_metric_with_interval('tnr', tnr)} of {pluralize(system.info.n_real, 'real image')}"
        )
    if parts:
        threshold = (
            f" at a threshold of {number(system.info.threshold, 6)}"
            if system.info.threshold is not None
            else ""
        )
        sentences.append(f"{short(system.info.called)} {' and '.join(parts)}{threshold}.")
    if auc.value is not None:
        sentences.append(
            f"A fake scores higher than a real image with a probability of {format_metric_with_interval('auc', auc)}: the ROC AUC."
        )
    elif auc.why:
        sentences.append(f"There is no ROC AUC: {wording.escape_invisible(auc.why)}.")
    tpr_at_1, precision = system.figure("tpr_at_fpr_1"), system.figure("precision_at_prior_1")
    if tpr_at_1.value is not None:
        sentences.append(
            f"If 1 % of the real images may be flagged by mistake, it finds {format_metric_with_interval('tpr_at_fpr_1', tpr_at_1)} of the fakes."
        )
    if precision.value is not None:
        sentences.append(
            f"If one image in 100 were fake, {format_metric_with_interval('precision_at_prior_1', precision)} of its flags would be right."
        )
    return sentences


def _describe_data(result: EvaluationResult, system: SystemResult) -> list[str]:
    data, protocol = result.meta.data, result.meta.protocol
    fakes = [generator for generator in system.info.generators if generator.label == "fake"]
    text = f"{pluralize(data.n_real, 'real image')} and {pluralize(data.n_fake, 'fake')}"
    text += f" of {pluralize(len(fakes), 'generator')}" if fakes else ""
    text += f"; {data.n_local:,} of the fakes are local edits" if data.n_local else ""
    sentences = [f"{text}."] if data.n_real + data.n_fake else []
    if protocol:
        source = f" ({short(protocol.source)})" if protocol.source else ""
        sentences.append(f"Protocol: {short(protocol.title or protocol.name)}{source}.")
    else:
        sentences.append("No published protocol was followed.")
    if not fakes:
        return sentences
    in_training, unseen = (
        sum(generator.seen == state for generator in fakes) for state in ("in-training", "unseen")
    )
    if not in_training and not unseen:
        return [
            *sentences,
            "It is not known whether any of the generators was in its training data.",
        ]
    unknown = len(fakes) - in_training - unseen
    unknown_text = f"; for {unknown:,} it is not known" if unknown else ""
    was, others_were = ("was" if count == 1 else "were" for count in (in_training, unseen))
    return [
        *sentences,
        f"Of the generators, {in_training or 'none'} {was} in its training data and {unseen:,} {others_were} not{unknown_text}.",
    ]


def _describe_certainty(result: EvaluationResult, system: SystemResult) -> list[str]:
    sentences = [_describe_intervals(result, system)]
    if len(result.systems) > 1 and system.info.kind != "ensemble":
        sentences.append(
            f"It is shown first as the best of {len(result.systems)} on these same images, so its metrics are a little too favourable."
        )
    differences = [
        (test, difference.value)
        for test in result.meta.paired
        if system.info.name in (test.a, test.b)
        and (difference := find_difference(result, test)).value is not None
    ]
    if differences:
        test, amount = min(differences, key=lambda pair: ("auc" not in pair[0].test, abs(pair[1])))
        sentences.append(_describe_difference(test, amount, result, system))
    ece = system.figure("ece")
    error = (
        f"off by {format_metric_with_interval('ece', ece)} on average"
        if ece.value is not None
        else ""
    )
    if not system.info.calibrated:
        sentences.append(
            "Its scores are not calibrated"
            + (f": read as probabilities, they are {error}." if error else ".")
        )
    elif error:
        sentences.append(f"Its probabilities are {error}.")
    # Within one format and size, neither of them reveals a fake. The sentence is on the largest
    # such stratum with both classes.
    strata = [
        stratum
        for stratum in system.info.strata
        if stratum.n_real
        and stratum.n_fake
        and system.figure("auc", stratum.scope).value is not None
    ]
    if strata:
        largest = max(strata, key=lambda stratum: min(stratum.n_real, stratum.n_fake))
        images = (
            f"{wording.truncate(largest.format, 12)} of {wording.truncate(largest.size, 16)}, "
            f"{largest.n_real:,} real and {largest.n_fake:,} fake"
        )
        sentences.append(
            f"Within one format and size, {images}, its AUC is {format_metric_with_interval('auc', system.figure('auc', largest.scope))}."
        )
    auc = result.shortcut_auc
    if auc.value is not None and not result.meta.data.confounded:
        sentences.append(
            f"File facts alone separate the classes with AUC {format_metric_with_interval('auc', auc)}: {shortcut.finding(auc)}."
        )
    return sentences


def _describe_intervals(result: EvaluationResult, system: SystemResult) -> str:
    """Describe the intervals of the main metrics, and what they cover."""
    intervals = [
        (name_metric(key), format_metric_interval(key, system.figure(key)))
        for key in ("auc", "tpr", "tnr")
    ]
    text = ", ".join(f"{name} {interval}" for name, interval in intervals if interval)
    if not result.meta.intervals.words:
        start = (
            f"95 % intervals: {text}. They"
            if text
            else "Ranges in brackets are 95 % intervals. They"
        )
        return f"{start} cover chance alone: images of another kind can be far outside."
    beyond = (
        "other generators can be far outside"
        if result.meta.intervals.fakes == "images"
        else "generators and sources unlike these can be far outside"
    )
    return f"{f'{text}. ' if text else ''}{result.meta.intervals.words} They cover chance alone: {beyond}."


def find_difference(result: EvaluationResult, test: PairedTest) -> MetricValue:
    """Return the measured difference of a paired test: the metric of system `b` minus that of `a`.

    The metric is the AUC or the accuracy.
    """
    return result.metrics.find(test.test, test.b, scope=test.scope)


def _describe_difference(
    test: PairedTest, difference: float, result: EvaluationResult, system: SystemResult
) -> str:
    """Describe the difference between a system and the closest other system."""
    is_second = test.b == system.info.name
    other = test.a if is_second else test.b
    info = next((info for info in result.meta.systems if info.name == other), None)
    against = f"Against {short(info.called if info else other)}, the closest in paired tests, its"
    title = "AUC" if "auc" in test.test else "fraction judged correctly"
    amount = difference * (1 if is_second else -1)
    if not amount:
        return f"{against} {title} is the same."
    p = test.p_holm if test.p_holm is not None else test.p
    explanation = "" if p is None or p < 0.05 else ", which chance alone would explain"
    p_text = probability(p) if probability(p).startswith("<") else f"= {probability(p)}"
    return f"{against} {title} is {number(abs(amount), 1, decimals=4)} {'higher' if amount > 0 else 'lower'} (p {p_text}){explanation}."


def _describe_weaknesses(system: SystemResult) -> list[str]:
    sentences = []
    hardest, sources = (
        [
            generator
            for generator in system.hardest(label)
            if system.rate(generator).value is not None
        ]
        for label in ("fake", "real")
    )
    if len(hardest) > 1:
        worst = hardest[0]
        sentences.append(
            f"The hardest generator is {short(worst.name)}: it finds {format_metric_with_interval('tpr', system.rate(worst))} "
            f"of {pluralize(worst.n, 'image')}."
        )
        rates = {
            state: [
                system.rate(generator).value or 0.0
                for generator in hardest
                if generator.seen == state
            ]
            for state in ("in-training", "unseen")
        }
        if all(rates.values()):
            trained, unseen = (percent(sum(values) / len(values)) for values in rates.values())
            sentences.append(
                f"Of generators that it was trained on it finds {trained} on average, of other generators {unseen}."
            )
    if _is_outlier(system, sources):
        worst = sources[0]
        flagged = percent(1 - (system.rate(worst).value or 0))
        sentences.append(
            f"Of the real images, those from {short(worst.name)} are flagged most often: {flagged} of {worst.n:,}."
        )
    whole, local = (system.figure("tpr", kind_scope(kind)) for kind in ("whole", "local"))
    if whole.value is not None and local.value is not None:
        sentences.append(
            f"Of local edits it finds {format_metric_with_interval('tpr', local)}, of whole fakes {format_metric_with_interval('tpr', whole)}."
        )
    return sentences + _describe_worst_perturbation(system)


def _is_outlier(system: SystemResult, hardest: Sequence[GeneratorInfo]) -> bool:
    """Return whether the hardest generator is worse than all others together.

    The interval of its rate must be below the interval of theirs.
    """
    n = sum(generator.n for generator in hardest[1:])
    worst = system.rate(hardest[0]).interval if hardest else None
    if not n or worst is None:
        return False
    n_correct = sum(
        round(generator.n * (system.rate(generator).value or 0.0)) for generator in hardest[1:]
    )
    return worst[1] < uncertainty.proportion_interval(n_correct, n)[0]


def _describe_worst_perturbation(system: SystemResult) -> list[str]:
    """Describe the perturbation with the lowest AUC, or else balanced accuracy; ignore attacks."""
    for key in ("auc", "balanced_accuracy"):
        clean = system.figure(key).value
        values = [
            (system.figure(key, view=view.name).value, view)
            for view in system.info.views
            if view.kind != "attack"
        ]
        measured = [(value, view) for value, view in values if value is not None]
        if clean is None or not measured:
            continue
        value, view = min(measured, key=lambda item: item[0])
        if clean - value < _SHARP_DROP:
            return [
                f"Even under {short(view.name)}, the most harmful perturbation, its {name_metric(key)} is {format_metric(key, value)}."
            ]
        return [
            f"Under {short(view.name)} its {name_metric(key)} falls from {format_metric(key, clean)} to {format_metric(key, value)}."
        ]
    return []
