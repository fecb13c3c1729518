"""Recipes, layouts and protocols against the published data sets: a hub that answers with their names and columns (tests/published)."""

from fnmatch import fnmatchcase

import pytest

from ray_app.cli.main import main
from ray_app.config import load_yaml, named_configs, read_mapping
from ray_app.datasets import DatasetSource, build_index, index_source, survey
from ray_app.errors import ConfigError
from ray_app.storage import Store
from ray_app.training.config import TrainConfig
from ray_app.training.plan import source_lines
from ray_app.training.run import sources_of
from tests import published_hub
from tests.hub_server import HubServer

RECIPES = ("community-forensics", "maskclip", "openfake-swinv2", "openfake-swinv2-v2", "siglip2")
PROTOCOLS = ("community-forensics", "dflip", "open-deepfake", "openfake-v1", "openfake-v2", "openfake-v2-reddit", "opensdi")
SCALE, MOST = 10_000, 3


@pytest.fixture(scope="module")
def hub():
    """Every published set, of each kind of file at most three, one row for 10,000."""
    environment = pytest.MonkeyPatch()
    with HubServer() as server:
        environment.setenv("HF_ENDPOINT", server.url)
        for name in published_hub.hub_names():
            published_hub.publish(server, name, scale=SCALE, most=MOST)
        yield server
        environment.undo()


def entries(source: DatasetSource) -> list[dict]:
    """The kinds of files that a source should take, told without the code that is tested."""
    found = []
    for facts in map(published_hub.facts, published_hub.hub_names()):
        root = f"hf://datasets/{facts['repository']}" + (f"@{facts['revision']}" if facts["revision"] != "main" else "")
        for place in source.at:
            below = place.removeprefix(root).lstrip("/").replace("**/", "*") + ("" if "*" in place else "/*")
            found += [one for one in facts["files"] if place.startswith(root + "/") and fnmatchcase(one["name"].format(number=0), below)]
    assert found, source.at
    return found


def sources(kind: str, name: str) -> list[DatasetSource]:
    if kind == "train":
        data = load_yaml(named_configs("train")[name], TrainConfig).data
        return [*data.train, *sources_of(data.validation), *sources_of(data.test)]
    protocol = read_mapping(named_configs("evaluate")[name])
    keys = {key: protocol[key] for key in ("layout", "arguments", "split") if key in protocol}
    return [DatasetSource(at=protocol["sources"], **keys)]


ALL = [("train", name) for name in RECIPES] + [("evaluate", name) for name in PROTOCOLS]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_a_dry_run_counts_is_what_was_published(kind, name, hub, tmp_path):
    """Files, splits, labels and published numbers: by footers and few rows, and row by row."""
    for number, source in enumerate(sources(kind, name)):
        wanted, store = entries(source), Store.open(str(tmp_path / str(number)))
        names = survey.matched(source, store)
        assert names.files == sum(min(MOST, published_hub.number_of_files(entry)) for entry in wanted)
        fake, real = (sum(published_hub.made_rows(entry, SCALE)[place] for entry in wanted) for place in (0, 1))
        fake *= source.label != "real"
        told = survey.survey(source, store, names)
        about = pytest.approx((fake, real), abs=0 if told["exact"] else 5 + 0.1 * (fake + real))
        assert (told["fake"], told["real"]) == about
        build_index(source, store)
        counted = survey.survey(source, store, names)
        assert (counted["fake"], counted["real"], counted["counted"]) == (fake, real, "every row")
        assert [one["split"] for one in counted["splits"]] == [one["split"] for one in told["splits"]]
        assert len(index_source(source, store)) == fake + real
        for one in counted["published"]:
            if one["published"] is not None and one["subset"] not in ("fake", "real"):
                assert one["rows"] == pytest.approx(one["published"] / SCALE, abs=1)


def test_the_full_set_s_fakes_stand_beside_reals_of_the_small_one(hub, tmp_path):
    """No row says `Systematic+Manual`, and Systematic and Manual have no reals."""
    fakes, reals = sources("train", "community-forensics")[:2]
    found = {}
    for source in (fakes, reals):
        store = Store.open(str(tmp_path / str(source.label)))
        build_index(source, store)
        found[source.label] = index_source(source, store)["input"].to_pylist()
    assert {(row["split"], row["label"]) for row in found[None]} == {("Systematic", "fake"), ("Manual", "fake")}
    assert {row["label"] for row in found["real"]} == {"real"}
    elsewhere = Store.open(str(tmp_path / "none"))
    lines = "\n".join(source_lines([{"for": "train", **survey.survey(fakes, elsewhere, survey.matched(fakes, elsewhere))}]))
    assert "1,919,493" in lines
    assert "774,023" in lines
    assert "WARNING   data.train: only fake images are found" in lines


@pytest.mark.parametrize(
    ("changed", "near"),
    [
        ({"at": ["hf://datasets/OwensLab/CommunityForensics/data/systematc/*.parquet"]}, "data/systematic"),
        ({"at": ["hf://datasets/OwensLab/CommunityForensics/data"], "include": ["systematic/*.parqet"]}, "systematic/0.parquet"),
        ({"at": ["hf://datasets/OwensLab/CommunityForensics/dat"]}, "OwensLab/CommunityForensics/data"),
        ({"split": "Systematic+Manul"}, "near it: Manual"),
    ],
)
def test_what_matches_nothing_is_answered_with_the_nearest_names(changed, near, hub, tmp_path):
    source = DatasetSource(**{"at": ["hf://datasets/OwensLab/CommunityForensics/data"], "layout": "community-forensics"} | changed)
    with pytest.raises(ConfigError) as caught:
        survey.survey(source, Store.open(str(tmp_path)), survey.matched(source, Store.open(str(tmp_path))))
    assert near in caught.value.hint


def test_the_command_ends_with_2_where_a_split_is_not_there(hub, capsys):
    source = "{at: hf://datasets/OwensLab/CommunityForensics/data/*/*.parquet, layout: community-forensics, split: Systematic+Manul}"
    assert main(["train", "community-forensics", "--dry-run", "--set", f"data.train=[{source}]"]) == 2
    assert "near it: Manual" in capsys.readouterr().err
