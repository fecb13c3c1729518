import pytest

from ray_app.datasets.layouts import LAYOUTS, make_layout
from ray_app.datasets.layouts.base import parse_config, parse_split
from ray_app.errors import ConfigError


def test_each_layout_rejects_unknown_arguments():
    for name in LAYOUTS:
        with pytest.raises(ConfigError, match=f"layout {name}: .*wrong: unknown key"):
            make_layout(name, {"wrong": 1})


def test_missing_argument_is_rejected_with_all_arguments():
    with pytest.raises(ConfigError, match="file: missing") as raised:
        make_layout("imdlbenco-json", {})
    assert (
        "set its arguments by --set arguments.KEY=VALUE; they are root, file, generator"
        in raised.value.hint
    )


def test_unknown_layout_is_rejected():
    with pytest.raises(ConfigError, match="no layout 'nobodys'"):
        make_layout("nobodys", {})


@pytest.mark.parametrize(
    ("uri", "split", "config"),
    [
        ("/m/core/test-00012-of-00100-0a1b2c.parquet", "test", "core"),
        (
            "hf://datasets/x/y@refs%2Fconvert%2Fparquet/reddit/partial-test/0003.parquet",
            "test",
            "reddit",
        ),
        ("/m/data/Systematic+Manual-00000-of-00010.parquet", "Systematic+Manual", "default"),
        ("/m/table.parquet", None, None),
    ],
)
def test_names_of_shards(uri, split, config):
    assert (parse_split(uri), parse_config(uri)) == (split, config)
