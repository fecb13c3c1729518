"""Figures on what a system was not trained on."""

import csv

import numpy as np
import pyarrow as pa
import pytest

from ray_app.config import config_root
from ray_app.detectors import load_card
from ray_app.evaluation.system_section import paired_tests
from ray_app.evaluation.systems import System
from ray_app.evaluation.unseen import overlap_of, unseen_of, unseen_sample
from ray_app.metrics.arrays import FigureFacts, ScoreHistogram
from ray_app.metrics.detection import detection_of
from ray_app.metrics.intervals import auc_of
from ray_app.reports.evaluation.system_model import GeneratorFacts, SystemFacts

PHOTO, OTHER = load_card("touchstone-photo"), load_card("npr")
HOW = {"meaning": "generators", "wanted": True, "seed": 0}


def system(card, name=None):
    return System(name or card.name, "detector", "", 0.0, strict=True, card=card)


def sample(scores, sources=("bsds500", "popos_wall", "junginhwan"), makers=("FLUX.1", "GigaGAN", "Kandinsky 3"), each=30):
    """As many images of each source and generator, with a column of scores for every system; no `source` where there are none."""
    kinds = ["real"] * (len(sources) * each) + ["whole"] * (len(makers) * each)
    generators = ["real"] * (len(sources) * each) + [name for name in makers for _ in range(each)]
    columns = {"kind": kinds, "generator": generators}
    if sources[0] is not None:
        columns["source"] = [name for name in sources for _ in range(each)] + [None] * (len(makers) * each)
    return pa.table(columns | {f"score:{name}": column for name, column in scores.items()})


def drawn(seed=0, n=180):
    random = np.random.default_rng(seed)
    return random.normal(size=n) + np.repeat([0.0, 1.0], n // 2)


def whole(one, table):
    scores, fake = np.asarray(table[f"score:{one.name}"]), np.asarray(table["kind"]) != "real"
    figures = detection_of(ScoreHistogram.of(scores[fake]), ScoreHistogram.of(scores[~fake]))
    rate = FigureFacts(value=0.1, n=30)
    makers = tuple(GeneratorFacts(name=name, label="fake", n=30, rate=rate) for name in dict.fromkeys(table["generator"].to_pylist()))
    return SystemFacts(name=one.name, n_real=90, n_fake=90, figures=figures, generators=makers)


@pytest.mark.parametrize("card", ["touchstone-photo", "touchstone-photo-detail"])
def test_the_cards_name_every_source_that_weights_were_fitted_or_chosen_on(card):
    wanted = listed("sources", "train") | listed("sources", "validation")
    assert set(load_card(card).training_data.sources) == wanted
    assert len(wanted) == 421


@pytest.mark.parametrize("card", ["touchstone-photo-permissive", "touchstone-crop-permissive"])
def test_the_permissive_cards_name_those_of_the_list_that_they_were_chosen_on(card):
    wanted = listed("sources-permissive", "train") | listed("sources", "validation", last="xzxy_gpt2")  # the list ended there then
    assert set(load_card(card).training_data.sources) == wanted
    assert len(wanted) == 28


def listed(name, split, last=None):
    with (config_root() / "photos" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    end = len(rows) if last is None else 1 + [row["source"] for row in rows].index(last)
    return {row["source"] for row in rows[:end] if row["split"] == split}


def test_images_of_its_sources_and_generators_are_left_out_with_counts():
    one = system(PHOTO)
    table = sample({one.name: drawn()})
    clean, overlaps = unseen_sample(table, [one], [])
    found = unseen_of(one, whole(one, table), clean, overlaps[one.name], HOW, sampled=False)
    assert [(gone.label, gone.name, gone.n) for gone in found.left_out] == [("fake", "FLUX.1", 30), ("real", "bsds500", 30)]
    assert (found.n_real, found.n_fake, found.unknown, found.names_sources) == (60, 60, 0, True)
    scores = drawn()
    assert found.figures["auc"].value == pytest.approx(auc_of(ScoreHistogram.of(scores[120:]), ScoreHistogram.of(scores[30:90])).value)
    assert found.worst.generator == "GigaGAN"


def test_a_fake_of_a_source_that_it_learnt_from_is_left_out_whatever_its_generator_is_called():
    table = pa.table({"kind": ["whole", "whole"], "generator": ["renamed", "renamed"], "source": ["xflux", "gigagan"]})
    assert overlap_of([PHOTO], table).seen.tolist() == [True, False]


@pytest.mark.parametrize(("maker", "named"), [("real:bsds500", True), ("real", False)])
def test_a_real_image_may_name_its_source_as_its_maker(maker, named):
    one = system(PHOTO)
    table = sample({one.name: drawn()}, sources=(None, None, None))
    makers = [maker if index < 30 else name for index, name in enumerate(table["generator"].to_pylist())]
    table = table.set_column(1, "generator", pa.array(makers))
    clean, overlaps = unseen_sample(table, [one], [])
    found = unseen_of(one, whole(one, table), clean, overlaps[one.name], HOW, sampled=False)
    assert found.names_sources == named
    assert [gone.n for gone in found.left_out if gone.label == "real"] == [30] * named


def test_where_everything_was_seen_there_is_a_reason():
    one = system(PHOTO)
    table = sample({one.name: drawn()}, makers=("FLUX.1", "DALL-E 2", "minDALL-E"))
    clean, overlaps = unseen_sample(table, [one], [])
    found = unseen_of(one, whole(one, table), clean, overlaps[one.name], HOW, sampled=False)
    assert found.why == "all fakes here are of generators or sources that it was trained on"
    assert not found.figures


def test_two_systems_are_compared_on_what_neither_saw():
    one, other = system(PHOTO), system(OTHER)
    table = sample({one.name: drawn(0), other.name: drawn(1)})
    clean, _ = unseen_sample(table, [one, other], [])
    [test] = paired_tests(clean, [one, other], {one.name: False, other.name: False}, "generators")
    assert test.n == 120
