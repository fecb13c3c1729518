import json
import os
import re
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from ray_app.cli import options
from ray_app.cli.main import main, touchstone
from tests.runs.real_run import photos, plain_run  # noqa: F401


def commands(group=touchstone, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_help_is_light():
    """Nothing is loaded that takes longer than the help itself."""
    heavy = ("torch", "ray", "numpy", "pyarrow", "pydantic", "yaml", "PIL", "httpx")
    code = f"import sys; from ray_app.cli.main import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: touchstone")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("path", "command"),
    list(commands()),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_explains_itself(path, command, capsys):
    assert main([*path, "--help"]) == 0
    assert command.help
    assert capsys.readouterr().out.startswith(f"Usage: touchstone {' '.join(path)}")
    assert all(
        option.help
        for option in command.get_params(click.Context(command))
        if isinstance(option, click.Option) and option.name != "help"
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a\u202e.jpg", "\\u202e"),
        ("a\x9b31m.jpg", "\\u009b31m"),
        ("a\udcff.jpg", "\\udcff"),
        ("größe.jpg", "größe"),
    ],
    ids=["reordered", "a terminal's control", "no text", "letters"],
)
def test_no_name_moves_a_terminal_s_text_in_json(name, written, capsys):
    options.echo_document({"files": [{"uri": name}]}, (), True)
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert written in shown
    assert json.loads(shown) == {"files": [{"uri": name}]}


@pytest.mark.parametrize("name", ["decide", "calibrate", "index", "collect", "generate", "pack"])
def test_names_that_scripts_rely_on_stay(name, capsys):
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["scroe"], "score"),
        (["gallary"], "runs gallery"),
        (["runs", "galery"], "gallery"),
        (["detectors", "lst"], "list"),
    ],
)
def test_a_misspelt_command_is_answered_with_the_nearest(words, nearest, capsys):
    assert main(words) == 2
    assert f"No such command '{words[-1]}'. Did you mean '{nearest}'?" in capsys.readouterr().err


@pytest.mark.parametrize("group", ["ensembles", "recipes", "protocols"])
def test_what_is_shipped_is_listed_and_shown(group, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([group, "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) > 5
    assert all(entry["title"] for entry in entries)
    assert main([group, "list"]) == 0
    table = capsys.readouterr().out
    assert all(entry["name"] in table and entry["title"] in table for entry in entries)
    for entry in entries:
        assert main([group, "show", entry["name"]]) == 0
        assert f"name: {entry['name']}" in capsys.readouterr().out
    assert main([group, "show", "nothing-of-that-name"]) == 2
    assert "shipped: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ev", "evaluate"),
        ("score --ensemble perm", "permissive"),
        ("train touchstone-c", "touchstone-crop-permissive"),
        ("results run --status trunc", "truncated_image"),
        ("score --config over", "overnight"),
        ("ensembles show perm", "permissive"),
        ("detectors fetch recom", "recommended"),
    ],
)
def test_words_are_completed(words, found):
    *typed, begun = words.split()
    assert found in [
        one.value
        for one in ShellComplete(touchstone, {}, "touchstone", "").get_completions(typed, begun)
    ]


@pytest.mark.parametrize(
    "words", ["check pho", "score --out pho", "runs report pho", "score --ensemble ./pho"]
)
def test_files_are_completed_wherever_a_path_may_stand(words):
    *typed, begun = words.split()
    found = ShellComplete(touchstone, {}, "touchstone", "").get_completions(typed, begun)
    assert [(one.type, one.value) for one in found] == [("file", begun)]


def test_a_shell_is_answered():
    environment = os.environ | {
        "_TOUCHSTONE_COMPLETE": "bash_complete",
        "COMP_WORDS": "touchstone ev",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "from ray_app.cli.__main__ import script; script()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,evaluate\n"


def test_config_show_is_a_config_that_can_be_used(tmp_path, capsys):
    assert main(["config", "show", "overnight", "--set", "batch_slots=32"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^batch_slots: 32$", shown, re.MULTILINE)
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert main(["config", "show", str(again)]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("touchstone, version ")


def test_what_reads_a_run_takes_no_torch_and_no_ray(plain_run, photos, tmp_path):  # noqa: F811
    """All commands in one process: the first that loads one of them is named."""
    commands = [
        ["compare", plain_run, plain_run],
        ["runs", "audit", plain_run, "--draw", "50", "--out", str(tmp_path)],
        ["results", plain_run, "--image", str(photos / "photo-3.jpg"), "--json"],
    ]
    code = (
        "import json, sys\nfrom ray_app.cli.main import main\n"
        "ended = [(main(words), [m for m in ('torch', 'ray', 'transformers') if m in sys.modules]) for words in json.loads(sys.argv[1])]\n"
        "print(json.dumps(ended))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[0, []]] * len(commands), done.stderr
