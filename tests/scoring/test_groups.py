"""Groups of detectors that take turns in a worker: which detectors go together, and that the rows
are those of detectors that are in memory together.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.photographs import write_photographs
from ray_app.ensembles import build_ensemble
from ray_app.ensembles.card import Cascade
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import make_spec
from ray_app.inference.groups import group_detectors
from ray_app.runs import RunDirectory
from ray_app.scoring.layout import plan_groups
from ray_app.scoring.session import ScoringSession
from tests.make.cards import write_eight, write_ensemble, write_tiny, write_two
from tests.make.runs import comparable, score_here
from tests.scoring.profiled import write_profile

GB = 10**9
SHARING = ("touchstone-photo", "touchstone-photo-detail")  # They have one backbone.


def spec_of(*detectors, **options):
    return make_spec(build_ensemble(list(detectors)), limits=ImageLimits(), **options)


def groups_of(spec, limit_bytes):
    found = group_detectors(spec, limit_bytes)
    return found and found.groups


USUAL = {"cpus": 2, "gpus": 0, "nodes": 1, "node_bytes": 16 * GB, "workers": None}


def planned(spec, worker_bytes=None, **options):
    return plan_groups(spec, worker_bytes=worker_bytes, **USUAL | options)


def test_detectors_that_fit_form_no_groups():
    assert planned(spec_of("touchstone-tiny", *SHARING)) is None


def test_detectors_with_one_backbone_stay_together():
    spec = spec_of("unifd", "npr", "maskclip", "cnndetection", *SHARING)
    first = ("npr", "maskclip", "cnndetection", *SHARING)
    assert groups_of(spec, 6.5 * GB) == (first, ("unifd",))


def test_process_of_a_group_keeps_within_the_limit():
    spec = spec_of("unifd", "clip-cues", "npr", "dda")
    for limit_bytes in (4.1 * GB, 4.8 * GB, 5.5 * GB):
        groups = group_detectors(spec, limit_bytes)
        assert len(groups.groups) > 1
        assert groups.process_bytes <= limit_bytes
    with pytest.raises(ConfigError, match=r"maskclip need about 6\.\d GB"):
        planned(spec_of("unifd", "maskclip"), 4 * GB)


def test_stages_of_a_cascade_share_no_group():
    spec = spec_of("touchstone-tiny", "unifd", "npr", "clip-cues")
    ensemble = spec.ensemble.model_copy(update={"cascade": Cascade(first=1, band=(-2, 2))})
    groups = groups_of(replace(spec, ensemble=ensemble), 4.2 * GB)
    assert groups == (("touchstone-tiny",), ("npr", "clip-cues"), ("unifd",))


def test_small_nodes_get_turns_and_gpus_only_with_a_limit():
    spec = spec_of("unifd", "clip-cues")
    assert planned(spec, cpus=1) is None
    groups = planned(spec, node_bytes=12 * GB)
    assert groups.groups == (("clip-cues",), ("unifd",)), "more processes can run"
    assert 2 * groups.process_bytes <= 0.7 * 12 * GB
    spec = spec_of("unifd", "clip-cues", device="cuda")
    assert planned(spec, gpus=1, node_bytes=4 * GB) is None
    assert len(planned(spec, int(4.1 * GB), gpus=1).groups) == 2


def write_large(folder):
    """Paths of tiny detectors that say they are large, so that two of them share no process under
    `LIMIT`.
    """
    tiny = write_tiny(folder / "touchstone-tiny.yaml")
    weights, paths = yaml.safe_load(tiny.read_text())["weights"], []
    for path in map(Path, (*write_two(folder), tiny)):
        card = yaml.safe_load(path.read_text()) | {"weights": weights}
        card["size"]["parameters"] = 200_000_000
        paths.append(folder / f"large-{card['name']}.yaml")
        paths[-1].write_text(yaml.safe_dump(card))
    return list(map(str, paths))


LIMIT = int(3.3 * GB)
MORE = {
    "perturb": ["jpeg:75"],
    "features": ["slow"],
    "exclude": ["travel/**", "desk/drafts/**"],
}
SPLIT = {"device": "cpu", "cluster": {"workers": 1, "gpus": 1}}


def settings_of(detectors, worker_bytes=None, **more):
    settings = {"detectors": list(detectors), "block_members": 4, "cluster": {"workers": 1}} | more
    settings["cluster"] = settings["cluster"] | {"worker_bytes": worker_bytes}
    return settings


def without_place(rows):
    return {uri: comparable(row) for uri, row in rows.items()}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return write_large(tmp_path_factory.mktemp("large"))


@pytest.fixture(scope="module")
def together(sample_archive, large, tmp_path_factory):
    """Three detectors in one process: the run, its summary, its rows."""
    out = tmp_path_factory.mktemp("together") / "run"
    done, rows = score_here(out, sample_archive, **settings_of(large, **MORE))
    return out, done.summary, rows


@pytest.mark.parametrize("layout", [{}, SPLIT], ids=["fused", "split"])
def test_three_turns_give_the_same_rows(sample_archive, large, together, tmp_path, layout):
    """Scores, views, embeddings, and verdicts; bad files keep their statuses."""
    whole, summary, rows = together
    out = tmp_path / "run"
    done, same = score_here(out, sample_archive, **settings_of(large, LIMIT, **MORE, **layout))
    session = done.summary["session"]
    assert session["groups"] == [["cheap"], ["touchstone-tiny"], ["slow"]]
    assert session["layout"] == ("split" if layout else "fused")
    assert session["seconds"]["load"] > 0
    assert "groups" not in summary["session"]
    assert summary["session"]["seconds"]["load"] == 0
    assert without_place(same) == without_place(rows)
    assert len({row["status"] for row in rows.values()}) > 2
    assert done.summary["fingerprint"] == summary["fingerprint"]
    for name, one in done.summary["detectors"].items():
        assert one["images"] == summary["detectors"][name]["images"]
    kept = [RunDirectory.open(str(run)).read_sidecar("features/slow", 0, 0) for run in (whole, out)]
    assert kept[0].equals(kept[1])
    assert session["decoded"] == summary["session"]["decoded"]
    assert session["bytes_read"] == summary["session"]["bytes_read"]


def test_turns_of_each_batch_give_the_same_rows(
    sample_archive, large, together, tmp_path, monkeypatch
):
    """Every batch takes its turns by itself."""
    monkeypatch.setattr("ray_app.inference.groups.KEPT_BYTES", 1)
    settings = settings_of(large, LIMIT, **MORE) | {"block_members": 8}
    _, same = score_here(tmp_path / "run", sample_archive, **settings)
    assert without_place(same) == without_place(together[2])


def score_both(folder, source, *, device="cpu", cluster=None, **settings):
    """Score with all detectors together and in turns, which gives the same rows; the summaries of
    both.
    """
    found = []
    for name, limit in (("together", None), ("turns", LIMIT)):
        given = {"workers": 1, "worker_bytes": limit} | (cluster or {})
        done, rows = score_here(folder / name, source, device=device, cluster=given, **settings)
        found.append((done.summary, without_place(rows)))
    assert found[0][1] == found[1][1]
    return found[0][0], found[1][0]


@pytest.mark.parametrize("layout", [{}, SPLIT], ids=["fused", "split"])
def test_cascade_in_turns_gives_the_same_rows(sample_archive, large, tmp_path, layout):
    facts = {"rule": "cascade", "cascade": {"first": 1, "band": [-3, 3], "audit_share": 0.1}}
    ensemble = str(write_ensemble(tmp_path / "three.yaml", large, **facts))
    settings = {"ensemble": ensemble, "block_members": 4} | layout
    together, turns = score_both(tmp_path, sample_archive, **settings)
    assert len(turns["session"]["groups"]) == 3
    late = [one["session"]["looks"]["second"]["images"] for one in (together, turns)]
    assert late[0] == late[1] > 0


def test_interrupted_run_resumes_with_the_same_rows(sample_archive, large, tmp_path, monkeypatch):
    out, committed = tmp_path / "run", ScoringSession.add_block
    settings = settings_of(large, LIMIT)

    def interrupt(session, report):
        committed(session, report)
        if len(RunDirectory.open(str(out)).parts(0)) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoringSession, "add_block", interrupt)
        with pytest.raises(KeyboardInterrupt):
            score_here(out, sample_archive, **settings)
    done, rows = score_here(out, sample_archive, **settings)
    assert done.summary["session"]["rows"] == len(rows) - 2 * settings["block_members"]
    _, expected = score_here(tmp_path / "together", sample_archive, **settings_of(large))
    assert without_place(rows) == without_place(expected)


def enlarge(folder, *names):
    """Let cards in a folder say that they are large, so that two of them share no process."""
    for name in names:
        path = folder / f"{name}.yaml"
        card = yaml.safe_load(path.read_text())
        card["size"] = {"parameters": 200_000_000, "tensors": 1, "gmac": 1.0}
        path.write_text(yaml.safe_dump(card))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of different sizes, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, size in enumerate([(320, 240), (300, 400), (400, 300)]):
        write_photographs(folder, 2, size=size, start=2 * number)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", [{}, SPLIT], ids=["fused", "split"])
def test_masks_and_kept_sizes_in_turns_stay_the_same(photographs, tmp_path, layout):
    """Eight detectors: two share a backbone, one keeps sizes, one gives masks."""
    ensemble = write_eight(tmp_path / "cards")
    enlarge(ensemble.parent, "unifd", "corvi2023", "maskclip", "tiny-ladeda")
    settings = {"ensemble": str(ensemble), "perturb": ["jpeg:75"], "precision": "fp32"} | layout
    groups = score_both(tmp_path, photographs, **settings)[1]["session"]["groups"]
    assert len(groups) > 3
    assert any({"unifd", "own-head"} <= set(group) for group in groups)
    together, turns = (RunDirectory.open(str(tmp_path / name)) for name in ("together", "turns"))
    assert together.read_sidecar("masks", 0, 0).equals(turns.read_sidecar("masks", 0, 0))


def test_names_and_captions_in_turns_stay_the_same(photographs, tmp_path):
    options = {"describe": "all", "localizer": False, "parameters": 200_000_000}
    ensemble = write_profile(tmp_path / "cards", "captioner", **options)
    enlarge(ensemble.parent, "unifd", "own-head")
    settings = {"ensemble": str(ensemble), "precision": "fp32"}
    session = score_both(tmp_path, photographs, **settings)[1]["session"]
    assert len(session["groups"]) == 2
    assert session["groups"][0] == ["unifd", "own-head"]
    assert session["described"] == 6
