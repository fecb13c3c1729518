"""What a reader finds on the page of an evaluation, and in its lines for a terminal."""

import json
from dataclasses import replace

import pytest

from ray_app.metrics.table import MetricRow, MetricsTable, build_rows
from ray_app.metrics.values import MetricValue
from ray_app.reports.evaluation.page import evaluation_lines, render_evaluation
from ray_app.reports.evaluation.protocol_table import protocol_table
from ray_app.reports.evaluation.result import (
    TABLE,
    EvaluationMeta,
    EvaluationResult,
    ReferenceInfo,
    SystemInfo,
    TableRowInfo,
    ViewInfo,
)
from tests.make.page_reader import PageReader
from tests.reports.evaluation_example import evaluation, example_result
from tests.reports.pages import page_of


@pytest.fixture(scope="module")
def words():
    return PageReader(page_of("evaluation")).text


@pytest.fixture(scope="module")
def lines():
    return evaluation_lines(example_result())


def text_of(result):
    return PageReader(render_evaluation(result)).text


def figure(key):
    return example_result().systems[0].figure(key)


def percent_of(value, digits=0):
    return f"{100 * value:.{digits}f}"


def test_headline_has_rates_and_the_confounder(words, lines):
    found, flagged = percent_of(figure("tpr").value), percent_of(figure("tnr").complement.value)
    said = f"Stacked ensemble of four finds {found} % of the fakes and wrongly flags {flagged} % of the real images"
    assert f"{said}, but the form of the files alone (format, height) gives many" in words
    warning = "Confounded. Without any pixel, file facts (format, height, width)"
    assert words.index(warning) < words.index("How good")
    assert lines[0].startswith(said)
    assert any(line.startswith("warning: Confounded.") for line in lines)


def test_page_shows_every_section_with_its_figures(words):
    result, tpr, meta = example_result(), figure("tpr"), example_result().meta
    jpeg = {label: meta.data.formats[label]["JPEG"] for label in ("real", "fake")}
    social = result.systems[0].figure("auc", view="social").value
    for said in (
        # The four answers.
        f"finds {percent_of(tpr.value, 1)} % ({percent_of(tpr.low, 1)} to {percent_of(tpr.high, 1)} %) of 420 fakes",
        "400 real images and 420 fakes of 7 generators; 60 of the fakes are local edits.",
        "Of the generators, 3 were in its training data and 4 were not.",
        "Within one format and size, JPEG of 1–4 MP",
        "The hardest generator is nano-banana-pro: it finds ",
        "Of the real images, those from real:press photographs, scanned are flagged most often",
        "Under jpeg-30 its ROC AUC falls from",
        # The sections.
        f"ROC AUC {figure('auc').value:.4f}",
        f"flags that are right if 0.1 % are fake {percent_of(figure('precision_at_prior_01').value, 1)} %",
        f"social {social:.4f}",
        f"JPEG {jpeg['real']} {percent_of(jpeg['real'] / 400, 1)} % {jpeg['fake']}",
        "Labels and run differ. 12 of 832 labels without a row in the run, for example image_id -1.",
        "s3://lab/runs/2026-11-20-desk",
        "limits.max_pixels 50000000",
        "Brier score Mean squared distance of the stated probability",
        "Masks of maskclip, at the network’s size",
        "accuracy, abstaining is wrong",
        "In and out of distribution; detection by Stacked ensemble of four",
        "other generators of their families out 310 87.7 %",
        "known generators left unnamed 10.2 %",
        "True name Given name Images Bar flux-1-dev no name 11",
        "CLIP, regenerated image",
    ):
        assert said in words, said


def test_published_column_has_difference_and_source(words, lines):
    """Only a published column of a system of this run has a difference."""
    result = example_result()
    [mine] = [one for one in result.meta.reference if one.system == "openfake-swinv2-small"]
    [row] = [one for one in result.meta.table if one.name == "GPT Image 1"]
    ours = result.metrics.find("GPT Image 1", "openfake-swinv2-small", scope=TABLE).value
    line = next(one for one in lines if one.startswith("GPT Image 1 "))
    assert line.split()[3] == str(row.n)
    published = mine.rows["GPT Image 1"]
    assert line.endswith(f"{published:.3f}      −{published - ours:.3f}")
    said = f"{mine.column} from {mine.source}; verified: no; this run: 820 images"
    assert f"published: {said}" in lines
    assert said in words
    others = "published: CLIP-D-10k+, Corvi2023, Fusion, InternVL from OpenFake's README; verified"
    assert others in "\n".join(lines)
    reference = [replace(one, verified=one == mine) for one in result.meta.reference]
    verified = replace(result, meta=replace(result.meta, reference=tuple(reference)))
    verified_said = f"published: {said.replace('verified: no', 'verified: yes')}"
    assert verified_said in evaluation_lines(verified)
    assert text_of(verified).count(" difference ") == 1


def test_published_column_has_its_marks(words):
    page = page_of("evaluation")
    assert '<td class="number published">0.665<span class="note">¶</span></td>' in page
    assert '>Fusion<span class="note">‖</span>' in page
    assert "¶ Printed as ROC AUC, but it is (TPR + TNR) / 2 of hard decisions." in words
    assert "‖ It cannot come from soft-OR at threshold 0" in words


def test_published_column_stays_in_the_part_of_its_system():
    """A part of the table has up to nine columns and 24 rows."""
    others = [ReferenceInfo(f"other {place}", rows={"a": 0.5}) for place in range(12)]
    mine = ReferenceInfo("published d", rows={"a": 0.5}, system="d")

    def parts(systems, reference, table):
        infos = tuple(SystemInfo(name, "detector") for name in systems)
        rows = (MetricRow("d", "", TABLE, "a", MetricValue(0.25, n=4)),)
        meta = EvaluationMeta(systems=infos, reference=tuple(reference), table=tuple(table))
        return protocol_table(EvaluationResult(meta, MetricsTable(rows)))[0]

    def names(part):
        return [head.name for head in part.heads]

    row = TableRowInfo("a", "fake", 4)
    first, rest = parts("d", [*others, mine], [row])
    own = ["d", "published d", "difference"]
    assert names(first) == [*own, *(f"other {place}" for place in range(6))]
    assert [cell.value for cell in first.rows[0].cells[:3]] == ["0.250", "0.500", "−0.250"]
    assert names(rest) == [f"other {place}" for place in range(6, 12)]
    # A published row has priority over harder rows without a published value.
    many = [*(TableRowInfo(f"hard {place}", "fake") for place in range(30)), row]
    kept, _ = parts("d", [mine], many)
    assert "a" in [one.name for one in kept.rows]
    assert len(kept.rows) == 24
    _, _, rest, _ = parts("cfghijkd", [mine], many)  # The published column of d is the ninth.
    assert names(rest) == own


def test_undefined_figure_is_a_dash_with_its_reason(words):
    assert "replies yes or no – binary replies have no ranking; see balanced accuracy" in words
    assert "AUC of pixels – a mask without an unaltered pixel has no AUC" in words
    only_fakes = PageReader(page_of("evaluation", "only fakes")).text
    assert "there was no real image to test it on." in only_fakes
    assert "There is no ROC AUC: it needs real and fake images." in only_fakes
    assert any("no real image" in line for line in evaluation_lines(evaluation("only fakes")))


def test_cells_show_if_their_images_were_in_training():
    page = page_of("evaluation", "large")
    rows = page[page.index('class="matrix packed"') :].partition("</table>")[0].split("<tr>")
    [row] = [row for row in rows if ">generator-09<" in row]
    assert row.count('<span class="unseen"> in training</span>') == 5  # Detectors 3 to 7.
    assert row.count('<span class="unseen"> not in training</span>') == 4
    text = PageReader(page).text.replace("\xa0", " ")
    assert "● in training ○ not in training ? not known whether in training" in text


def test_attacks_have_a_table_and_are_no_worst_perturbation():
    result = example_result()
    views = {
        ViewInfo("soft"): 0.7,
        ViewInfo("feed", "chain"): 0.6,
        ViewInfo("print-scan", "attack"): 0.1,
        ViewInfo("jpeg-ai", "attack", "its networks are not available"): None,
    }
    first = replace(result.meta.systems[0], views=tuple(views))
    rows = [
        row
        for view, value in views.items()
        for row in build_rows({"auc": MetricValue(value, n=9)}, first.name, view=view.name)
    ]
    meta = replace(result.meta, systems=(first,))
    said = text_of(replace(result, meta=meta, metrics=MetricsTable((*result.metrics.rows, *rows))))
    captions = ("Every perturbation,", "Chains of changes, as on platforms,", "Attacks, which try")
    tables = [said.index(caption) for caption in captions]
    assert tables == sorted(tables)
    assert said.index("print-scan") > tables[2]
    assert "jpeg-ai not available: its networks are not available" in said
    assert "to 0.6000." in said
    assert "Under print-scan" not in said


def test_pictures_are_jpegs():
    shown = PageReader(page_of("evaluation")).attributes("img")
    assert len(shown) == 16 + 6
    assert all(one["src"].startswith("data:image/jpeg;base64,/9j/") for one in shown)


def test_result_read_from_json_gives_the_same_page():
    content = json.loads(json.dumps(example_result().to_dict(), allow_nan=False))
    assert render_evaluation(EvaluationResult.from_dict(content)) == page_of("evaluation")


def test_lines_fit_a_terminal(lines):
    assert max(len(line) for line in lines if "[" in line) <= 120
    nothing = ["Nothing was evaluated: the document names no system."]
    assert evaluation_lines(EvaluationResult()) == nothing
