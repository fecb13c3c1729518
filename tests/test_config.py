import re
from collections.abc import Mapping
from typing import ClassVar, Self

import pytest
from pydantic import model_validator

from ray_app.config import Frozen, config_root, find_config, load_yaml
from ray_app.ensembles import EnsembleCard, load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.scoring import ScoreConfig


class Inner(Frozen):
    retired_keys: ClassVar[Mapping[str, str]] = {"depth_ft": "use depth_m"}

    depth_m: float = 1.0


class Outer(Frozen):
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()
    name: str

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if self.items and self.name == "none":
            raise ValueError("`items` need a name")
        return self


class Nested(Frozen):
    outer: Outer


def written(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return path


def test_reads_and_overrides(tmp_path):
    config = load_yaml(
        written(tmp_path, "name: a\ninner: {depth_m: 2}\n"), Outer, ["inner.depth_m=3.5", "name=b"]
    )
    assert (config.inner.depth_m, config.name) == (3.5, "b")


def test_home_folder_is_expanded_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = "source: [~/photos, 'list::~/l.csv', a~/b, s3://b/~/c]\nout: ~/run\n"
    path = written(tmp_path, text)
    config = load_yaml(path, ScoreConfig, ["ensemble=~/e.yaml", "exclude=['*~', '~$*']"])
    assert config.source == ("/home/me/photos", "list::/home/me/l.csv", "a~/b", "s3://b/~/c")
    assert (config.out, config.ensemble) == ("/home/me/run", "/home/me/e.yaml")
    assert config.exclude == ("*~", "~$*")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nane: a\n", "some.yaml: nane: unknown key — did you mean 'name'?"),
        (
            "name: a\ninner: {dept_m: 1}\n",
            "some.yaml: inner.dept_m: unknown key — did you mean 'depth_m'?",
        ),
        ("name: a\ninner: {depth_ft: 1}\n", "some.yaml: inner.depth_ft: retired: use depth_m"),
        ("name: a\nitems: [{depth_ft: 1}]\n", "some.yaml: items.0.depth_ft: retired: use depth_m"),
        ("inner: {}\n", "some.yaml: name: missing"),
        ("name: [1]\n", "some.yaml: name: [1] does not fit: it should be a valid string"),
        ("- 1\n", "expected keys and values, found list"),
        ("a: [\n", "some.yaml, line 2, column 1: not YAML: "),
        pytest.param("a: " + "[" * 500 + "]" * 500, "inner", id="deep"),
        pytest.param("a: " + "[" * 300_000 + "]" * 300_000, "nested too deep", id="too deep"),
    ],
)
def test_errors_name_file_key_and_nearest_valid_key(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        load_yaml(written(tmp_path, text), Outer)
    assert expected in str(caught.value)


def test_rule_of_several_keys_is_told_without_all_values(tmp_path):
    broken = "{name: none, items: [{depth_m: 1}]}"
    for text, model, place in (
        (broken, Outer, "some.yaml"),
        (f"outer: {broken}", Nested, "some.yaml: outer"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_yaml(written(tmp_path, text), model)
        assert str(caught.value) == f"{tmp_path / place}: `items` need a name"


@pytest.mark.parametrize("override", ["name", "name.x=1", "name=!!python/name:os.system"])
def test_bad_overrides_are_explained(tmp_path, override):
    with pytest.raises(ConfigError, match=re.escape(f"--set {override}: ")):
        load_yaml(written(tmp_path, "name: a\n"), Outer, [override])


def test_unknown_name_lists_what_is_shipped():
    with pytest.raises(ConfigError) as caught:
        find_config("ensembles", "defualt")
    assert "did you mean 'default'?" in str(caught.value)
    assert "published" in caught.value.hint


@pytest.mark.parametrize(
    "path", sorted((config_root() / "ensembles").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_ensemble_loads(path):
    assert load_ensemble_card(path.stem).name == path.stem


@pytest.mark.parametrize(
    "path", sorted((config_root() / "score").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_score_config_loads(path):
    load_yaml(path, ScoreConfig)


def test_thresholds_must_be_ordered(tmp_path):
    text = "name: x\ntitle: x\nmembers: [{detector: touchstone-tiny}]\nthresholds: {real_below: 2, fake_above: 1}\n"
    with pytest.raises(ConfigError, match="real_below"):
        load_yaml(written(tmp_path, text), EnsembleCard)
