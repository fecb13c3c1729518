from dataclasses import replace
from fnmatch import fnmatchcase

import pytest

from ray_app.config import validate
from ray_app.datasets import DatasetSource, index_source
from ray_app.datasets.known_faults import (
    KnownFault,
    drop_faulty_labels,
    fault_lines,
    find_faults,
    known_faults,
)
from ray_app.datasets.labels import Labels
from ray_app.datasets.layouts import layout_names
from ray_app.datasets.survey import survey
from ray_app.errors import ConfigError, IdentityError
from ray_app.storage import Store
from tests.make.published import write_openfake

PROMPTS = "openfake-v1-prompts"


def of_openfake(folder):
    return DatasetSource(
        at=[str(write_openfake(folder))], layout="openfake", arguments={"version": "v1"}
    )


def test_every_fault_is_of_layouts_that_there_are():
    layouts = {name for fault in known_faults().values() for name in fault.layouts}
    assert layouts <= set(layout_names())
    assert all(
        not fault.numbers or fault.numbers[0] < fault.numbers[1]
        for fault in known_faults().values()
    )


def test_mispaired_generators_are_named_as_both_versions_do():
    globs = known_faults()[PROMPTS].generators
    mispaired = {"flux.1-dev", "sd-3.5", "sdxl-realvis-v5"}
    mispaired |= {"stable-diffusion-1.5-dreamshaper", "sd-1.5-dreamshaper"}
    names = mispaired | {"flux-1.1-pro", "sd-1.5", "sdxl-epic-realism"}
    assert {name for name in names if any(fnmatchcase(name, glob) for glob in globs)} == mispaired


SMALL, FORENSICS = "community-forensics-small-sizes", "hf://datasets/OwensLab/CommunityForensics"


@pytest.mark.parametrize(
    ("layout", "at", "version", "found", "others"),
    [
        ("openfake", "/set", "v1-2025-05", {PROMPTS}, {"openfake-v2-jpeg"}),
        ("openfake", "/set", "v2", {"openfake-v2-jpeg"}, {PROMPTS}),
        ("openfake", "/set", None, {PROMPTS, "openfake-v2-jpeg"}, {SMALL}),
        ("folders", "/photos", None, set(), {PROMPTS, SMALL, "forensynths-jpeg"}),
        ("folders", "s3://mine/CNN_synth_testset/progan", None, {"forensynths-jpeg"}, set()),
        ("community-forensics", f"{FORENSICS}-Small", None, {SMALL}, set()),
        ("community-forensics", FORENSICS, None, set(), {SMALL}),
    ],
)
def test_fault_is_of_its_layout_version_and_place(layout, at, version, found, others):
    arguments = {"version": version} if version else {}
    names = {
        fault.name for fault in find_faults({"layout": layout, "at": [at], "arguments": arguments})
    }
    assert found <= names
    assert not others & names


def test_fault_line_names_rows_option_and_source():
    faults = find_faults({"layout": "openfake", "at": [], "arguments": {"version": "v1"}})
    strata = {
        ("train", "fake", "sd-3.5"): 1200,
        ("test", "fake", "flux.1-dev"): 34,
        ("test", "fake", "sd-1.5"): 5,
        ("test", "real", "real"): 7,
    }
    [line] = [line for line in fault_lines(faults, strata) if PROMPTS in line]
    assert "1,234 rows" in line
    assert "leave_out_faults leaves these prompts out" in line
    assert "discussions/2" in line
    assert "prompts left out" in next(
        line for line in fault_lines(faults, strata, left_out=True) if PROMPTS in line
    )
    assert not [
        line for line in fault_lines(faults, {("test", "fake", "sd-1.5"): 5}) if PROMPTS in line
    ]
    assert "some rows" in next(line for line in fault_lines(faults, None) if PROMPTS in line)


def test_spoiled_prompt_goes_with_its_group_and_image_stays():
    faults = find_faults({"layout": "openfake", "at": [], "arguments": {"version": "v1"}})
    mispaired = Labels("fake", "sd-3.5", prompt="a dog", split="test", group="prompt:1")
    image = Labels("fake", "sd-3.5", split="test")
    in_scene = replace(image, group="scene 1")
    assert drop_faulty_labels(mispaired, faults) == image
    assert drop_faulty_labels(replace(in_scene, prompt="a dog"), faults) == in_scene
    sound = Labels("fake", "sd-1.5", prompt="a dog", group="prompt:1")
    for labels in (sound, Labels("real", "real", prompt="a dog")):
        assert drop_faulty_labels(labels, faults) == labels
    assert drop_faulty_labels(Labels("fake", "sana-1.5"), faults) is None
    assert drop_faulty_labels(mispaired, ()) == mispaired


def test_source_is_read_without_spoiled_rows(tmp_path):
    source, store = of_openfake(tmp_path / "set"), Store.open(str(tmp_path / "index"))
    unseen = survey(source, store, 0)["faults"]
    # A set that is too large to be indexed is surveyed so.
    assert any(PROMPTS in line and "some rows" in line for line in unseen)
    assert len(index_source(source, store)) == 8
    assert sum("leaves these" in line for line in survey(source, store)["faults"]) == 2
    sparing = source.model_copy(update={"leave_out_faults": True})
    beside = Store.open(str(tmp_path / "beside"))
    with pytest.raises(IdentityError, match="leave_out_faults"):
        index_source(sparing, store)
    rows = index_source(sparing, beside)["input"].combine_chunks().to_pylist()
    said = {row["generator"]: row["prompt"] for row in rows if row["label"] == "fake"}
    assert said == {"flux.1-dev": None, "sd-1.5-dreamshaper": None, "gpt-image-1": "a prompt 4"}
    told = survey(sparing, beside)["faults"]
    assert any(PROMPTS in line and "2 rows" in line and "prompts left out" in line for line in told)
    assert "left out: 1 × spoiled by a documented fault of the data" in told
    with pytest.raises(ConfigError, match="leave_out_faults must be set when it is made"):
        index_source(DatasetSource(at=[store.url], leave_out_faults=True), store)
    chosen = source.model_copy(update={"generators": ("gpt-image-1",)})
    assert not any(PROMPTS in line for line in survey(chosen, store)["faults"])


def test_key_is_in_no_recipe_that_does_not_use_it():
    plain, sparing = DatasetSource(at=["x"]), DatasetSource(at=["x"], leave_out_faults=True)
    assert "leave_out_faults" not in plain.model_dump(mode="json")
    assert sparing.model_dump(mode="json")["leave_out_faults"] is True


def test_fault_without_source_or_kind_is_refused():
    fault = {"name": "x", "data": "Set", "layouts": ["folders"], "kind": "size"}
    fault |= {"what": "differ", "source": "nobody knows who", "looked_up": "2026-11-26"}
    assert validate(fault, KnownFault, where="here").generators == ("*",)
    for wrong in ({"source": "me"}, {"kind": "odd"}, {"layouts": []}, {"looked_up": "yesterday"}):
        with pytest.raises(ConfigError, match="here"):
            validate(fault | wrong, KnownFault, where="here")


def test_a_fault_of_one_split_is_only_of_its_rows():
    fault = known_faults()[PROMPTS].model_copy(update={"splits": ("train",), "label": None})
    generator = fault.generators[0]
    assert fault.holds(("train", "fake", generator))
    assert not fault.holds(("test", "fake", generator))
    assert not fault.holds(("train", "fake", "another"))
