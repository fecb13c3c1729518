"""A profile through the stages of both layouts, without Ray: who is asked, counted; the same names
and words however the work is cut.
"""

import numpy as np
import pytest
import yaml

from benchmarks.photographs import write_photographs
from tests.make.runs import score_here
from tests.make.stages import LAYOUTS
from tests.scoring.profiled import BACKBONE, CLASSES, write_profile

PROFILE = ("predicted_generator", "generator_family", "generator_probability", "generator_confidence", "generator_ranking")  # fmt: skip


def scored(out, source, kind, ensemble):
    """The facts of the session, and the rows by uri."""
    settings = {"ensemble": str(ensemble), "precision": "fp32"} | LAYOUTS[kind]
    finished, rows = score_here(out, source, **settings)
    return finished.summary["session"], rows


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Seven files, the last of which is no image."""
    folder = tmp_path_factory.mktemp("few")
    write_photographs(folder, 6, size=(320, 240))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


@pytest.fixture(scope="module")
def cut(few, tmp_path_factory):
    """A threshold that calls half of the images fake."""
    folder = tmp_path_factory.mktemp("undecided")
    ensemble = write_profile(folder / "cards", localizer=False)
    _, rows = scored(folder / "run", few, "fused", ensemble)
    return float(np.median([row["score"] for row in rows.values() if row["status"] == "ok"]))


@pytest.mark.parametrize("describer", ["retrieval", "captioner"])
def test_names_and_captions_are_the_same_in_any_layout(few, cut, tmp_path, describer):
    found = {}
    for name, kind, changes in (
        ("fused", "fused", {}),
        ("last", "split", {}),
        ("apart", "split", {"own_pool": True}),
    ):
        options = {"localizer": False, "fake_above": cut} | changes
        ensemble = write_profile(tmp_path / name, describer, **options)
        facts, rows = scored(tmp_path / "runs" / name, few, kind, ensemble)
        assert facts["layout"] == kind
        assert facts["decoded"] == len(rows) == 7
        described = [row for row in rows.values() if row["predicted_prompt"] is not None]
        assert facts["described"] == len(described) == 3
        assert facts["seconds"]["describe"] > 0 < facts["seconds"]["identify"]
        runs = facts["backbones"][BACKBONE]
        assert runs["asked"] == 2 * runs["runs"], "the two heads share each pass of their backbone"
        found[name] = rows
    same = ("verdict", "predicted_prompt", "predicted_generator", "generator_family")
    for uri, row in found["fused"].items():
        if row["status"] != "ok":
            for name in (*PROFILE, "predicted_prompt", "prompt_likelihood", "verdict"):
                assert row[name] is None
            continue
        assert row["generator_ranking"][0] == row["predicted_generator"]
        assert row["predicted_generator"] in CLASSES
        assert all(row[name] is not None for name in PROFILE)
        assert (row["predicted_prompt"] is not None) == (row["verdict"] == "fake")
        for other in (found["last"][uri], found["apart"][uri]):
            assert [other[name] for name in same] == [row[name] for name in same]
            assert other["prompt_likelihood"] == pytest.approx(row["prompt_likelihood"], abs=1e-4)


def test_cascade_in_pools_keeps_images_for_the_describer(few, tmp_path):
    """The tensors end with the first pool; the second decodes what goes on, and the describer still
    sees what was prepared then.
    """
    ensemble = write_profile(tmp_path / "cards", "captioner", localizer=False, own_pool=True)
    _, rows = scored(tmp_path / "all", few, "fused", ensemble)
    early = [row["scores"]["unifd"] for row in rows.values() if row["scores"]]
    told = yaml.safe_load(ensemble.read_text())
    slow = yaml.safe_load((ensemble.parent / "own-head.yaml").read_text()) | {"own_pool": True}
    (ensemble.parent / "own-head.yaml").write_text(yaml.safe_dump(slow))
    band = np.quantile(early, [0.3, 0.8]).tolist()
    cascade = {"first": 1, "band": band, "audit_share": 0}
    ensemble.write_text(yaml.safe_dump(told | {"rule": "cascade", "cascade": cascade}))
    fused, rows = scored(tmp_path / "fused", few, "fused", ensemble)
    split, others = scored(tmp_path / "split", few, "split", ensemble)
    flagged = sum(row["verdict"] == "fake" for row in rows.values())
    assert split["described"] == fused["described"] == flagged > 0
    for uri, row in rows.items():
        for name in ("second_look", "verdict", "predicted_prompt", "predicted_generator"):
            assert others[uri][name] == row[name]
