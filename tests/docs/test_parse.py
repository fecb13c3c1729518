"""Every command, option, file, import, key and query that a document names exists: a typo in any of
them fails here, without running it.
"""

import ast
import importlib.util
import re
from pathlib import Path

import duckdb
import yaml

from ray_app.cli.main import touchstone
from ray_app.config import validate
from ray_app.detectors.card import DetectorCard
from ray_app.ensembles import EnsembleCard
from ray_app.scoring import ScoreConfig
from ray_app.serving.config import ServeConfig
from ray_app.training.config import TrainConfig
from ray_app.transforms.perturbations import PerturbationList
from tests.docs.blocks import CONSOLE, ROOT, blocks_of, inline_commands, pages, problems_of

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages):
    return [block for block in BLOCKS if block.language in languages]


def problems(lines, **options):
    """The problems of (place, command line) pairs, each with its place."""
    return [
        f"{place}: {line}: {problem}"
        for place, line in lines
        for problem in problems_of(line, **options)
    ]


def test_fences_are_pairs():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(blocks_of(page)), page.name


def test_console_blocks_name_what_exists():
    lines = [(block, line) for block in of(*CONSOLE) for line in block.commands()]
    assert len(lines) > 100
    assert problems(lines) == []


def test_commands_in_sentences_name_what_exists():
    lines = [(page.name, line) for page in PAGES for line in inline_commands(page)]
    assert len(lines) > 100
    assert problems(lines, exact=False) == []


def commented(path):
    """The commands in the comments of a config, and in a protocol's `command` keys."""
    text = path.read_text(encoding="utf-8")
    return [
        line.strip()
        for line in re.findall(r"^ *(?:#|-) +(touchstone [^#\n]*)$", text, re.MULTILINE)
    ]


def test_comments_of_configs_name_what_exists():
    files = (*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("jobs/*.py"))
    files += (ROOT / "cluster.yaml", ROOT / "Dockerfile")
    lines = [
        (path.name, re.split(r"  {2,}", line)[0]) for path in files for line in commented(path)
    ]
    assert len(lines) > 20
    assert problems(lines) == []


def helps(command=touchstone):
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from helps(below)


def test_examples_in_the_help_name_what_exists():
    lines = [
        (command.name, re.split(r" {3,}", line.strip())[0])
        for command in helps()
        for line in (command.help or "").splitlines()
        if line.strip().startswith("touchstone ")
    ]
    assert len(lines) > 40
    assert problems(lines) == []


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


def test_python_compiles_and_its_imports_exist():
    missing = [
        (str(block), pair)
        for block in of("python")
        for pair in imported(ast.parse(block.text, str(block)))
        if not exists(*pair)
    ]
    assert missing == []


def test_queries_parse():
    for block in of("sql"):
        assert duckdb.connect().extract_statements(block.text), str(block)


def model_of(data):
    """The model of a YAML block that is a whole config, or None for a part of one."""
    if not isinstance(data, dict):
        return None
    models = {
        frozenset({"name", "perturbations"}): PerturbationList,
        frozenset({"name", "data"}): TrainConfig,
        frozenset({"name", "members"}): EnsembleCard,
        frozenset({"name", "family", "weights"}): DetectorCard,
    }
    for keys, model in models.items():
        if keys <= set(data):
            return model
    return ScoreConfig if set(data) <= set(ScoreConfig.model_fields) else None


PARTS = DetectorCard, EnsembleCard, ServeConfig
# These are keys of Ray Serve and of MkDocs.
OTHERS = {
    *("deployments", "applications", "http_options", "proxy_location", "logging_config"),
    "site_name",
}


def test_yaml_is_a_config_or_a_part_of_one():
    for block in of("yaml"):
        each_line = "deployments:" in block.text
        for text in block.text.splitlines() if each_line else [block.text]:
            data = yaml.safe_load(text)
            assert data, str(block)
            if (model := model_of(data)) is not None:
                validate(data, model, where=str(block))
            elif isinstance(data, dict) and not set(data) & OTHERS and "jobs" not in block.page:
                known = any(set(data) <= set(one.model_fields) for one in PARTS)
                assert known, f"{block}: {sorted(data)} are keys of no config"


def test_every_kind_of_typo_is_found():
    for line in (
        "touchstone score photos/ --out run --ensembel tiny",
        "touchstone runs galery run --out gallery",
        "touchstone runs report run --prior 1.5",
        "cat list | touchstone results run --verdit fake",
        "ray job submit -- python jobs/score.py --cofig x s3://b --out y",
        "touchstone train configs/train/qick.yaml --out x",
        "pip install 'touchstone[phash]'",
        "pip install 'touchstone-forensics[hash]'",
        "make tests",
        "touchstone score 'photos",
    ):
        assert problems_of(line), line
    assert problems_of("touchstone runs decide RUN --ensembel CARD", exact=False)
    assert problems_of("TOKEN=x touchstone score s3://b/photos --out run > log 2> errors") == []
    assert problems_of("touchstone runs decide RUN --ensemble CARD --out NEW", exact=False) == []
