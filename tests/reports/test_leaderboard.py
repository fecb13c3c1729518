"""Who is ranked, above whom, on which images, and what the page says of those who are not: as rules of the plain JSON."""

import pytest

from ray_app.reports.leaderboard import boards_of, leaderboard_document, render_leaderboard
from tests.reports.evaluation_example import example_document
from tests.reports.page_reader import PageReader
from tests.reports.pages import page_of


def figure(value, low=None, high=None, n=200, why=None):
    known = {"interval": None, "method": None} if low is None else {"interval": [low, high], "method": "delong"}
    return {"value": value, "n": n, "why": why, **known}


def generator(name, *, seen="unknown", rate=0.5, n=100, label="fake", unscored=0):
    counts = {"n": n, "unscored": unscored, "rate": figure(rate, rate - 0.1, rate + 0.1)}
    return {"name": name, "label": label, "kind": label, "seen": seen, **counts}


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


def board_of(*documents):
    """The one list that these evaluations make."""
    [board] = leaderboard_document(boards_of([(f"s3://lab/{place}", document) for place, document in enumerate(documents)]))
    return board


def ranks(board):
    return {one["name"]: (one["rank"], one["rank_last"]) for one in board["systems"] if one["rank"]}


def not_ranked(board):
    return {one["name"]: one["not_ranked"] for one in board["systems"] if not one["rank"]}


def text_of(*systems, **more):
    return PageReader(render_leaderboard(boards_of([("x", evaluation(*systems, **more))]))).text


def test_a_rank_is_one_more_than_the_number_of_systems_that_are_significantly_better():
    systems = [system("best", 0.95), system("good", 0.94), system("poor", 0.70)]
    tests = [pair("best", "good", -0.01, 0.3), pair("best", "poor", -0.25, 0.001), pair("good", "poor", -0.24, 0.002)]
    board = board_of(evaluation(*systems, paired=tests))
    assert ranks(board) == {"best": (1, 2), "good": (1, 2), "poor": (3, 3)}
    assert [one["name"] for one in board["systems"]] == ["best", "good", "poor"]
    assert (board["n_real"], board["n_fake"]) == (100, 200)


def test_tests_are_corrected_for_all_that_are_ranked_and_for_no_others():
    seeded = {"standing": {"weights": {"standing": "other"}}}
    tests = [pair("a", "b", -0.2, 0.03), *(pair("a", f"s{n}", -0.2, 0.9) for n in range(3))]
    alone = evaluation(system("a"), system("b"), *(system(f"s{n}", **seeded) for n in range(3)), paired=tests)
    among = evaluation(system("a"), system("b"), *(system(f"s{n}") for n in range(3)), paired=tests)
    assert ranks(board_of(alone))["b"] == (2, 2)
    assert ranks(board_of(among))["b"][0] == 1  # Holm: 4 × 0.03


def test_ranks_are_of_images_that_neither_was_trained_on():
    whole, clean = [pair("a", "b", -0.2, 0.001)], [pair("a", "b", 0.2, 0.001)]
    assert ranks(board_of(evaluation(system("a"), system("b"), paired=whole, paired_unseen=clean))) == {"a": (2, 2), "b": (1, 1)}


def test_systems_of_two_evaluations_differ_only_where_their_intervals_lie_apart():
    first = evaluation(system("sure", 0.90, 0.88), system("lucky", 0.95, 0.60))
    board = board_of(first, evaluation(system("poor", 0.70, 0.65), system("twin", 0.91, 0.87)))
    assert ranks(board) == {"sure": (1, 3), "lucky": (1, 4), "twin": (1, 4), "poor": (2, 4)}  # twin and poor have no test


@pytest.mark.parametrize("word", ["other", "unknown", "demonstration", None])
def test_a_system_on_other_weights_than_the_published_ones_is_never_ranked(word):
    standing = {} if word is None else {"weights": {"standing": word, "why": "not the file", "loaded": "ab" * 32}}
    seeded = system("seeded", 0.99, 0.98, standing=standing)
    board = board_of(evaluation(system("sound", 0.6, 0.5), seeded))
    assert list(ranks(board)) == ["sound"]
    assert "weights" in not_ranked(board)["seeded"]
    assert not_ranked(board)["seeded"] in text_of(seeded)


def test_a_system_without_a_ranking_auc_or_trained_on_everything_is_not_ranked():
    binary = {"auc": figure(None, why="no ranking"), "balanced_accuracy": figure(0.99, 0.98, 1.0)}
    replies = system("replies", output="binary", figures=binary)
    trained = system("trained", 0.99, 0.98, unseen={"figures": {}, "why": "all fakes here are of generators that it was trained on"})
    board = board_of(evaluation(replies, trained, system("ranked", 0.6, 0.5)))
    assert list(ranks(board)) == ["ranked"]
    assert "AUC" in not_ranked(board)["replies"]
    assert "trained" in not_ranked(board)["trained"]


def test_figures_are_of_what_a_system_never_saw_and_the_rest_is_counted():
    gone = [{"name": "s", "label": "real", "n": 40}, {"name": "a", "label": "fake", "n": 100}]
    seen = [generator("real", label="real"), generator("a", seen="in-training", rate=0.1), generator("b", rate=0.2)]
    unseen = {"figures": {"auc": figure(0.8, 0.7, 0.82)}, "n_real": 60, "n_fake": 100, "names_sources": True, "left_out": gone}
    one = system("s", 0.99, 0.98, generators=seen, unseen=unseen | {"worst": {"generator": "b", "rate": figure(0.2, 0.1, 0.3)}})
    [entry] = board_of(evaluation(one))["systems"]
    assert entry["figures"]["auc"]["value"] == 0.8
    assert entry["worst_generator"]["name"] == "b"  # a is easier than b, and was seen
    assert sum(each["n"] for each in entry["left_out"]) == 140
    text = text_of(one)
    for said in ("40 real and 100 fake images that it was trained on are left out", "0.8000", "†"):
        assert said in text


def test_the_worst_generator_degradation_and_chain_stand_apart_from_attacks():
    def view(name, auc, **kind):
        return {"name": name, **kind, "figures": {"auc": figure(auc, auc - 0.1, auc + 0.1), "balanced_accuracy": figure(1 - auc)}}

    views = [view("jpeg-95", 0.8), view("blur-4", 0.6), view("social", 0.5, kind="chain"), view("vae", 0.2, kind="attack")]
    views.append({"name": "undefined", "figures": {"auc": figure(None, why="one class")}})
    named = {"generator": "c", "rate": figure(0.1, 0.0, 0.3)}
    systems = [system("s", views=views), system("w", views=views, worst=named, output="binary")]
    by_name = {one["name"]: one for one in board_of(evaluation(*systems))["systems"]}
    worst = {name: [one[f"worst_{what}"]["name"] for what in ("generator", "degradation", "chain")] for name, one in by_name.items()}
    assert worst == {"s": ["b", "blur-4", "social"], "w": ["c", "jpeg-95", "social"]}  # of replies by balanced accuracy
    text = text_of(*systems)
    assert "Attacks: 1 row" in text
    assert "Worst chain" in text


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
    assert len(leaderboard_document(boards_of([("x", evaluation(system("a"), digest="d1")), ("y", other)]))) == lists


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("in-training", "unseen", "unknown"), "trained on 1 of 3 generators"),
        (("unseen", "unseen"), "trained on none of them"),
        (("unseen", "unknown"), "not known whether trained on 1 of 2"),
    ],
)
def test_what_was_seen_in_training_is_marked(words, said):
    assert said in text_of(system("s", generators=[generator(str(at), seen=word) for at, word in enumerate(words)]))


def test_what_spoils_a_comparison_is_said():
    unscored = system("s", unscored=30, views=[{"name": "jpeg", "figures": {"auc": figure(0.5)}}], calibrated=False)
    board = board_of(evaluation(unscored, system("t"), confounded=True))
    assert len(board["warnings"]) == 2
    assert "AUC 0.8100" in board["warnings"][0]
    assert "perturbations" in board["warnings"][1]
    text = text_of(unscored)
    assert "30 unscored" in text
    assert "not calibrated" in text
    assert "not calibrated" not in text_of(system("t"))


def test_the_page_shows_every_system_once_with_its_interval():
    page = PageReader(page_of("leaderboard"))
    for one in example_document()["systems"]:
        assert one["title"] in page.text
        if one["figures"]["auc"]["interval"]:
            low, high = one["figures"]["auc"]["interval"]
            assert f"{low:.4f} to {high:.4f}" in page.text
    assert len(page.attributes("script")) == 1


def test_a_page_of_nothing():
    assert "No evaluation was given." in PageReader(page_of("leaderboard", "empty")).text
    assert "1 system on 1 set of data." in PageReader(render_leaderboard(boards_of([("x", {"systems": [{}]})]))).text
