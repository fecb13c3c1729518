import click
import pytest
from click.shell_completion import ShellComplete

from ray_app.cli.main import main, touchstone
from ray_app.cli.retired import COMMANDS, OPTIONS, VARIABLES
from ray_app.errors import ExitCode

RETIRED_OPTIONS = [(path, option) for path, options in OPTIONS.items() for option in options]


@pytest.mark.parametrize("path", COMMANDS)
def test_retired_command_exits_2_with_one_line(path, capsys):
    assert main([*path.split(), "RUN", "--out", "x"]) == ExitCode.USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Error: '{path}' is retired: {COMMANDS[path]}\n"


@pytest.mark.parametrize(("path", "option"), RETIRED_OPTIONS)
def test_retired_option_exits_2_with_one_line(path, option, capsys):
    assert main([*path.split(), option, "value"]) == ExitCode.USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Error: '{path} {option}' is retired: {OPTIONS[path][option]}\n"


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("options", [[], ["--ray"]], ids=["server", "ray"])
def test_retired_variable_exits_2_with_one_line(name, options, capsys, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert main(["serve", *options]) == ExitCode.USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"Error: {name} is retired: {VARIABLES[name]}\n"


def test_short_name_of_command_explains_retired_option(capsys):
    assert main(["calibrate", "RUN", "--method", "isotonic"]) == ExitCode.USAGE
    assert (
        capsys.readouterr().err
        == f"Error: 'detectors calibrate --method' is retired: {OPTIONS['detectors calibrate']['--method']}\n"
    )


@pytest.mark.parametrize("path", OPTIONS)
def test_commands_with_retired_options_exist(path):
    command: click.Command | None = touchstone
    for name in path.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    assert not {
        option
        for parameter in command.get_params(click.Context(command))
        for option in parameter.opts
    } & set(OPTIONS[path])


def test_help_lists_no_retired_command():
    groups = [
        command for command in touchstone.commands.values() if isinstance(command, click.Group)
    ]
    listed = set(touchstone.commands) | {
        f"{group.name} {name}" for group in groups for name in group.commands
    }
    assert not listed & set(COMMANDS)


@pytest.mark.parametrize("word", ["report", "scroe"])
def test_completion_after_an_unknown_command_raises_nothing(word):
    ShellComplete(touchstone, {}, "touchstone", "").get_completions([word], "")
