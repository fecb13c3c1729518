"""Recipes, layouts and protocols against the published data sets: a hub that answers with their
names and columns (tests/published).
"""

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
from ray_app.training.plan import source_lines
from tests import published_hub
from tests.datajobs.download.conftest import RESOLVE, wild  # noqa: F401 - the fixture
from tests.detectors.small_clip import small_card
from tests.hub_server import HubServer
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
    """Every published set, of each kind of file at most three, one row for 10,000."""
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
    """The kinds of files that a source should take, told without the code that is tested."""
    found = []
    for facts in map(published_hub.facts, published_hub.hub_names()):
        root = f"hf://datasets/{facts['repository']}" + (
            f"@{facts['revision']}" if facts["revision"] != "main" else ""
        )
        for place in source.at:
            below = place.removeprefix(root).lstrip("/").replace("**/", "*") + (
                "" if place.endswith(".parquet") else "/*"
            )
            mine = facts["files"] if place.startswith(root + "/") else ()
            kinds = [
                one
                for one in mine
                if any(fnmatchcase(name, below) for name in published_hub.names_of(one))
            ]
            found += [one for one in kinds if one not in found]
    assert found, source.at
    return found


def sources(kind: str, name: str) -> list[DatasetSource]:
    """Those of a recipe or a protocol."""
    if kind == "train":
        data = load_yaml(named_configs("train")[name], TrainConfig).data
        return [
            source
            for split in (data.train, data.validation, data.test)
            if isinstance(split, tuple)
            for source in split
        ]
    protocol = read_mapping(named_configs("evaluate")[name])
    keys = {key: protocol[key] for key in ("layout", "arguments", "split") if key in protocol}
    return [DatasetSource(at=protocol["sources"], **keys)]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("train", name) for name in RECIPES] + [("evaluate", name) for name in PROTOCOLS],
)
def test_what_a_dry_run_counts_is_what_was_published(kind, name, hub, tmp_path):
    """Files, splits, labels and published numbers: by footers, statistics and few rows, and row by
    row.
    """
    for number, source in enumerate(sources(kind, name)):
        wanted, store = entries(source), Store.open(str(tmp_path / str(number)))
        fake, real = (
            sum(published_hub.made_rows(entry, SCALE)[place] for entry in wanted)
            for place in (0, 1)
        )
        told = survey.survey(source, store, 0)
        assert told["files"] == sum(len(published_hub.names_of(entry, MOST)) for entry in wanted)
        assert told["indexed"] == name.startswith("dflip"), "shards have no footers"
        about = pytest.approx((fake, real), abs=0 if told["exact"] else 5 + 0.1 * (fake + real))
        assert (told["fake"], told["real"]) == about
        counted = survey.survey(source, store)
        assert (counted["fake"], counted["real"], counted["counted"], counted["files"]) == (
            fake,
            real,
            "every row",
            told["files"],
        )
        assert [one["split"] for one in counted["splits"]] == [
            one["split"] for one in told["splits"]
        ]
        assert len(index_source(source, store)) == fake + real
        for one in counted["published"]:
            if one["published"] is not None and one["subset"] not in ("fake", "real"):
                assert one["rows"] == pytest.approx(one["published"] / SCALE, abs=1)


def test_the_full_set_s_fakes_stand_beside_reals_of_the_small_one(hub, tmp_path):
    """No row says `Systematic+Manual`, and Systematic and Manual have no reals; their labels are
    known by statistics alone.
    """
    fakes, reals = (
        survey.survey(source, Store.open(str(tmp_path)), 0)
        for source in sources("train", "community-forensics")[:2]
    )
    assert [(one["split"], one["real"], one["taken"]) for one in fakes["splits"]] == [
        ("Manual", 0, True),
        ("Systematic", 0, True),
    ]
    assert (reals["fake"], fakes["exact"], reals["exact"]) == (0, True, True)
    lines = "\n".join(source_lines([{"for": "train", **fakes}]))
    assert "published 1,919,493" in lines
    assert "labels by their statistics" in lines
    assert "WARNING   data.train: only fake images are found" in lines
    assert "WARNING" not in "\n".join(
        source_lines([{"for": "train", **fakes}, {"for": "train", **reals}])
    )


@pytest.mark.parametrize(
    ("changed", "near"),
    [
        (
            {"at": ["hf://datasets/OwensLab/CommunityForensics/data/systematc/*.parquet"]},
            "data/systematic",
        ),
        (
            {
                "at": ["hf://datasets/OwensLab/CommunityForensics/data"],
                "include": ["systematic/*.parqet"],
            },
            "systematic/0.parquet",
        ),
        (
            {"at": ["hf://datasets/OwensLab/CommunityForensics/dat"]},
            "OwensLab/CommunityForensics/data",
        ),
        ({"split": "Systematic+Manul"}, "near it: Manual"),
    ],
)
def test_what_matches_nothing_is_answered_with_the_nearest_names(changed, near, hub, tmp_path):
    source = DatasetSource(
        **{
            "at": ["hf://datasets/OwensLab/CommunityForensics/data"],
            "layout": "community-forensics",
        }
        | changed
    )
    with pytest.raises(ConfigError) as caught:
        survey.survey(source, Store.open(str(tmp_path)), 0)
    assert near in caught.value.hint


def test_the_command_ends_with_2_where_a_split_is_not_there(hub, capsys):
    source = "{at: hf://datasets/OwensLab/CommunityForensics/data/*/*.parquet, layout: community-forensics, split: Systematic+Manul}"
    assert (
        main(["train", "community-forensics", "--dry-run", "--set", f"data.train=[{source}]"]) == 2
    )
    assert "near it: Manual" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_published_file_is_matched_and_counted(name, tmp_path, monkeypatch):
    """All names, one row for a thousand: the numbers of files, and of rows where nothing is
    sampled, are the published ones.
    """
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for one in published_hub.hub_names():
            published_hub.publish(server, one)
        for number, source in enumerate(sources("train", name)):
            wanted, told = (
                entries(source),
                survey.survey(source, Store.open(str(tmp_path / str(number))), 0),
            )
            assert told["files"] == sum(len(published_hub.names_of(entry)) for entry in wanted)
            made = sum(sum(published_hub.made_rows(entry, published_hub.SCALE)) for entry in wanted)
            assert told["real"] + told["fake"] == made
            for one in told["published"]:
                if one["published"] is not None and one["subset"] not in ("fake", "real"):
                    assert one["rows"] == pytest.approx(
                        one["published"] / published_hub.SCALE, abs=1
                    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_recipe_trains_to_its_end_on_its_published_set_at_tiny_width(name, tmp_path, monkeypatch):
    """The shipped recipe, its sources as they are; a network of its family that begins from
    nothing.
    """
    recipe = read_mapping(named_configs("train")[name])
    loop = {
        key: value for key, value in recipe["loop"].items() if key not in ("epochs", "micro_batch")
    }
    recipe |= {
        "card": TINY[name],
        "initial": {"start": "random"},
        "loop": loop | {"batch": 8, "steps": 4},
        "cluster": {"cpus": 2},
    }
    recipe["validation"] = {
        key: value for key, value in recipe["validation"].items() if key != "every"
    }
    recipe["data"] |= (
        {"validation": {"groups": 0.2}} if "groups" in recipe["data"]["validation"] else {}
    )
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump(recipe))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for one in published_hub.hub_names():
            published_hub.publish(
                server, one, scale=200 if one == "opendeepfake-preview" else 5000, most=8
            )
        train_apart(written, tmp_path / "out")
    card = load_card(str(tmp_path / "out" / "card.yaml"))
    facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert card.weights.sha256
    splits = facts["data"]["splits"]
    assert all(split["real"] and split["fake"] for split in splits.values()), (
        "both classes are learned and judged"
    )
    assert facts["test"]["auc"] is not None


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HEADS)
def test_a_head_trains_to_its_end_on_its_published_set_at_tiny_width(
    name, tmp_path, monkeypatch, capsys
):
    """The shipped recipe, its sources as they are, on a CLIP of 0.1 M parameters; of so few images
    more are held out, for the threshold.
    """
    out, (_, clip) = tmp_path / "out", small_card(tmp_path, feature="projected", normalise=False)
    recipe = read_mapping(named_configs("train")[name])
    recipe |= {"detector": str(clip), "card": {}, "cluster": {"cpus": 2}}
    recipe["data"] |= {"validation": {"groups": 0.3}}
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
def test_prompts_of_dflip_s_first_version_train_to_their_end_at_tiny_width(wild, tmp_path, capsys):  # noqa: F811
    """pd.json in the published form, its urls collected, one of them dead; what is collected goes
    into the shipped recipe as it is.
    """
    columns, out, (_, clip) = (
        published_hub.facts("dflip-3k-v1")["columns"],
        tmp_path / "out",
        small_card(tmp_path),
    )
    records = {}
    for number in range(40):
        words = (
            wild.url("h1", f"{'gone' if number == 7 else 'good'}/{number}.x"),
            f"a lighthouse in fog, view {number} <lora:foo:0.6>",
            "mix_v2",
        )
        records[f"{number:07}"] = dict(zip(columns, words, strict=True))
    (tmp_path / "pd.json").write_text(json.dumps(records))
    settings = ["allow_private=true", f"resolve={json.dumps(RESOLVE)}", "retry.base_s=0.01"]
    assert (
        main(
            [
                "data",
                "collect",
                str(tmp_path / "pd.json"),
                "--out",
                str(tmp_path / "collected"),
                *set_to(settings),
            ]
        )
        == 0
    )
    source = f"[{{at: {tmp_path / 'collected' / 'collected.parquet'}, layout: columns}}]"
    settings = [
        f"data.train={source}",
        "data.licence=CC BY-NC 4.0",
        f"detector={clip}",
        "cluster.cpus=2",
        "loop={epochs: 1, batch: 8}",
    ]
    settings += [
        "describe.vocabulary=300",
        "describe.architecture={config: {n_embd: 32, n_layer: 1, n_head: 2}}",
    ]
    assert main(["train", "prompt-prefix", "--dry-run", *set_to(settings)]) == 0
    told = capsys.readouterr().out
    assert "39 rows: 0 real, 39 fake" in told
    assert "WARNING" not in told
    assert main(["train", "prompt-prefix", "--out", str(out), *set_to(settings)]) == 0
    facts = json.loads((out / "metrics.json").read_text())
    assert facts["n"]["validation"] == 39 - facts["data"]["splits"]["train"]["images"] > 0
    assert all(
        "lighthouse in fog" in one["prompt"] and "lora" not in one["prompt"]
        for one in facts["examples"]["validation"]
    )
    assert load_describer(out / "describer.yaml").licence == "CC BY-NC 4.0"


def set_to(settings: list[str]) -> list[str]:
    """The words of a command line."""
    return [word for one in settings for word in ("--set", one)]
