"""The arena over HTTP: what a stranger can and cannot learn, what is kept, and what becomes of it."""

import csv
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from ray_app.archives import image_id, open_source
from ray_app.evaluation.audit.estimate import estimate
from ray_app.evaluation.audit.sample import draw_sample
from ray_app.metrics.intervals import proportion_interval, share_interval
from ray_app.serving import ServeConfig
from ray_app.serving.http.app import create_app
from ray_app.serving.metrics import Meter
from tests.evaluation.compare.compared import make_run
from tests.serving.arena_app import arena, pictures, play
from tests.serving.http.live import serving
from tests.serving.in_process import client


@pytest.fixture
def folder(tmp_path):
    return pictures(tmp_path / "photos")


class CountedScorer:
    """A real one; `asked`: how often for a score."""

    def __init__(self, scorer):
        self.scorer, self.asked = scorer, 0

    def __getattr__(self, name):
        return getattr(self.scorer, name)

    async def score(self, *given, **options):
        self.asked += 1
        return await self.scorer.score(*given, **options)


def rows_of(folder):
    files = sorted((folder.parent / "photos.arena" / "guesses").iterdir())
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize(("limit", "said"), [(8, []), (3, ["the arena takes the first 3 files of"])])
def test_files_that_take_no_part_are_said(limit, said, scorer, folder, caplog):
    (folder / "unsorted" / "notes.txt").unlink()
    with arena(scorer, folder, arena={"limit": limit}) as asking:
        assert len(asking.get("/arena/round").json()) == limit
    assert [line.partition(" /")[0] for line in caplog.messages if "arena" in line] == said


def test_a_picture_comes_without_a_word_of_what_it_is_and_its_truth_after_the_guess(scorer, folder):
    with arena(scorer, folder) as asking:
        drawn = asking.get("/arena/round")
        names = drawn.json()
        assert len(set(names)) == 8  # the text is none, of the broken file nobody knows yet
        assert re.fullmatch(r'\[("[0-9a-f]{32}",?)+\]', drawn.text)
        shown = {name: asking.get(f"/arena/pictures/{name}") for name in names}
        [broken] = [name for name, answer in shown.items() if answer.status_code != 200]
        assert shown[broken].json()["code"] in ("truncated_image", "corrupt_image")
        assert broken not in asking.get("/arena/round").json()
        del shown[broken]
        told = {name: asking.post(f"/arena/guesses/{name}?guess=fake").json() for name in shown}

        for name, answer in shown.items():
            assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/jpeg", "no-store")
            image = Image.open(io.BytesIO(answer.content))
            assert (dict(image.getexif()), b"Maker" in answer.content, "exif" in image.info) == ({}, False, False)
            assert image.size == ((240, 320) if told[name]["label"] == "real" else (320, 240))  # those ask to be turned
        assert sorted((one["label"] or "", one["generator"] or "") for one in told.values()) == (
            [("", "")] * 2 + [("fake", "gen-a")] * 2 + [("fake", "gen-b")] + [("real", "real:cam")] * 2
        )
        by_api = asking.post("/v1/score", content=(folder / "fake" / "gen-b" / "0.jpg").read_bytes()).json()
        [same] = [one for one in told.values() if one["generator"] == "gen-b"]
        assert (same["verdict"], same["score"]) == (by_api["verdict"], pytest.approx(by_api["score"], abs=1e-4))
    for row in rows_of(folder):
        assert row.keys() == {"image_id", "label", "generator", "guess", "verdict", "score", "ensemble"}


def test_replicas_at_once_and_after_a_restart_lose_no_guess_and_ask_the_ensemble_once(scorer, folder):
    counted = CountedScorer(scorer)
    with arena(counted, folder) as one, arena(counted, folder) as other:
        told = play(one, lambda _: "real")
        with ThreadPoolExecutor(8) as pool:
            asked = [(asking, name) for asking in (one, other) for name in list(told) * 3]
            again = list(pool.map(lambda pair: pair[0].post(f"/arena/guesses/{pair[1]}?guess=fake"), asked))
        assert {answer.status_code for answer in again} == {200}
        for asking in (one, other):
            assert asking.get("/arena/standings").json()["rows"][0]["guesses"] == 5 * 7  # of five labelled pictures
    assert len(rows_of(folder)) == 7 + 2 * 7 * 3
    with arena(counted, folder) as restarted:
        assert set(restarted.get("/arena/round").json()) > set(told)  # by the same names
        assert restarted.get("/arena/standings").json()["rows"][0]["guesses"] == 35
        assert restarted.post(f"/arena/guesses/{next(iter(told))}?guess=real").json() == next(iter(told.values()))
    assert counted.asked == 7


def test_both_are_judged_on_the_same_pictures_with_intervals_of_pictures(scorer, folder):
    with arena(scorer, folder) as asking:
        told = play(asking, lambda _: "fake")
        [of_b] = [name for name, one in told.items() if one["generator"] == "gen-b"]
        for _ in range(3):
            asking.post(f"/arena/guesses/{of_b}?guess=real")
        answer = asking.get("/arena/standings").json()
    rows = {row["generator"]: row for row in answer["rows"]}
    assert (answer["ensemble"], list(rows)) == ("tiny", ["all", "gen-a", "gen-b", "real:cam"])
    assert [(row["people"][0], row["pictures"], row["guesses"]) for row in rows.values()] == (
        [(pytest.approx((2 + 1 / 4) / 5), 5, 8), (1.0, 2, 2), (0.25, 1, 4), (0.0, 2, 2)]
    )
    assert rows["all"]["people"][1:] == pytest.approx(list(share_interval(2.25 / 5, 5)))
    right = sum(one["verdict"] == one["label"] for one in told.values() if one["label"])
    assert rows["all"]["ensemble"] == pytest.approx([right / 5, *proportion_interval(right, 5)])


def test_what_was_guessed_becomes_labels_that_an_audit_takes(scorer, folder):
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*.jpg"))]
    run = make_run(folder.parent / "made", names, {"touchstone-tiny": [3.0 if "fake" in name else -3.0 for name in names]}, list_in=folder)
    out = folder.parent / "audit"
    out.mkdir()
    draw_sample(run, 50, out, pictures=False)
    with arena(scorer, f"list::{out}/sample.csv", arena={"guesses": str(folder.parent / "kept")}) as asking:
        told = play(asking, lambda _: "fake")
        undecided = next(name for name, one in told.items() if one["label"] is None)  # of two
        asking.post(f"/arena/guesses/{undecided}?guess=real")
        labels = asking.get("/arena/labels")
        assert labels.headers["content-type"] == "text/plain; charset=utf-8"
        assert "photos" not in labels.text  # no place of any picture
    (out / "labels.csv").write_text(labels.text)
    found = estimate(run, str(out / "labels.csv"), out)
    assert (found["drawn"], found["labelled"], found["unsure"], found["blank"]) == (8, 6, 1, 1)
    assert found["figures"]["prevalence"]["value"] > 0
    said = {row["image_id"]: row for row in csv.DictReader(io.StringIO(labels.text))}
    ids = {item.uri: str(image_id(item)) for item in open_source([str(folder)])}
    assert (
        said[ids[f"{folder}/real/cam/0.jpg"]] | {"label": "real", "by": "source", "guessed_fake": "1"}
        == said[ids[f"{folder}/real/cam/0.jpg"]]
    )
    assert sorted((row["label"], row["guesses"]) for row in said.values() if row["by"] == "people") == [("fake", "1"), ("unsure", "2")]


def test_it_is_off_unless_asked_for_and_then_behind_the_endpoints_own_guards(scorer, folder, tmp_path, monkeypatch):
    with serving(create_app(ServeConfig(ensembles=("tiny",)), scorer, Meter())) as port, client(f"http://127.0.0.1:{port}") as asking:
        assert {asking.get(f"/arena{path}").status_code for path in ("", "/round", "/labels", "/standings")} == {404}
    (tmp_path / "tokens").write_text("correct horse battery staple\n")
    with arena(scorer, folder, access={"tokens_file": str(tmp_path / "tokens")}) as asking:
        page = asking.get("/arena")
        assert (page.status_code, "script-src 'self'" in page.headers["content-security-policy"]) == (200, True)
        closed = ("round", "standings", "labels", f"pictures/{'0' * 32}")
        assert {asking.get(f"/arena/{path}").status_code for path in closed} == {401}
        assert asking.post(f"/arena/guesses/{'0' * 32}?guess=real").status_code == 401
        asking.headers["Authorization"] = "Bearer correct horse battery staple"
        assert {asking.get(f"/arena/{path}").status_code for path in closed} == {200, 404}
        assert asking.get("/arena/round", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize("name", ["0" * 32, "..%2F..%2Fkey", "real%2Fcam%2F0.jpg", "%00", "a" * 5000])
def test_no_picture_has_another_name(scorer, folder, name):
    with arena(scorer, folder) as asking:
        assert asking.get(f"/arena/pictures/{name}").status_code == 404
        assert asking.post(f"/arena/guesses/{name}?guess=real").status_code == 404


def test_guesses_are_bounded_in_their_words_number_and_pace(scorer, folder):
    (folder / "unsorted" / "broken.jpg").unlink()
    with arena(scorer, folder, arena={"most_guesses": 2, "requests_per_minute": 8}) as asking:
        name = asking.get("/arena/round").json()[0]
        assert asking.post(f"/arena/guesses/{name}").status_code == 400
        assert asking.post(f"/arena/guesses/{name}?guess=maybe").status_code == 400
        assert [asking.post(f"/arena/guesses/{name}?guess=real").status_code for _ in range(3)] == [200, 200, 403]
        statuses = [asking.get("/arena/round") for _ in range(3)]
        assert [one.status_code for one in statuses] == [200, 200, 429]
        assert int(statuses[-1].headers["retry-after"]) > 0
        assert asking.get("/v1/ensembles").status_code == 200  # what is no game has its own limits
    assert len(rows_of(folder)) == 2
