import json
import os
import re
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from ray_app.cli import main as main_module
from ray_app.cli import options
from ray_app.cli.main import main
from ray_app.cli.main import touchstone as group
from ray_app.errors import RESUMABLE, ConfigError, StorageError


def commands(group=group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_help_loads_no_heavy_library():
    heavy = ("torch", "ray", "numpy", "pyarrow", "pydantic", "yaml", "PIL", "httpx")
    code = f"import sys; from ray_app.cli.main import main; main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: touchstone")
    assert done.stdout.endswith("[]\n")


def test_every_command_and_option_has_help(touchstone):
    for path, command in commands():
        name = " ".join(path)
        ended = touchstone(f"{name} --help")
        assert ended.code == 0, name
        assert ended.out.startswith(f"Usage: touchstone {name}")
        assert command.help, name
        for option in command.get_params(click.Context(command)):
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.name}"


def test_short_names_of_commands_stay(touchstone):
    for name in ("decide", "calibrate", "index", "collect", "generate", "pack"):
        ended = touchstone(f"{name} --help")
        assert (ended.code, ended.err) == (0, ""), name


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("results ~/run", "run"),
        ("plan list::~/l.csv --ensemble tiny", "l.csv"),
        ("score a.jpg --out=run --ensemble=~/none.yaml", "none.yaml"),
    ],
)
def test_home_folder_is_expanded_in_arguments(line, name, touchstone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    ended = touchstone(line)
    assert ended.code == 2
    assert f"{tmp_path}/home/{name}" in ended.err
    assert "~" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("scroe", "score"),
        ("gallary", "runs gallery"),
        ("runs galery", "gallery"),
    ],
)
def test_misspelt_command_names_the_nearest(line, nearest, touchstone):
    ended = touchstone(line)
    assert ended.code == 2
    assert f"Did you mean '{nearest}'?" in ended.err


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a\u202e.jpg", "\\u202e"),
        ("a\x9b31m.jpg", "\\u009b31m"),
        ("a\udcff.jpg", "\\udcff"),
        ("größe.jpg", "größe"),
    ],
    ids=["reordered", "control", "surrogate", "letters"],
)
def test_json_escapes_what_moves_a_terminal(name, written, capsys):
    options.echo_document({"files": [{"uri": name}]}, (), True)
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert written in shown
    assert json.loads(shown) == {"files": [{"uri": name}]}


@pytest.mark.parametrize("kind", ["ensembles", "recipes", "protocols"])
def test_shipped_configs_are_listed_and_shown(kind, touchstone, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    entries = touchstone(f"{kind} list --json").document
    table = touchstone(f"{kind} list").out
    assert len(entries) > 5
    for entry in entries:
        assert entry["title"]
        assert entry["name"] in table
        assert entry["title"] in table
    name = entries[-1]["name"]
    assert f"name: {name}" in touchstone(f"{kind} show {name}").out
    ended = touchstone(f"{kind} show nothing-of-that-name")
    assert ended.code == 2
    assert "shipped: " in ended.err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ev", ("plain", "evaluate")),
        ("score --ensemble perm", ("plain", "permissive")),
        ("train touchstone-c", ("plain", "touchstone-crop-permissive")),
        ("results run --status trunc", ("plain", "truncated_image")),
        ("score --config over", ("plain", "overnight")),
        ("ensembles show perm", ("plain", "permissive")),
        ("detectors fetch recom", ("plain", "recommended")),
        ("check pho", ("file", "pho")),
        ("score --out pho", ("file", "pho")),
        ("runs report pho", ("file", "pho")),
        ("score --ensemble ./pho", ("file", "./pho")),
    ],
)
def test_completion_finds_names_and_files(line, found):
    *typed, begun = line.split()
    items = ShellComplete(group, {}, "touchstone", "").get_completions(typed, begun)
    assert found in [(item.type, item.value) for item in items]


@pytest.mark.parametrize("word", ["report", "scroe"])
def test_completion_after_an_unknown_command_raises_nothing(word):
    ShellComplete(group, {}, "touchstone", "").get_completions([word], "")


def test_completion_of_a_shell_is_answered():
    environment = os.environ | {
        "_TOUCHSTONE_COMPLETE": "bash_complete",
        "COMP_WORDS": "touchstone ev",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-c", "from ray_app.cli.__main__ import script; script()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,evaluate\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_asks_touchstone(shell, touchstone):
    script = touchstone(f"config completion {shell}").out
    assert f"_TOUCHSTONE_COMPLETE={shell}_complete" in script


def test_config_show_prints_a_config_that_loads(tmp_path, touchstone):
    shown = touchstone("config show overnight --set batch_slots=32").out
    assert re.search(r"^batch_slots: 32$", shown, re.MULTILINE)
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert touchstone("config show", again).out == shown


def test_version_is_printed(touchstone):
    assert touchstone("--version").out.startswith("touchstone, version ")


def test_commands_on_a_run_load_no_torch_and_no_ray(plain_run, photos, tmp_path):
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


@pytest.fixture
def ended_by(monkeypatch, capsys):
    """Run `main` with a command that raises an error; return the exit code and lines of stderr."""

    def run(error, typed=None, *, resumable=True):
        @click.command()
        def score():
            raise error

        if resumable:
            error.add_note(RESUMABLE)
        monkeypatch.setattr(main_module, "touchstone", score)
        code = main([], typed=typed)
        return code, capsys.readouterr().err.strip().splitlines()

    return run


def test_resume_line_is_the_command_as_typed(ended_by, monkeypatch):
    typed = ["python", "jobs/score.py", "my photos", "--out", "run"]
    code, lines = ended_by(StorageError("disk full", hint="make space"), typed)
    assert code == 5
    assert lines[-1] == "resume: python jobs/score.py 'my photos' --out run"
    monkeypatch.setattr("sys.argv", ["/usr/bin/touchstone", "score", "photos", "--out", "run"])
    code, lines = ended_by(KeyboardInterrupt())
    assert code == 130
    assert lines[-1] == "resume: touchstone score photos --out run"


def test_resume_line_has_no_secret(ended_by):
    url = "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature=0123abcd&X-Amz-Credential=me"
    _, lines = ended_by(KeyboardInterrupt(), ["touchstone", "score", url])
    assert lines[-1].startswith("resume: touchstone score ")
    assert "0123abcd" not in lines[-1]


def test_resume_line_is_missing_if_nothing_was_kept(ended_by):
    _, lines = ended_by(ConfigError("no source"), resumable=False)
    assert lines == ["touchstone: no source"]
