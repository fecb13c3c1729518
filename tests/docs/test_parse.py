"""Every command, option, file, import, key and query that a document names exists: a typo in any of
them fails here, without running it.
"""

import ast
import importlib.util
import re
from pathlib import Path

import click
import duckdb
import pytest
import yaml

from ray_app.cli.main import touchstone
from ray_app.config import validate
from tests.docs.blocks import CONSOLE, ROOT, blocks_of, inline_commands, pages, problems_of

PAGES = pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages):
    return [block for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_fences_are_pairs(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(blocks_of(page))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_console_blocks_name_what_exists(page):
    lines = [
        (block, line)
        for block in blocks_of(page)
        if block.language in CONSOLE
        for line in block.commands()
    ]
    assert not [
        f"{block}: {line}: {problem}" for block, line in lines for problem in problems_of(line)
    ]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_within_sentences_name_what_exists(page):
    assert not [
        f"{line}: {problem}"
        for line in inline_commands(page)
        for problem in problems_of(line, exact=False)
    ]


def commented(path):
    """The commands in the comments of a config, and in a protocol's `command` keys."""
    text = path.read_text(encoding="utf-8")
    return [
        line.strip()
        for line in re.findall(r"^ *(?:#|-) +(touchstone [^#\n]*)$", text, re.MULTILINE)
    ]


def test_comments_of_configs_and_jobs_name_what_exists():
    files = [
        path
        for path in (
            *ROOT.glob("configs/**/*.yaml"),
            *ROOT.glob("jobs/*.py"),
            ROOT / "cluster.yaml",
            ROOT / "Dockerfile",
        )
    ]
    lines = [(path, re.split(r"  {2,}", line)[0]) for path in files for line in commented(path)]
    assert len(lines) > 20
    assert not [
        f"{path.name}: {line}: {problem}" for path, line in lines for problem in problems_of(line)
    ]


def helps(command=touchstone):
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from helps(below)


def test_examples_in_the_help_name_what_exists():
    lines = [
        line.strip()
        for command in helps()
        for line in (command.help or "").splitlines()
        if line.strip().startswith("touchstone ")
    ]
    assert len(lines) > 40
    assert not [
        f"{line}: {found}" for line in lines for found in problems_of(re.split(r" {3,}", line)[0])
    ]


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((one.name, None) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, one.name) for one in node.names)


def exists(module, name):
    """Without importing it: a package that is installed; of ours the file, and a name that it binds
    or hands out on first use.
    """
    top = module.partition(".")[0]
    if top != "ray_app":
        return importlib.util.find_spec(top) is not None
    place = ROOT / Path(*module.split("."))
    file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
    if not file.exists():
        return False
    below = place / f"{name}.py", place / str(name) / "__init__.py"
    return (
        name is None
        or any(map(Path.exists, below))
        or re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) is not None
    )


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles_and_its_imports_resolve(block):
    tree = ast.parse(block.text)
    missing = [pair for pair in imported(tree) if not exists(*pair)]
    assert not missing, f"{block}: {missing}"


def test_queries_parse():
    for block in of("sql"):
        assert duckdb.connect().extract_statements(block.text), str(block)


def model_of(data):
    """The model of a YAML block that is a whole config, and None of a part of one."""
    from ray_app.detectors.card import DetectorCard
    from ray_app.ensembles import EnsembleCard
    from ray_app.scoring import ScoreConfig
    from ray_app.training.config import TrainConfig
    from ray_app.transforms.perturbations import PerturbationList

    if not isinstance(data, dict):
        return None
    if {"name", "perturbations"} <= set(data):
        return PerturbationList
    if {"name", "data"} <= set(data):
        return TrainConfig
    if {"name", "members"} <= set(data):
        return EnsembleCard
    if {"name", "family", "weights"} <= set(data):
        return DetectorCard
    return ScoreConfig if set(data) <= set(ScoreConfig.model_fields) else None


# Parts of configs, and the model whose fields their keys are.
def part_models():
    from ray_app.detectors.card import DetectorCard
    from ray_app.ensembles import EnsembleCard
    from ray_app.serving.config import ServeConfig

    return DetectorCard, EnsembleCard, ServeConfig


# Ray Serve's own
SERVE_CONFIG = {"deployments", "applications", "http_options", "proxy_location", "logging_config"}


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_loads_and_fits_its_model(block):
    documents = (
        [yaml.safe_load(line) for line in block.text.splitlines()]
        if "deployments:" in block.text
        else [yaml.safe_load(block.text)]
    )
    for data in documents:
        assert data, str(block)
        if (model := model_of(data)) is not None:
            validate(data, model, where=str(block))
        elif (
            isinstance(data, dict)
            and not set(data) & SERVE_CONFIG
            and "site_name" not in data
            and "jobs" not in block.page
        ):
            keys = [set(one.model_fields) for one in part_models()]
            assert any(set(data) <= known for known in keys), (
                f"{block}: {sorted(data)} are keys of no config"
            )


def test_a_typo_is_found():
    """What these tests rest on: each kind of mistake, and none in what is right."""
    assert problems_of("touchstone score photos/ --out run --ensembel tiny")
    assert problems_of("touchstone runs galery run --out gallery")
    assert problems_of("touchstone runs report run --prior 1.5")
    assert problems_of("cat list | touchstone results run --verdit fake")
    assert problems_of("ray job submit -- python jobs/score.py --cofig x s3://b --out y")
    assert problems_of("touchstone train configs/train/qick.yaml --out x")
    assert problems_of("pip install 'touchstone[phash]'")
    assert problems_of("pip install 'touchstone-forensics[hash]'")
    assert problems_of("make tests")
    assert problems_of("touchstone runs decide RUN --ensembel CARD", exact=False)
    assert problems_of("touchstone score 'photos")
    assert not problems_of("TOKEN=x touchstone score s3://bucket/photos --out run > log 2> errors")
    assert not problems_of("touchstone runs decide RUN --ensemble CARD --out NEW", exact=False)
    assert isinstance(touchstone, click.Group)
