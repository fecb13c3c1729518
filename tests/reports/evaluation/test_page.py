"""What a reader finds on the page of an evaluation, and in its lines for a terminal."""

import json
from dataclasses import replace

import pytest

from ray_app.metrics.table import MetricRow, MetricsTable, rows_of
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
from tests.reports.evaluation_example import example_result, one_class, small_result
from tests.reports.page_reader import PageReader
from tests.reports.pages import HOSTILE_PAGES, page_of


@pytest.fixture(scope="module")
def words():
    return PageReader(page_of("evaluation")).text


def text_of(result):
    return PageReader(render_evaluation(result)).text


def figure(key):
    return example_result().systems[0].figure(key)


def test_the_headline_says_how_good_on_what_and_that_it_is_confounded(words):
    found, low, high = (
        round(100 * part) for part in (figure("tpr").value, *figure("tpr").interval)
    )
    flagged = round(100 * figure("tnr").complement.value)
    said = f"Stacked ensemble of four finds {found} % ({low} to {high} %) of the fakes and wrongly flags {flagged} % of the real images"
    assert (
        f"{said}, but the form of the files alone (format, height) gives many fakes away." in words
    )
    assert words.index(
        "Confounded. Without looking at a pixel, file facts (format, height, width)"
    ) < words.index("How good")


def test_the_four_answers_have_their_numbers(words):
    tpr = figure("tpr")
    low, high = (100 * end for end in (tpr.low, tpr.high))
    for said in (
        f"finds {100 * tpr.value:.1f} % ({low:.1f} to {high:.1f} %) of 1,720 fakes and clears",
        "1,600 real images and 1,720 fakes of 10 generators; 120 of the fakes are local edits.",
        "Of the generators, 4 were in its training data and 6 were not.",
        "Within one format and size, JPEG of 1–4 MP",
        "The hardest generator is nano-banana-pro: it finds ",
        "Of the real images, those from real:press photographs, scanned are flagged most often",
        "Under jpeg-30 its ROC AUC falls from",
    ):
        assert said in words


def test_what_was_published_stands_beside_ours_with_its_marks(words):
    page = page_of("evaluation")
    assert '<td class="number published">0.665<span class="note">¶</span></td>' in page
    assert '>Fusion<span class="note">‖</span>' in page
    assert "¶ Printed as ROC AUC, but it is (TPR + TNR) / 2 of hard decisions." in words
    assert "‖ It cannot come from soft-OR at threshold 0" in words


def test_a_published_column_of_ours_has_the_difference_the_source_and_whether_it_was_verified(
    words,
):
    """On the page and on the terminal; a column of a system that is not ours has no difference."""
    result = example_result()
    [mine] = [one for one in result.meta.reference if one.system == "openfake-swinv2-small"]
    [row] = [one for one in result.meta.table if one.name == "GPT Image 1"]
    ours = result.metrics.find("GPT Image 1", "openfake-swinv2-small", scope=TABLE).value
    [line] = [one for one in evaluation_lines(result) if one.startswith("GPT Image 1 ")][:1]
    assert line.split()[3] == str(row.n)
    published = mine.rows["GPT Image 1"]
    assert line.endswith(f"{published:.3f}      −{published - ours:.3f}")
    said = f"{mine.column} from {mine.source}; verified: no; this run: 3,320 images"
    assert f"published: {said}" in evaluation_lines(result)
    assert said in words
    assert (
        "published: CLIP-D-10k+, Corvi2023, Fusion, InternVL from OpenFake's README; verified: no"
        in "\n".join(evaluation_lines(result))
    )
    reference = [replace(one, verified=one == mine) for one in result.meta.reference]
    verified = replace(result, meta=replace(result.meta, reference=tuple(reference)))
    assert f"published: {said.replace('verified: no', 'verified: yes')}" in evaluation_lines(
        verified
    )
    assert text_of(verified).count(" difference ") == 1


def test_what_was_published_of_a_system_is_never_on_another_part_of_the_table():
    """Nine columns are shown at once, here ours, its own published one, the difference and six
    published of others.
    """
    others = [ReferenceInfo(f"other {place}", rows={"a": 0.5}) for place in range(12)]
    mine = ReferenceInfo("published d", rows={"a": 0.5}, system="d")

    def parts(systems, reference, table):
        infos = tuple(SystemInfo(name, "detector") for name in systems)
        rows = (MetricRow("d", "", TABLE, "a", MetricValue(0.25, n=4)),)
        meta = EvaluationMeta(systems=infos, reference=tuple(reference), table=tuple(table))
        return protocol_table(EvaluationResult(meta, MetricsTable(rows)))[0]

    row = TableRowInfo("a", "fake", 4)
    first, rest = parts("d", [*others, mine], [row])
    assert [head.name for head in first.heads] == [
        "d",
        "published d",
        "difference",
        *(f"other {place}" for place in range(6)),
    ]
    assert [cell.value for cell in first.rows[0].cells[:3]] == ["0.250", "0.500", "−0.250"]
    assert [head.name for head in rest.heads] == [f"other {place}" for place in range(6, 12)]
    # So are rows: an easy published one stands before harder ones.
    many = [*(TableRowInfo(f"hard {place}", "fake") for place in range(30)), row]
    kept, _ = parts("d", [mine], many)
    assert "a" in [one.name for one in kept.rows]
    assert len(kept.rows) == 24
    _, _, rest, _ = parts("cfghijkd", [mine], many)  # the ninth column would be d's published one
    assert [head.name for head in rest.heads] == ["d", "published d", "difference"]


def test_a_figure_that_is_not_defined_is_a_dash_with_its_reason(words):
    assert '–<span class="note">a</span>' in page_of("evaluation")
    assert "a binary replies have no ranking; see balanced accuracy" in words
    assert "AUC of pixels – a mask without an unaltered pixel has no AUC" in words
    only_fakes = PageReader(page_of("evaluation", "only fakes")).text
    assert "there was no real image to try it on." in only_fakes
    assert "There is no ROC AUC: it needs real and fake images." in only_fakes


def test_every_cell_says_whether_its_images_were_in_training():
    page = page_of("evaluation", "large")
    rows = page[page.index('class="matrix packed"') :].partition("</table>")[0].split("<tr>")
    [row] = [row for row in rows if ">generator-09<" in row]
    assert row.count('<span class="unseen"> in training</span>') == 5  # detectors 3 to 7
    assert row.count('<span class="unseen"> not in training</span>') == 4
    assert "● in training ○ not in training ? not known whether in training" in PageReader(
        page
    ).text.replace("\xa0", " ")


def test_attacks_have_a_table_of_their_own_and_are_no_worst_perturbation():
    result = small_result()
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
        for row in rows_of({"auc": MetricValue(value, n=9)}, first.name, view=view.name)
    ]
    said = text_of(
        replace(
            result,
            meta=replace(result.meta, systems=(first,)),
            metrics=MetricsTable((*result.metrics.rows, *rows)),
        )
    )
    tables = [
        said.index(caption)
        for caption in (
            "Every perturbation,",
            "Chains of changes, as on platforms,",
            "Attacks, done so that",
        )
    ]
    assert tables == sorted(tables)
    assert said.index("print-scan") > tables[2]
    assert "jpeg-ai not there: its networks are not available" in said
    assert "to 0.6000." in said
    assert "Under print-scan" not in said


def test_all_sections_stand_with_their_figures_and_counts(words):
    result, auc = example_result(), figure("auc")
    jpeg = result.meta.data.formats
    social = result.systems[0].figure("auc", view="social").value
    for said in (
        f"ROC AUC {auc.value:.4f}",
        f"flags that are right if 0.1 % are fake {100 * figure('precision_at_prior_01').value:.1f} %",
        f"social {social:.4f}",
        f"JPEG {jpeg['real']['JPEG']:,} {100 * jpeg['real']['JPEG'] / 1600:.1f} % {jpeg['fake']['JPEG']:,}",
        "Labels and run differ. 12 of 3,332 labels without a row in the run, for example image_id -1.",
        "s3://lab/runs/2026-11-20-desk",
        "limits.max_pixels 50000000",
        "Brier score Mean squared distance of the stated probability",
        "ideogram-3.0 sd-3.5 6",  # most often confused
        "Masks of maskclip, at the network’s size",
        "accuracy, abstaining is wrong",
        "In and out of distribution; detection by Stacked ensemble of four",
        "other generators of their families out 310 87.7 %",
        "known ones left unnamed 11.2 %",
        "CLIP, image made anew",
    ):
        assert said in words


def test_pictures_are_jpegs_and_nothing_else():
    shown = PageReader(page_of("evaluation")).attributes("img")
    assert len(shown) == 16 + 6
    assert all(one["src"].startswith("data:image/jpeg;base64,/9j/") for one in shown)
    assert not PageReader(HOSTILE_PAGES["evaluation"]("x")).attributes("img")


def test_a_result_that_is_read_again_gives_the_same_page():
    result = small_result()
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert render_evaluation(EvaluationResult.from_dict(content)) == render_evaluation(result)


def test_lines_for_the_terminal():
    lines = evaluation_lines(example_result())
    assert lines[0].startswith("Stacked ensemble of four finds 91 % (77 to 98 %) of the fakes and")
    assert any(line.startswith("warning: Confounded.") for line in lines)
    assert max(len(line) for line in lines if "[" in line) <= 120, (
        "the table of many columns goes on below"
    )
    assert evaluation_lines(EvaluationResult()) == [
        "Nothing was evaluated: the document names no system."
    ]
    assert any("no real image" in line for line in evaluation_lines(one_class("fake")))
