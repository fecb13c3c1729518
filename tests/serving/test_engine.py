"""The walk of one image through decoder processes and groups, while groups are lost, full, or
change what they serve.
"""

import asyncio
import shutil
import time
from types import SimpleNamespace

import pytest
import yaml

import ray_app
from ray_app.config import config_root
from ray_app.errors import InputError, Status
from ray_app.serving import ServeConfig
from ray_app.serving.engine import EndpointScorer, GroupDied, GroupLost
from ray_app.serving.http.errors import Refusal
from ray_app.serving.metrics import Meter
from ray_app.serving.release import groups_of, load_release, plan_release
from tests.images.factory import encoded, photo
from tests.serving.in_process import Troubled, loaded_group, local_scorer
from tests.serving.test_release import stricter


@pytest.fixture(scope="module")
def group():
    return loaded_group("detectors", ServeConfig(ensembles=("tiny",)))


@pytest.fixture(scope="module")
def file():
    return encoded(photo(seed=3), "JPEG")


def scorer_of(group, decoders, **config):
    return EndpointScorer(
        ServeConfig(ensembles=("tiny",), **config), {"detectors": group}, decoders, Meter()
    )


def test_a_group_that_is_lost_is_asked_again(group, decoders, file):
    troubled = Troubled(group, GroupLost(), GroupLost(), GroupLost())
    assert asyncio.run(scorer_of(troubled, decoders).score(file)).status == "ok"
    assert len(troubled.asked) == 4


async def test_an_offer_is_followed_and_every_answer_names_its_own_fingerprint(
    group, decoders, file, tmp_path
):
    other = loaded_group("detectors", ServeConfig(ensembles=(stricter(tmp_path, "tiny"),)))
    theirs, moving = await other.describe(), Troubled(group)
    scorer = scorer_of(moving, decoders)
    before = await scorer.score(file)
    moving.group = other
    after = await scorer.score(file)
    assert before.ensemble.fingerprint != after.ensemble.fingerprint == theirs.fingerprints["tiny"]
    assert before.score == pytest.approx(after.score, abs=1e-5)


@pytest.fixture
def two_groups(tmp_path):
    """A function (threshold, name of the shared detector) -> config of an ensemble whose second
    detector has a process of its own.
    """
    shipped = config_root() / "detectors"
    shutil.copy(shipped / "touchstone-tiny.safetensors", tmp_path)
    card = yaml.safe_load((shipped / "touchstone-tiny.yaml").read_text())
    for name, own in (("together", False), ("renamed", False), ("alone", True)):
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({**card, "name": name, "own_pool": own})
        )

    def config(threshold, shared):
        members = [{"detector": f"{shared}.yaml"}, {"detector": "alone.yaml"}]
        ensemble = {
            "name": "two",
            "title": "Two groups",
            "members": members,
            "thresholds": {"real_below": -9, "fake_above": threshold},
        }
        path = tmp_path / f"two-{threshold}-{shared}.yaml"
        path.write_text(yaml.safe_dump(ensemble))
        return ServeConfig(ensembles=(str(path),))

    return config


@pytest.mark.parametrize(
    ("shared", "while_updating"), [("together", "before"), ("renamed", "after")]
)
def test_groups_that_update_one_after_the_other_answer_all_the_time(
    two_groups, decoders, file, shared, while_updating
):
    """Thresholds change: what was served goes on until both have moved. A detector changes: the
    group that has not is still right.
    """
    before, after = two_groups(1.0, "together"), two_groups(2.0, shared)
    groups = {name: loaded_group(name, before) for name in ("detectors", "alone")}
    scorer = EndpointScorer(before, groups, decoders, Meter())
    names = {
        key: load_release(config).fingerprints["two"]
        for key, config in (("before", before), ("after", after))
    }

    async def update():
        async with asyncio.timeout(60):
            answers = [await scorer.score(file)]
            groups["detectors"].load(after)
            answers.append(await scorer.score(file))
            groups["alone"].load(after)
            return [*answers, await scorer.score(file)]

    answers = asyncio.run(update())
    assert [answer.ensemble.fingerprint for answer in answers] == [
        names["before"],
        names[while_updating],
        names["after"],
    ]
    assert sorted(answers[0].scores) == ["alone", "together"]
    assert len({round(answer.score, 4) for answer in answers}) == 1


def test_an_image_with_too_many_bytes_is_refused(group, decoders):
    with pytest.raises(Refusal) as large:
        asyncio.run(scorer_of(group, decoders, images={"max_bytes": 10}).score(b"0" * 11))
    assert (large.value.status, large.value.limit, large.value.observed) == (413, 10, 11)


def test_several_detectors_agree_with_the_library(several, file):
    card, names = several
    config = ServeConfig(ensembles=(str(card),), accept_licences=names)
    ensemble = ray_app.load_ensemble(str(card), accept_licences=names)
    files = [file, encoded(photo(400, 300, seed=8), "PNG")]

    async def all_of(scorer):
        return await asyncio.gather(*[scorer.score(data, masks=True) for data in files])

    scorer = local_scorer(config)
    answers = asyncio.run(all_of(scorer))
    scorer.close()
    assert "detectors" in groups_of(plan_release(config)[0])
    for answer, expected in zip(answers, ensemble.score(files), strict=True):
        assert answer.verdict == expected.verdict
        assert (answer.verdict_reason, answer.verdict_detail) == (
            expected.verdict_reason,
            expected.verdict_detail,
        )
        for name, score in expected.scores.items():
            assert answer.scores[name] == (
                None if score is None else pytest.approx(score, abs=2e-2, rel=1e-3)
            ), name
        assert set(answer.scores) == set(names)
        with_masks = {name for name, mask in expected.masks.items() if mask is not None}
        assert with_masks == {"maskclip"}
        assert {name for name, said in answer.detectors.items() if said.mask} == with_masks


def test_an_image_that_kills_its_processes_is_refused_in_the_end(
    group, decoders, file, monkeypatch
):
    # deaths within a second count as one
    quick = SimpleNamespace(**vars(time) | {"monotonic": lambda: 20 * time.monotonic()})
    monkeypatch.setattr("ray_app.serving.engine.time", quick)
    deadly = Troubled(group, *[GroupDied()] * 100)
    with pytest.raises(InputError, match="3 processes died") as refused:
        asyncio.run(scorer_of(deadly, decoders).score(file))
    assert refused.value.status is Status.DETECTOR_FAILED


async def test_ready_scores_a_golden_image_once_in_a_while_however_many_ask(group, decoders):
    troubled = Troubled(group)
    scorer = scorer_of(troubled, decoders)
    await asyncio.gather(*[scorer.ready() for _ in range(50)])
    assert [name.name for name in await scorer.ready()] == ["tiny"]
    assert len(troubled.asked) == 1


async def test_an_ensemble_that_an_update_brought_is_known_at_its_first_request(
    group, decoders, file, tmp_path, monkeypatch
):
    monkeypatch.setattr("ray_app.serving.engine.FRESH_S", 0.0)
    other = loaded_group("detectors", ServeConfig(ensembles=(stricter(tmp_path),)))
    moving = Troubled(group)
    scorer = scorer_of(moving, decoders)
    await scorer.score(file)
    moving.group = other
    assert (await scorer.score(file, ensemble="stricter")).ensemble.name == "stricter"
