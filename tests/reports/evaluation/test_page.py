import json

import pytest

from ray_app.reports.evaluation.page import evaluation_lines, render_evaluation
from tests.reports.evaluation_example import example_document, large_document, one_class, small_document
from tests.reports.hostile_evaluation import hostile_document
from tests.reports.page_reader import PageReader, contrast
from tests.reports.pages import NO_SECTIONS, page_of


@pytest.fixture(scope="module")
def words():
    return PageReader(page_of("evaluation")).text


def text_of(document):
    return PageReader(render_evaluation(document)).text


def figure(document, key, system=0):
    return document["systems"][system]["figures"][key]


def test_the_headline_says_how_good_on_what_and_that_it_is_confounded(words):
    found, cleared = (round(100 * figure(example_document(), key)["value"]) for key in ("tpr", "tnr"))
    said = f"Stacked ensemble of four finds {found} % of the fakes and wrongly flags {100 - cleared} % of the real images"
    assert f"{said}, but the form of the files alone (format, size) gives many fakes away." in words


def test_the_shortcut_is_the_first_notice_and_stands_before_the_figures(words):
    assert words.index("Confounded. Without looking at a pixel, file facts (format, size)") < words.index("How good")
    document = example_document()
    shortcut = {**document["data"]["shortcut"], "confounded": False, "auc": {"value": 0.52, "interval": [0.5, 0.54], "n": 9}}
    calm = text_of(document | {"data": {**document["data"], "shortcut": shortcut}})
    assert "gives many fakes away" not in calm
    assert "File facts alone tell the classes apart with AUC 0.5200 (0.5000 to 0.5400): no shortcut was found." in calm


def test_a_detector_that_saw_only_what_went_on_in_a_cascade_is_told_apart():
    document = example_document()
    first, second, *others = document["systems"]
    late = {**second, "late": True, "n_real": 30, "n_fake": 12, "unscored": 3278}
    [line] = [line for line in evaluation_lines(document | {"systems": [first, late, *others]}) if "cascade" in line]
    assert line.startswith(
        f"warning: Some detectors saw only some of the images. Images that went on in the cascade: {second['title']} 42."
    )
    assert "saw only some" not in text_of(document)


def test_the_four_answers_have_their_numbers(words):
    tpr = figure(example_document(), "tpr")
    low, high = (100 * end for end in tpr["interval"])
    assert f"finds {100 * tpr['value']:.1f} % ({low:.1f} to {high:.1f} %) of 1,720 fakes and clears" in words
    assert "1,600 real images and 1,720 fakes of 10 generators; 120 of the fakes are local edits." in words
    assert "Of the generators, 4 were in its training data and 6 were not." in words
    assert "Within one format and size, JPEG of 1–4 MP" in words
    assert "The hardest generator is nano-banana-pro: it finds " in words
    assert "Of the real images, those from press photographs, scanned are flagged most often" in words
    assert "Under jpeg-30 its ROC AUC falls from" in words


@pytest.mark.parametrize(("a", "b", "found"), [("ensemble", "corvi2023", "lower"), ("corvi2023", "ensemble", "higher")])
def test_a_difference_is_told_from_the_leading_systems_side(a, b, found):
    test = {"a": a, "b": b, "n": 9, "test": "delong", "difference": {"value": 0.0125, "n": 9}, "p": 0.2, "p_holm": 0.4}
    text = text_of(small_document() | {"paired": [test]})
    assert (
        f"Against Corvi 2023, the closest in paired tests, its AUC is 0.0125 {found} (p = 0.4000), which chance alone would explain."
        in text
    )


def test_without_an_ensemble_the_best_leads_and_that_is_said():
    text = text_of(large_document())
    assert text.startswith("Touchstone evaluation of Picture desk, November Detector 7 finds 98 % of the fakes")
    assert "the best of 8 on these very images" in text


def test_what_was_published_stands_beside_ours_with_its_marks():
    page = page_of("evaluation")
    text = PageReader(page).text
    assert "published" in text
    assert '<td class="number published">0.665<span class="note">†</span></td>' in page
    assert '>Fusion<span class="note">‡</span>' in page
    assert "† The figure is the mean of TPR and TNR of hard decisions" in text
    assert "‡ Cannot come from soft-OR at threshold 0" in text


def test_a_figure_that_is_not_defined_is_a_dash_with_its_reason(words):
    page = page_of("evaluation")
    assert '–<span class="note">a</span>' in page
    assert "a binary replies have no ranking; see balanced accuracy" in words
    assert "AUC of pixels – a mask without an unaltered pixel has no AUC" in words


def test_every_cell_says_whether_its_images_were_in_training():
    document = small_document()
    page = render_evaluation(document | {"reference": []})
    grid = page[page.index('class="matrix packed"') :].partition("</table>")[0]
    assert grid.count('<span class="unseen"> in training</span>') == 7
    assert grid.count('<span class="unseen"> not in training</span>') == 5
    assert "● in training ○ not in training ? not known whether in training" in PageReader(page).text.replace("\xa0", " ")


def test_of_many_rows_the_hardest_are_shown_and_the_rest_can_be_opened():
    page = page_of("evaluation", "large")
    assert "<summary>19 easier rows</summary>" in page
    first, _, rest = page[page.index('class="matrix packed"') :].partition("19 easier rows")
    assert "laion-400m" in first
    assert (
        "39"
        not in PageReader(first[first.index("<tbody") : first.index("</table>")]).text.split("generator-00")[1].split("Average")[0].split()
    )
    assert "generator-39" in rest


def test_more_columns_than_fit_become_another_table():
    document = large_document()
    names = [f"more-{index}" for index in range(14)]
    systems = [{**document["systems"][0], "name": name} for name in names]
    table = {
        **document["table"],
        "columns": names,
        "cells": {name: document["table"]["cells"]["detector-0"] for name in names},
        "footers": [],
    }
    page = render_evaluation(document | {"systems": systems, "table": table})
    first, _, rest = page.partition("<summary>5 more systems</summary>")
    assert "more-8<" in first
    assert "more-9<" not in first
    assert "more-13<" in rest
    assert "<summary>19 easier rows, 5 more systems</summary>" in page


def test_curves_have_a_legend_and_differ_by_more_than_colour():
    page = page_of("evaluation")
    curves = page[page.index('<div class="curves">') : page.index('<section class="wide" aria-labelledby="h-confidence"')]
    assert curves.count('class="plane"') == 4
    assert curves.count('class="sample"') == 5
    styles = page[page.index("<style>") : page.index("</style>")]
    dashes = [
        line.partition("stroke-dasharray:")[2].partition(";")[0]
        for line in styles.splitlines()
        if line.startswith(".s") and "mark-" in line
    ]
    assert len(dashes) == len(set(dashes)) == 6
    marks = {
        tag["d"]
        for tag in PageReader(curves[: curves.index("</section>")].removesuffix("</div>\n")).attributes("path")
        if (tag["class"] or "").endswith("spot")
    }
    assert len(marks) == 5


def test_views_of_one_kind_become_a_curve_and_all_of_them_rows(words):
    page = page_of("evaluation")
    for family in ("jpeg", "webp", "blur"):
        assert f"<figcaption>ROC AUC under {family}</figcaption>" in page
    assert "under resize" not in page
    view = next(one for one in example_document()["systems"][0]["views"] if one["name"] == "social")
    assert f"social {view['figures']['auc']['value']:.4f}" in words


def test_attacks_have_a_table_of_their_own_and_are_no_worst_perturbation():
    document = small_document()
    views = [
        {"name": "soft", "figures": {"auc": {"value": 0.7, "n": 9}}},
        {"name": "feed", "kind": "chain", "figures": {"auc": {"value": 0.6, "n": 9}}},
        {"name": "print-scan", "kind": "attack", "figures": {"auc": {"value": 0.1, "n": 9}}},
        {"name": "vae-round-trip", "kind": "attack", "why": "the weights are not on this machine"},
    ]
    system = document["systems"][0]
    said = text_of(document | {"systems": [system | {"views": views}]})
    tables = [said.index(caption) for caption in ("Every perturbation,", "Chains of changes, as on platforms,", "Attacks, done so that")]
    assert tables == sorted(tables)
    assert said.index("print-scan") > tables[2]
    assert "vae-round-trip not there: the weights are not on this machine" in said
    assert "falls from" in said
    assert "to 0.6000." in said
    assert "Under print-scan" not in said


def test_all_figures_stand_with_their_method_and_number(words):
    auc = figure(example_document(), "auc")
    assert f"ROC AUC {auc['value']:.4f} {auc['interval'][0]:.4f} to {auc['interval'][1]:.4f} 3,320 DeLong" in words
    prior = figure(example_document(), "precision_at_prior_01")["value"]
    assert f"flags that are right if 0.1 % are fake {100 * prior:.1f} %" in words


def test_data_labels_run_and_glossary(words):
    document = example_document()
    jpeg = document["data"]["formats"]
    assert f"JPEG {jpeg['real']['JPEG']:,} {100 * jpeg['real']['JPEG'] / 1600:.1f} % {jpeg['fake']['JPEG']:,}" in words
    assert words.index("< 0.1 MP") < words.index("0.1–0.5 MP 560")
    assert "labels without a row 12" in words
    assert "Labels and run differ. 12 labels without a row in the run; 3 labels given twice (and equal)." in words
    assert "s3://lab/runs/2026-11-20-desk" in words
    assert "limits.max_pixels 50000000" in words
    assert "Brier score Mean squared distance of the stated probability" in words
    assert "BLEU-4 Runs of up to four words" in words


def test_confusions_masks_and_abstentions(words):
    assert "flux-1.1-pro flux-1-dev 61" in words
    assert "Masks of maskclip, at the network’s size" in words
    assert "As IMDLBenCo computes it, mode reverse" in words
    assert "accuracy, abstaining is wrong" in words


def test_names_families_and_groups_in_and_out_of_distribution(words):
    assert "In and out of distribution; detection by Stacked ensemble of four" in words
    assert "other generators of their families out 310 87.7 % 0.9104 – – 50.0 % 11.0 % 0.2316" in words
    assert "In distribution are the generators that the run’s identifier was trained on." in words
    assert "known ones left unnamed 4.9 %" in words
    assert "Families named, each by itself" in words
    assert "Jaccard of tags" in words
    assert "Names are compared through the index of generators." in words


def test_dflip_s_own_figures_stand_before_ours_with_their_flaws():
    share = {"value": 0.5, "interval": None, "method": None, "n": 4, "why": None}
    named = {"protocol": "dflip-v1", "accuracy": share, "by_index": {"accuracy": share}, "detection": {"accuracy": share, "groups": []},
             "flaws": ["Their fourth word is 'ai'."], "plain": {"accuracy": share, "families": {"accuracy": share}}}  # fmt: skip
    text = PageReader(render_evaluation(small_document() | {"identification": named})).text
    places = [text.index(part) for part in ("by DFLIP-3K’s own rules", "Their fourth word", "by any spelling", "by ours", "Families named")]
    assert places == sorted(places)


def test_pictures_are_jpegs_and_nothing_else():
    read = PageReader(page_of("evaluation"))
    assert len(read.attributes("img")) == 16 + 6
    assert all(one["src"].startswith("data:image/jpeg;base64,/9j/") for one in read.attributes("img"))
    assert not PageReader(render_evaluation(hostile_document("x"))).attributes("img")


def test_one_class_has_its_share_and_no_invented_figure():
    text = text_of(one_class("fake"))
    assert "there was no real image to try it on." in text
    assert "There is no ROC AUC: it needs real and fake images." in text
    assert "real images cleared – there are no reals" in text


def test_nulls_and_absent_keys_read_the_same():
    assert render_evaluation(NO_SECTIONS) == render_evaluation({})


def test_the_document_may_come_from_json():
    document = small_document()
    assert render_evaluation(json.loads(json.dumps(document, allow_nan=False))) == render_evaluation(document)


def test_lines_for_the_terminal():
    lines = evaluation_lines(example_document())
    assert lines[0].startswith("Stacked ensemble of four finds 91 % of the fakes and")
    assert lines[2].split() == ["fakes", "found", "real", "images", "flagged", "ROC", "AUC"]
    assert lines[3].split()[:4] == ["Stacked", "ensemble", "of", "four"]
    assert lines[10].startswith("warning: Confounded.")
    assert max(len(line) for line in lines if "[" in line) <= 120, "the table of many columns goes on below"
    [first, second] = [line.split() for line in lines if line.startswith("     ") and ("swinv2" in line or "Fusion" in line)]
    assert first[:3] == ["ensemble", "openfake-swinv2-small", "SwinV2-s"]
    assert second[-2:] == ["Fusion", "‡"]
    assert any(line.startswith("ideogram-3.0 ") and "0.999" in line for line in lines)
    assert any(line.startswith("‡ Cannot come from soft-OR") for line in lines)
    assert any(line.startswith("note: Some published figures cannot be compared.") for line in lines)


def test_lines_without_a_table_are_of_the_systems():
    lines = evaluation_lines(small_document() | {"table": None, "data": None, "labels": None, "reference": None})
    assert lines[2].split()[-2:] == ["ROC", "AUC"]
    assert [line.split()[0] for line in lines[3:5]] == ["Stacked", "Corvi"]
    assert evaluation_lines({}) == ["Nothing was evaluated: the document names no system."]


@pytest.mark.parametrize(("block", "paper"), [(0, "#fdfcfa"), (1, "#161513")])
def test_lines_of_systems_stand_out_from_the_paper(block, paper):
    styles = render_evaluation({}).split("lines of systems")[1]
    colours = [line for line in styles.splitlines() if ":root { --s0" in line][block]
    assert colours.count("--s") == 6
    for part in colours.partition("{")[2].split(";")[:6]:
        assert contrast(part.partition(":")[2].strip(), paper) >= 3
