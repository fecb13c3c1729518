"""Shipped lists are those of their sources; names, files and written steps are understood, and all else is refused in words."""

import pytest

from ray_app.config import load_yaml, named_configs
from ray_app.errors import ConfigError
from ray_app.perturbations import PerturbationList, load_perturbations

JPEG, BLUR = {"op": "jpeg"}, {"op": "blur"}
CAP = {"op": "resize", "long_edge": 2048, "filter": "lanczos"}
KERNELS = (3, 7, 11, 15, 19, 23)
LISTS = {
    "sidbench": [
        *([JPEG | {"quality": quality}] for quality in (95, 90, 50, 30)),
        *([BLUR | {"sigma": sigma}] for sigma in (2, 4)),
        [BLUR | {"sigma": 2}, JPEG | {"quality": 50}],
    ],
    "univfd": [
        *([JPEG | {"quality": quality}] for quality in range(100, 29, -10)),
        *([BLUR | {"sigma": sigma}] for sigma in (1, 2, 3, 4)),
    ],
    "openfake": [[CAP], *([CAP, JPEG | {"quality": quality}] for quality in (90, 75, 50, 25))],
    "imdlbenco": [
        *([BLUR | {"kernel": kernel}] for kernel in KERNELS),
        *([{"op": "noise", "variance": variance}] for variance in KERNELS),
        *([JPEG | {"quality": [quality - 1, quality]}] for quality in range(50, 101, 10)),
    ],
    "grip-social": [
        [
            {"op": "random-square", "low": 160, "high": 2048, "share": 5 / 8},
            {"op": "resize", "square": 200, "filter": "lanczos-or-bicubic"},
            JPEG | {"quality": [65, 100]},
        ]
    ],
    "same-history": [[{"op": "resize", "long_edge": 1024, "filter": "lanczos"}, JPEG | {"quality": 90}]],
}


@pytest.mark.parametrize("name", LISTS)
def test_a_published_list_is_as_its_source_says(name):
    assert [perturbation.facts() for perturbation in load_perturbations([name])] == LISTS[name]


def test_every_shipped_list_names_its_source():
    shipped = {name: load_yaml(path, PerturbationList) for name, path in named_configs("perturb").items()}
    assert set(shipped) == {*LISTS, "standard"}
    for name, listed in shipped.items():
        assert listed.name == name
        assert len(listed.source) > 20


def test_the_standard_list_has_twelve():
    names = [perturbation.name for perturbation in load_perturbations(["standard"])]
    assert len(names) == 12
    assert {"jpeg-95", "webp-80", "half-size", "noise-5", "centre-75", "screenshot", "social-media", "double-jpeg"} <= set(names)


def test_written_steps_are_those_of_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsource: me\nperturbations:\n"
        "  - {name: 'blur:2+jpeg:50', steps: [{op: blur, sigma: 2}, {op: jpeg, quality: 50}]}\n"
        "  - {name: other, steps: [{op: crop, share: 0.5}]}\n"
    )
    written = load_perturbations(["blur:2+jpeg:50"])
    assert load_perturbations([str(path)])[:1] == written
    assert [one.name for one in load_perturbations(["blur:2+jpeg:50", str(path)])] == ["blur:2+jpeg:50", "other"]


def test_lists_that_share_a_perturbation_have_it_once():
    names = [one.name for one in load_perturbations(["sidbench", "univfd"])]
    assert len(names) == len(set(names)) == 7 + 12 - 5


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["nothing"], "no such perturbation"),
        (["jpeg:"], "no step"),
        (["jpeg:75+rotate:3"], "rotate:3 is no step"),
        (["jpeg:101"], "quality"),
        (["jpeg:[9"], "not a value"),
        (["clean"], "no such perturbation"),
    ],
)
def test_what_is_none_is_refused(names, told):
    with pytest.raises(ConfigError, match=told) as refused:
        load_perturbations(names)
    assert "--perturb" in str(refused.value)


def test_one_name_for_two_things_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsource: me\nperturbations: [{name: jpeg-95, steps: [{op: jpeg, quality: 94}]}]\n")
    with pytest.raises(ConfigError, match="jpeg-95 is also another"):
        load_perturbations(["standard", str(path)])


def test_a_file_with_a_name_twice_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    one = "{name: a, steps: [{op: jpeg, quality: 94}]}"
    path.write_text(f"name: mine\nsource: me\nperturbations: [{one}, {one}]\n")
    with pytest.raises(ConfigError, match="two perturbations are called a"):
        load_perturbations([str(path)])
