import pytest

from ray_app.reports.leaderboard import leaderboard_document, leaderboard_lines, render_leaderboard
from ray_app.reports.leaderboard_model import NO_AUC, TRAINED, WEIGHTS, boards_of
from tests.reports.evaluation_example import example_document, large_document
from tests.reports.page_reader import PageReader


def figure(value, low=None, high=None, n=200, why=None):
    return {
        "value": value,
        "interval": None if low is None else [low, high],
        "method": None if low is None else "delong",
        "n": n,
        "why": why,
    }


def generator(name, *, seen="unknown", rate=0.5, n=100, label="fake", unscored=0):
    return {
        "name": name,
        "label": label,
        "kind": label,
        "seen": seen,
        "n": n,
        "unscored": unscored,
        "rate": figure(rate, rate - 0.1, rate + 0.1),
    }


def system(name, auc=0.9, low=0.85, **changes):
    figures = {"auc": figure(auc, low, min(1.0, auc + 0.03)), "balanced_accuracy": figure(0.8, 0.75, 0.85), "ece": figure(0.05)}
    generators = [generator("real", label="real"), generator("a"), generator("b", rate=0.2)]
    changes.setdefault("standing", {"weights": {"standing": "published"}})
    return {"name": name, "kind": "detector", "title": name, "output": "continuous", "calibrated": True, "n_real": 100, "n_fake": 200,
            "unscored": 0, "figures": figures, "generators": generators, "views": [], **changes}  # fmt: skip


def pair(a, b, difference, p):
    return {"a": a, "b": b, "test": "clustered delong", "n": 300, "difference": figure(difference), "p": p}


def evaluation(*systems, digest=None, protocol=None, labels="labels.csv", confounded=False, **more):
    shortcut = {"auc": figure(0.81, 0.8, 0.82), "confounded": confounded}
    return {"title": "t", "labels": {"name": labels}, "protocol": protocol, "systems": list(systems),
            "data": {"n": 300, "n_real": 100, "n_fake": 200, "digest": digest, "shortcut": shortcut}, **more}  # fmt: skip


def names(entries):
    return [one.system.name for one in entries]


def ranks(board):
    return {one.system.name: (one.rank, one.last) for one in board.ranked}


def others(board):
    return {reason: names(entries) for reason, entries in board.others}


def test_a_rank_is_one_more_than_the_number_of_systems_that_are_significantly_better():
    systems = [system("best", 0.95), system("good", 0.94), system("poor", 0.70)]
    tests = [pair("best", "good", -0.01, 0.3), pair("best", "poor", -0.25, 0.001), pair("good", "poor", -0.24, 0.002)]
    [board] = boards_of([("x", evaluation(*systems, paired=tests))])
    assert ranks(board) == {"best": (1, 2), "good": (1, 2), "poor": (3, 3)}
    assert names(board.ranked) == ["best", "good", "poor"]
    assert (board.n_real, board.n_fake, board.generators) == (100, 200, 2)


def test_tests_are_corrected_for_all_that_are_ranked_and_for_no_others():
    seeded = {"standing": {"weights": {"standing": "other"}}}
    tests = [pair("a", "b", -0.2, 0.03), *(pair("a", f"s{n}", -0.2, 0.9) for n in range(3))]
    alone = evaluation(system("a"), system("b"), *(system(f"s{n}", **seeded) for n in range(3)), paired=tests)
    among = evaluation(system("a"), system("b"), *(system(f"s{n}") for n in range(3)), paired=tests)
    assert ranks(boards_of([("x", alone)])[0])["b"] == (2, 2)
    assert ranks(boards_of([("x", among)])[0])["b"][0] == 1  # Holm: 4 × 0.03


def test_ranks_are_of_images_that_neither_was_trained_on():
    whole, clean = [pair("a", "b", -0.2, 0.001)], [pair("a", "b", 0.2, 0.001)]
    [board] = boards_of([("x", evaluation(system("a"), system("b"), paired=whole, paired_unseen=clean))])
    assert ranks(board) == {"a": (2, 2), "b": (1, 1)}


def test_systems_of_two_evaluations_differ_only_where_their_intervals_lie_apart():
    first = evaluation(system("sure", 0.90, 0.88), system("lucky", 0.95, 0.60))
    [board] = boards_of([("x", first), ("y", evaluation(system("poor", 0.70, 0.65), system("twin", 0.91, 0.87)))])
    assert ranks(board) == {"sure": (1, 3), "lucky": (1, 4), "twin": (1, 4), "poor": (2, 4)}  # twin and poor have no test


@pytest.mark.parametrize("word", ["other", "unknown", "demonstration", None])
def test_a_system_on_other_weights_than_the_published_ones_is_never_ranked(word):
    standing = {} if word is None else {"weights": {"standing": word, "why": "not the file", "loaded": "ab" * 32}}
    [board] = boards_of([("x", evaluation(system("sound", 0.6, 0.5), system("seeded", 0.99, 0.98, standing=standing)))])
    assert names(board.ranked) == ["sound"]
    assert others(board) == {WEIGHTS: ["seeded"]}
    page = PageReader(render_leaderboard([("x", evaluation(system("seeded", 0.99, 0.98, standing=standing)))]))
    assert WEIGHTS in page.text
    [entry] = leaderboard_document([("x", evaluation(system("seeded", standing=standing)))])[0]["systems"]
    assert (entry["rank"], entry["not_ranked"]) == (None, WEIGHTS)


def unseen(auc, low, **more):
    return {"figures": {"auc": figure(auc, low, auc + 0.02)}, "n_real": 60, "n_fake": 100, "names_sources": True, **more}


def test_figures_are_of_what_a_system_never_saw_and_the_rest_is_counted():
    gone = [{"name": "s", "label": "real", "n": 40}, {"name": "a", "label": "fake", "n": 100}]
    seen = [generator("real", label="real"), generator("a", seen="in-training", rate=0.1), generator("b", rate=0.2)]
    worst = {"generator": "b", "rate": figure(0.2, 0.1, 0.3)}
    one = system("s", 0.99, 0.98, generators=seen, unseen=unseen(0.8, 0.7, left_out=gone, worst=worst))
    [board] = boards_of([("x", evaluation(one))])
    [entry] = board.ranked
    assert (entry.figure("auc").value, entry.n) == (0.8, (60, 100))
    assert entry.left_out == "40 real and 100 fake images that it was trained on are left out"
    assert entry.worst_generator[:1] + entry.worst_generator[3:] == ("b", 1)  # a is easier than b, and was seen
    text = PageReader(render_leaderboard([("x", evaluation(one))])).text
    assert "0.8000" in text
    assert "†" in text


def test_a_system_that_was_trained_on_everything_is_not_ranked():
    one = system("s", 0.99, 0.98, unseen={"figures": {}, "why": "all fakes here are of generators that it was trained on"})
    [board] = boards_of([("x", evaluation(one, system("t")))])
    assert (names(board.ranked), others(board)) == (["t"], {TRAINED: ["s"]})


def test_chains_and_attacks_stand_apart_from_degradations():
    views = [{"name": name, **kind, "figures": {"auc": figure(auc, auc - 0.1, auc + 0.1)}} for name, kind, auc in
             (("jpeg", {}, 0.8), ("social", {"kind": "chain"}, 0.7), ("vae", {"kind": "attack"}, 0.2))]  # fmt: skip
    documents = [("x", evaluation(system("s", views=views)))]
    [entry] = boards_of(documents)[0].ranked
    assert (entry.worst_view.name, entry.worst_chain.name) == ("jpeg", "social")
    text = PageReader(render_leaderboard(documents)).text
    assert "Attacks: 1 row" in text
    assert "Worst chain" in text


def test_time_memory_and_licence_are_shown_or_why_they_are_not():
    timed = system("s", cost={"ms_per_image": 12.345, "process_bytes": 2 * 10**9, "of": 1}, standing={
        "weights": {"standing": "published"}, "licence": "CC BY-NC 4.0", "terms": "non-commercial"})  # fmt: skip
    text = PageReader(render_leaderboard([("x", evaluation(timed, system("t", cost={"why": "measured together"})))])).text
    for words in ("12.3 ms", "CC BY-NC 4.0", "non-commercial", "measured together"):
        assert words in text


def test_every_command_that_made_a_cell_is_on_the_page():
    document = evaluation(system("s"), command="touchstone evaluate run --out f", run={"command": "touchstone score a --out run"})
    text = PageReader(render_leaderboard([("x", document)])).text
    assert "touchstone evaluate run --out f" in text
    assert "touchstone score a --out run" in text


def test_published_figures_stand_beside_ours():
    table = {"rows": [{"name": "StyleGAN"}], "columns": ["s"], "cells": {"s": {"StyleGAN": figure(0.91)}}, "footers": []}
    reference = [{"column": "Paper, s", "source": "arXiv 1", "rows": {"StyleGAN": 0.93}, "system": "s"}]
    text = PageReader(render_leaderboard([("x", evaluation(system("s"), table=table, reference=reference))])).text
    assert "0.930" in text
    assert "0.910" in text


def test_a_detector_and_the_ensemble_of_it_alone_are_one_system():
    """Documents of 0.10 and before list both."""
    alone = {**evaluation(system("ensemble", kind="ensemble"), system("npr")), "run": {"detectors": ["npr"]}}
    two = {**evaluation(system("ensemble", kind="ensemble"), system("npr"), system("unifd")), "run": {"detectors": ["npr", "unifd"]}}
    assert [names(board.ranked) for board in boards_of([("x", alone)])] == [["ensemble"]]
    assert [len(board.ranked) for board in boards_of([("x", two)])] == [3]


def test_a_system_without_a_ranking_auc_is_not_ranked():
    replies = system(
        "replies", output="binary", figures={"auc": figure(None, why="no ranking"), "balanced_accuracy": figure(0.99, 0.98, 1.0)}
    )
    bare = system("bare", figures={"auc": figure(0.999), "balanced_accuracy": figure(0.6, 0.5, 0.7)})
    [board] = boards_of([("x", evaluation(replies, bare, system("ranked", 0.6, 0.5)))])
    assert names(board.ranked) == ["ranked"]
    assert others(board) == {NO_AUC: ["bare", "replies"]}


@pytest.mark.parametrize(
    ("other", "lists"),
    [
        (evaluation(system("b"), digest="d1"), 1),
        (evaluation(system("b"), digest="d2"), 2),
        (evaluation(system("b")), 2),  # nothing says that it is the same
        (evaluation(system("b"), digest="d1", protocol={"name": "grip"}), 2),  # other rules
        (evaluation(system("b"), digest="d1", labels="elsewhere.csv"), 1),
    ],
)
def test_figures_of_other_data_or_rules_stand_in_another_list(other, lists):
    assert len(boards_of([("x", evaluation(system("a"), digest="d1")), ("y", other)])) == lists


def test_without_a_digest_labels_and_counts_say_what_is_the_same():
    more = system("b", generators=[generator("real", label="real"), generator("a", n=99), generator("b", rate=0.2)])
    unscored = system("b", generators=[generator("real", label="real"), generator("a", n=98, unscored=2), generator("b", rate=0.2)])
    mine = ("x", evaluation(system("a")))
    assert len(boards_of([mine, ("y", evaluation(system("b")))])) == 1
    assert len(boards_of([mine, ("y", evaluation(unscored))])) == 1
    assert len(boards_of([mine, ("y", evaluation(more))])) == 2
    assert len(boards_of([mine, ("y", evaluation(system("b"), labels="other.csv"))])) == 2


def test_what_was_seen_in_training_is_marked():
    def told(*words):
        [board] = boards_of([("x", evaluation(system("s", generators=[generator(str(at), seen=word) for at, word in enumerate(words)])))])
        return board.ranked[0].seen

    assert told("in-training", "unseen", "unknown") == "trained on 1 of 3 generators"
    assert told("unseen", "unseen") == "trained on none of them"
    assert told("unseen", "unknown") == "not known whether trained on 1 of 2"
    assert told("unknown") == "not known whether trained on any of them"
    page = PageReader(render_leaderboard([("x", evaluation(system("s", generators=[generator("a", seen="in-training")])))]))
    assert "trained on 1 of 1 generator" in page.text


def test_the_worst_generator_and_perturbation():
    views = [{"name": name, "figures": {"auc": figure(auc, auc - 0.1, auc + 0.1), "balanced_accuracy": figure(1 - auc)}} for name, auc in
             (("jpeg-95", 0.8), ("blur-4", 0.6), ("none", None)) if auc]  # fmt: skip
    views.append({"name": "undefined", "figures": {"auc": figure(None, why="one class")}})
    named = {"generator": "c", "rate": figure(0.1, 0.0, 0.3)}
    [board] = boards_of([("x", evaluation(system("s", views=views), system("w", views=views, worst=named, output="binary")))])
    by_name = {one.system.name: one for one in board.ranked}
    assert by_name["s"].worst_generator[:2] == ("b", "tpr")
    assert by_name["w"].worst_generator.name == "c"
    assert (by_name["s"].worst_view.name, by_name["s"].worst_view.figure.value, by_name["s"].worst_view.among) == ("blur-4", 0.6, 3)
    assert by_name["w"].worst_view.name == "jpeg-95"  # of replies by balanced accuracy


def test_what_spoils_a_comparison_is_said():
    views = [{"name": "jpeg", "figures": {"auc": figure(0.5)}}]
    unscored = system("s", unscored=30, views=views)
    [board] = boards_of([("x", evaluation(unscored, system("t"), confounded=True))])
    assert len(board.warnings) == 2
    assert "AUC 0.8100" in board.warnings[0]
    assert "perturbations" in board.warnings[1]
    assert {one.system.name: one.unscored for one in board.ranked} == {"s": "30 unscored", "t": ""}


@pytest.mark.parametrize(("calibrated", "shown"), [(True, True), (False, False)])
def test_uncalibrated_scores_have_no_calibration_error(calibrated, shown):
    one = system("s", calibrated=calibrated)
    one["figures"]["ece"] = figure(0.0417)
    text = PageReader(render_leaderboard([("x", evaluation(one))])).text
    assert ("4.2 %" in text) == shown
    assert ("not calibrated" in text) != shown


def test_the_page_shows_every_system_once_with_its_interval():
    document = example_document()
    page = PageReader(render_leaderboard([("s3://lab/a", document)]))
    for one in document["systems"]:
        assert page.text.count(one["title"]) >= 1
        assert f"{one['n_real']:,} real" in page.text
        if one["figures"]["auc"]["interval"]:
            low, high = one["figures"]["auc"]["interval"]
            assert f"{low:.4f} to {high:.4f}" in page.text
    assert len(page.attributes("script")) == 1


def test_two_lists_of_one_title_are_told_apart_by_whoever_hears_the_page():
    mine = [(f"s3://lab/{one}", evaluation(system("a"), digest=one, protocol={"name": "wild", "title": "In the wild"})) for one in "xy"]
    page = PageReader(render_leaderboard(mine))
    regions = [one["aria-label"] for one in page.attributes("div") if one.get("role") == "region"]
    assert len(set(regions)) == len(regions) >= 2
    assert "In the wild , list 1" in page.text
    assert "In the wild , list 2" in page.text


def test_a_page_of_nothing():
    assert "No evaluation was given." in PageReader(render_leaderboard([])).text
    assert "1 system on 1 set of data." in PageReader(render_leaderboard([("x", {"systems": [{}]})])).text


def test_the_terminal_says_the_same():
    lines = leaderboard_lines([("a", example_document()), ("b", large_document())], 120)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 120
    assert text.index("Stacked ensemble of four") < text.index("Corvi 2023") < text.index("InternVL3 2B, asked") < text.index("Detector 7")
    assert "Facts of the files alone" in text
    assert leaderboard_lines([], 80) == []
