"""Detectors in several passes over the blocks: who goes with whom, and that the rows are those of
one pass.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ray_app.config import config_root
from ray_app.ensembles import ensemble_of
from ray_app.ensembles.card import Cascade
from ray_app.errors import ConfigError, Status
from ray_app.images import ImageFileFacts, ImageLimits
from ray_app.inference import DecodeResult, DetectorOutputs, make_spec
from ray_app.runs import RunDirectory
from ray_app.scoring import passes
from ray_app.scoring.config import ScoreConfig
from tests.inference.two_detectors import write_two
from tests.scoring.conftest import comparable, score_here

GB = 10**9
SHARING = ("touchstone-photo", "touchstone-photo-detail")  # one backbone


def spec_of(*detectors, **options):
    return make_spec(ensemble_of(list(detectors)), limits=ImageLimits(), **options)


def planned(spec, config=None, *, cpus=2, gpus=0, nodes=1, node_bytes=16 * GB):
    return passes.plan_passes(
        config or ScoreConfig(), spec, cpus=cpus, gpus=gpus, nodes=nodes, node_bytes=node_bytes
    )


def test_detectors_with_one_backbone_stay_together_and_what_is_left_is_grouped_as_before():
    spec = spec_of("touchstone-tiny", *SHARING)
    assert planned(spec).specs() == [spec], "what fits is one pass"
    spec = spec_of("unifd", "npr", "maskclip", "cnndetection", *SHARING)
    assert passes.PassPlan(spec, 6.2 * GB).groups() == [
        ("npr", "maskclip", "cnndetection", *SHARING),
        ("unifd",),
    ]
    plan = passes.PassPlan(
        spec_of("unifd", "npr", "maskclip", "cnndetection", "clip-cues"), 4.6 * GB
    )
    groups = plan.groups()
    assert len(groups) == 3
    for done in range(len(groups)):
        left = {name for group in groups[done:] for name in group}
        assert plan.groups(left) == groups[done:]


def test_a_limit_is_obeyed_or_refused_by_name():
    limited, spec = ScoreConfig(cluster={"worker_bytes": 4 * GB}), spec_of("unifd", "clip-cues")
    assert len(planned(spec, limited).groups()) == 2
    with pytest.raises(ConfigError, match=r"maskclip need about 5\.\d GB"):
        planned(spec_of("unifd", "maskclip"), limited)
    cascade = spec.ensemble.model_copy(update={"cascade": Cascade(first=1, band=(-2, 2))})
    with pytest.raises(ConfigError, match=r"cannot be asked in several passes: .* is a cascade"):
        planned(replace(spec, ensemble=cascade), limited)


def write_large(folder):
    """Paths of tiny detectors that say they are large, so that two of them share no process under
    `LIMIT`.
    """
    paths = []
    for path in map(
        Path, (*write_two(folder), config_root() / "detectors" / "touchstone-tiny.yaml")
    ):
        card = yaml.safe_load(path.read_text())
        card["size"]["parameters"] = 60_000_000
        card["weights"]["uri"] = str(config_root() / "detectors" / "touchstone-tiny.safetensors")
        paths.append(folder / f"large-{card['name']}.yaml")
        paths[-1].write_text(yaml.safe_dump(card))
    return list(map(str, paths))


LIMIT = int(1.7 * GB)


def settings_of(detectors, worker_bytes=None, **more):
    return {
        "detectors": list(detectors),
        "block_members": 4,
        "cluster": {"workers": 1, "worker_bytes": worker_bytes},
        **more,
    }


def without_place(rows):
    return {uri: comparable(row) for uri, row in rows.items()}


@pytest.fixture(scope="module")
def three(sample_archive, tmp_path_factory):
    """Three detectors over a few files, all at once: (paths of cards, source with the same options,
    run, summary, rows).
    """
    folder = tmp_path_factory.mktemp("three")
    detectors = write_large(folder)
    more = {
        "perturb": ["jpeg:75"],
        "features": ["slow"],
        "exclude": ["travel/**", "desk/drafts/**"],
    }
    done, rows = score_here(folder / "run", sample_archive, **settings_of(detectors, **more))
    return detectors, more, folder / "run", done.summary, rows


def test_rows_of_three_passes_are_those_of_one(sample_archive, three, tmp_path):
    """Scores, views, embeddings and verdicts; damaged files are as they were."""
    detectors, more, whole, summary, rows = three
    done, same = score_here(
        tmp_path / "run", sample_archive, **settings_of(detectors, LIMIT, **more)
    )
    assert [one["detectors"] for one in done.summary["session"]["passes"]] == [
        ["cheap"],
        ["touchstone-tiny"],
        ["slow"],
    ]
    assert "passes" not in summary["session"]
    assert without_place(same) == without_place(rows)
    assert len({row["status"] for row in rows.values()}) > 2
    assert done.summary["fingerprint"] == summary["fingerprint"]
    times, alone = done.summary["detectors"], summary["detectors"]
    assert set(times) == set(alone) == {"cheap", "slow", "touchstone-tiny"}
    assert all(
        one["ms_per_image"] > 0 and one["images"] == alone[name]["images"]
        for name, one in times.items()
    )
    assert done.summary["memory_per_worker_bytes"] > 2**27
    kept = [
        RunDirectory.open(str(out)).beside("features/slow", 0, 0)
        for out in (whole, tmp_path / "run")
    ]
    assert kept[0].equals(kept[1])
    assert not (tmp_path / "run" / "passes").exists()


class EndedError(Exception):
    pass


def test_a_run_that_ended_between_passes_asks_nobody_twice(
    sample_archive, three, tmp_path, monkeypatch
):
    """It ends before its third pass, and goes on on a machine where all fit into one."""
    detectors, more, _, _, rows = three
    out, met, usual = tmp_path / "run", [], passes.passes_of

    def until_the_third(*given, **options):
        for one in usual(*given, **options):
            if one.number == 3:
                raise EndedError
            yield one

    def noted(*given, **options):
        for one in usual(*given, **options):
            met.append(tuple(one.spec.cards))
            yield one

    monkeypatch.setattr("ray_app.scoring.run.passes_of", until_the_third)
    with pytest.raises(EndedError):
        score_here(out, sample_archive, **settings_of(detectors, LIMIT, **more))
    assert not list(out.glob("parts/*/*"))
    # a block that only the second has seen
    next(out.glob("passes/00000/00000000-1.arrow")).unlink()
    monkeypatch.setattr("ray_app.scoring.run.passes_of", noted)
    done, same = score_here(out, sample_archive, **settings_of(detectors, **more))
    assert met == [("cheap", "slow"), ("slow",)]
    assert without_place(same) == without_place(rows)
    assert done.summary["detectors"].keys() == {"cheap", "slow", "touchstone-tiny"}


def found(status, sha256="a", score=1.0, **facts):
    outcome = DecodeResult(status, None, ImageFileFacts(sha256, **facts))
    return [outcome], DetectorOutputs.clean(
        scores={"one": np.array([score], np.float32)}, masks={"one": [np.zeros((2, 2), np.uint8)]}
    )


def test_what_two_passes_found_of_a_file_is_joined_or_it_has_no_score():
    later = (
        [DecodeResult(Status.SOURCE_MISSING, "gone", None)],
        DetectorOutputs.clean(scores={"two": np.array([np.nan], np.float32)}),
    )
    [outcome], outputs = passes.joined(found(Status.OK), later)
    assert (outcome.status, outcome.detail) == (Status.SOURCE_MISSING, "gone")
    assert np.isnan(outputs.scores["one"][0])
    assert outputs.of("masks")["one"] == [None]
    [outcome], outputs = passes.joined(found(Status.OK), found(Status.OK, "b"))
    assert outcome.status is Status.SOURCE_CHANGED
    assert np.isnan(outputs.scores["one"][0])
    [outcome], _ = passes.joined(found(Status.OK, texture=3.0), found(Status.OK, graphics=0.5))
    assert (outcome.facts.texture, outcome.facts.graphics) == (3.0, 0.5)
