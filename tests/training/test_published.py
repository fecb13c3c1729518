"""Recipes, layouts, and protocols against the published data sets, by their names and columns."""

import json
import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
import yaml

from ray_app.cli.main import main
from ray_app.config import load_yaml, named_configs, read_mapping
from ray_app.datasets import DatasetSource, index_source, survey
from ray_app.detectors import load_card
from ray_app.errors import ConfigError
from ray_app.identification.cards import load_describer, load_identifier
from ray_app.storage import Store
from ray_app.training.config import TrainConfig
from ray_app.training.plan import format_source_lines
from tests.make.networks.small_clip import small_card
from tests.make.servers import published_hub
from tests.make.servers.hub import HubServer
from tests.make.servers.wild import RESOLVE
from tests.training.small_recipes import TINY

NETWORKS = ("community-forensics", "maskclip", "openfake-swinv2", "openfake-swinv2-v2", "siglip2")
HEADS = ("dflip-identify", "dflip-unifd")  # on what a frozen CLIP makes of images
RECIPES = (*NETWORKS, *HEADS)
PROTOCOLS = (
    "community-forensics",
    "dflip",
    "open-deepfake",
    "openfake-v1",
    "openfake-v2",
    "openfake-v2-reddit",
    "opensdi",
)
SCALE, MOST = 10_000, 3


@pytest.fixture(scope="module")
def hub():
    """Every published set: at most three files of a kind, and one row for 10,000."""
    environment = pytest.MonkeyPatch()
    with HubServer() as server:
        environment.setenv("HF_ENDPOINT", server.url)
        for name in published_hub.hub_names():
            published_hub.publish(server, name, scale=SCALE, most=MOST)
        yield server
        environment.undo()


def train_apart(recipe, out):
    """Train in a process of its own. Its Ray inherits the address of the hub; the Ray that another
    test started does not have it.
    """
    command = [sys.executable, "-m", "ray_app.cli", "train", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def entries(source: DatasetSource) -> list[dict]:
    """The kinds of files that a source selects, found without the code under test."""
    found = []
    for facts in map(published_hub.facts, published_hub.hub_names()):
        revision = "" if facts["revision"] == "main" else f"@{facts['revision']}"
        root = f"hf://datasets/{facts['repository']}{revision}"
        for place in source.at:
            below = place.removeprefix(root).lstrip("/").replace("**/", "*")
            pattern = below if place.endswith(".parquet") else f"{below}/*"
            for entry in facts["files"] if place.startswith(f"{root}/") else ():
                names = published_hub.names_of(entry)
                if entry not in found and any(fnmatchcase(name, pattern) for name in names):
                    found.append(entry)
    assert found, source.at
    return found


def sources(kind: str, name: str) -> list[DatasetSource]:
    """The sources of a recipe or a protocol."""
    if kind == "train":
        data = load_yaml(named_configs("train")[name], TrainConfig).data
        splits = (data.train, data.validation, data.test)
        return [source for split in splits if isinstance(split, tuple) for source in split]
    protocol = read_mapping(named_configs("evaluate")[name])
    keys = {key: protocol[key] for key in ("layout", "arguments", "split") if key in protocol}
    return [DatasetSource(at=protocol["sources"], **keys)]


def distinct_sources() -> dict[str, DatasetSource]:
    """Every source of a recipe or a protocol once."""
    found = {}
    names = [("train", name) for name in RECIPES] + [("evaluate", name) for name in PROTOCOLS]
    for kind, name in names:
        for source in sources(kind, name):
            if source not in found.values():
                found[f"{kind}-{name}-{len(found)}"] = source
    return found


SOURCES = distinct_sources()


def assert_published_counts(survey: dict, scale: int) -> None:
    for subset in survey["published"]:
        if subset["published"] is not None and subset["subset"] not in ("fake", "real"):
            assert subset["rows"] == pytest.approx(subset["published"] / scale, abs=1)


@pytest.mark.parametrize("name", SOURCES)
def test_survey_of_a_source_counts_what_is_published(name, hub, tmp_path):
    source, store = SOURCES[name], Store.open(str(tmp_path))
    expected = entries(source)
    rows = [published_hub.made_rows(entry, SCALE) for entry in expected]
    fake, real = (sum(counts) for counts in zip(*rows, strict=True))
    quick = survey.survey(source, store, 0)  # by footers, statistics, and few rows
    assert quick["files"] == sum(len(published_hub.names_of(one, MOST)) for one in expected)
    assert quick["indexed"] == (source.layout == "dflip"), "shards have no footers"
    margin = 0 if quick["exact"] else 5 + 0.1 * (fake + real)
    assert (quick["fake"], quick["real"]) == pytest.approx((fake, real), abs=margin)
    counted = survey.survey(source, store)  # row by row
    assert (counted["fake"], counted["real"], counted["counted"]) == (fake, real, "every row")
    assert counted["files"] == quick["files"]
    splits = [[split["split"] for split in found["splits"]] for found in (counted, quick)]
    assert splits[0] == splits[1]
    assert len(index_source(source, store)) == fake + real
    assert_published_counts(counted, SCALE)


def test_full_set_of_fakes_is_joined_with_reals_of_the_small_set(hub, tmp_path):
    """No row says `Systematic+Manual`; statistics alone give the labels of both splits."""
    full, small = sources("train", "community-forensics")[:2]
    fakes, reals = (survey.survey(one, Store.open(str(tmp_path)), 0) for one in (full, small))
    splits = [(one["split"], one["real"], one["taken"]) for one in fakes["splits"]]
    assert splits == [("Manual", 0, True), ("Systematic", 0, True)]
    assert (reals["fake"], fakes["exact"], reals["exact"]) == (0, True, True)
    alone = "\n".join(format_source_lines([{"for": "train", **fakes}]))
    assert "published 1,919,493" in alone
    assert "labels by their statistics" in alone
    assert "WARNING   data.train: only fake images are found" in alone
    both = format_source_lines([{"for": "train", **fakes}, {"for": "train", **reals}])
    assert "WARNING" not in "\n".join(both)


FULL = "hf://datasets/OwensLab/CommunityForensics"


@pytest.mark.parametrize(
    ("changed", "near"),
    [
        ({"at": [f"{FULL}/data/systematc/*.parquet"]}, "data/systematic"),
        ({"include": ["systematic/*.parqet"]}, "systematic/0.parquet"),
        ({"at": [f"{FULL}/dat"]}, "OwensLab/CommunityForensics/data"),
        ({"split": "Systematic+Manul"}, "try a similar name: Manual"),
    ],
)
def test_source_that_matches_nothing_names_the_nearest(changed, near, hub, tmp_path):
    facts = {"at": [f"{FULL}/data"], "layout": "community-forensics"} | changed
    with pytest.raises(ConfigError) as caught:
        survey.survey(DatasetSource(**facts), Store.open(str(tmp_path)), 0)
    assert near in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_published_file_is_matched_and_counted(name, tmp_path, monkeypatch):
    """All names, and one row for a thousand."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for one in published_hub.hub_names():
            published_hub.publish(server, one)
        for number, source in enumerate(sources("train", name)):
            wanted = entries(source)
            told = survey.survey(source, Store.open(str(tmp_path / str(number))), 0)
            assert told["files"] == sum(len(published_hub.names_of(entry)) for entry in wanted)
            made = sum(sum(published_hub.made_rows(entry, published_hub.SCALE)) for entry in wanted)
            assert told["real"] + told["fake"] == made
            assert_published_counts(told, published_hub.SCALE)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
def test_recipe_trains_on_its_published_set_at_tiny_width(name, tmp_path, monkeypatch):
    """The shipped recipe and its sources; a network of its family that begins from nothing."""
    recipe = read_mapping(named_configs("train")[name])
    for key in ("epochs", "micro_batch"):
        recipe["loop"].pop(key, None)
    recipe["validation"].pop("every", None)
    recipe |= {"card": TINY[name], "initial": {"start": "random"}, "cluster": {"cpus": 2}}
    recipe["loop"] |= {"batch": 8, "steps": 4}
    if "groups" in recipe["data"]["validation"]:
        recipe["data"]["validation"] = {"groups": 0.2}
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for one in published_hub.hub_names():
            scale = 200 if one == "opendeepfake-preview" else 5000
            published_hub.publish(server, one, scale=scale, most=8)
        train_apart(written, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert load_card(str(tmp_path / "out" / "card.yaml")).weights.sha256
    # Both classes are learned and judged.
    assert all(split["real"] and split["fake"] for split in facts["data"]["splits"].values())
    assert facts["test"]["auc"] is not None


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HEADS)
def test_head_trains_on_its_published_set_at_tiny_width(name, tmp_path, monkeypatch, capsys):
    """The shipped recipe and its sources, on a CLIP of 0.1 M parameters."""
    out, (_, clip) = tmp_path / "out", small_card(tmp_path, feature="projected", normalise=False)
    recipe = read_mapping(named_configs("train")[name])
    recipe |= {"detector": str(clip), "card": {}, "cluster": {"cpus": 2}}
    recipe["data"]["validation"] = {"groups": 0.3}  # The threshold needs more of so few images.
    if name == "dflip-identify":
        recipe["identify"] |= {"abstains": 0.2, "fewest": 5}
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        published_hub.publish(server, "dflip3k")
        assert main(["train", str(written), "--dry-run"]) == 0
        assert "WARNING" not in capsys.readouterr().out, "naming generators needs no reals"
        train_apart(written, out)
    facts = json.loads((out / "metrics.json").read_text())
    if name == "dflip-unifd":
        assert load_card(str(out / "card.yaml")).training_data.licence == "CC BY-NC 4.0"
        assert all(split["real"] and split["fake"] for split in facts["data"]["splits"].values())
        assert facts["test"]["auc"] is not None
    else:
        assert set(load_identifier(out / "identifier.yaml").classes) == {"aura_flow", "sd_1.5"}
        assert (facts["test"]["n_known"], facts["test"]["n_real"]) == (16, 16)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_collected_prompts_of_dflip_v1_train_a_describer(wild, tmp_path, capsys):
    """pd.json in the published form; one of its URLs is dead."""
    columns = published_hub.facts("dflip-3k-v1")["columns"]
    out, (_, clip) = tmp_path / "out", small_card(tmp_path)
    records = {}
    for number in range(40):
        url = wild.url("h1", f"{'gone' if number == 7 else 'good'}/{number}.x")
        prompt = f"a lighthouse in fog, view {number} <lora:foo:0.6>"
        records[f"{number:07}"] = dict(zip(columns, (url, prompt, "mix_v2"), strict=True))
    meta, collected = tmp_path / "pd.json", tmp_path / "collected"
    meta.write_text(json.dumps(records))

    def run(command, *settings):
        return main([*command, *(word for one in settings for word in ("--set", one))])

    web = ["allow_private=true", f"resolve={json.dumps(RESOLVE)}", "retry.base_s=0.01"]
    assert run(["data", "collect", str(meta), "--out", str(collected)], *web) == 0
    settings = [
        f"data.train=[{{at: {collected / 'collected.parquet'}, layout: columns}}]",
        "data.licence=CC BY-NC 4.0",
        f"detector={clip}",
        "cluster.cpus=2",
        "loop={epochs: 1, batch: 8}",
        "describe.vocabulary=300",
        "describe.architecture={config: {n_embd: 32, n_layer: 1, n_head: 2}}",
    ]
    assert run(["train", "prompt-prefix", "--dry-run"], *settings) == 0
    told = capsys.readouterr().out
    assert "39 rows: 0 real, 39 fake" in told
    assert "WARNING" not in told
    assert run(["train", "prompt-prefix", "--out", str(out)], *settings) == 0
    facts = json.loads((out / "metrics.json").read_text())
    assert facts["n"]["validation"] == 39 - facts["data"]["splits"]["train"]["images"] > 0
    prompts = [example["prompt"] for example in facts["examples"]["validation"]]
    assert all("lighthouse in fog" in prompt and "lora" not in prompt for prompt in prompts)
    assert load_describer(out / "describer.yaml").licence == "CC BY-NC 4.0"
