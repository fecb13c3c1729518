import click
import pytest

from ray_app.cli.main import touchstone as group
from ray_app.cli.retired import COMMANDS, OPTIONS, VARIABLES


def test_retired_command_exits_2_with_its_replacement(touchstone):
    for path, replacement in COMMANDS.items():
        ended = touchstone(f"{path} RUN --out x")
        assert (ended.code, ended.out) == (2, ""), path
        assert ended.err == f"Error: '{path}' is retired: {replacement}\n"


def test_retired_option_exits_2_with_its_replacement(touchstone):
    for path, options in OPTIONS.items():
        for option, replacement in options.items():
            ended = touchstone(f"{path} {option} value")
            assert (ended.code, ended.out) == (2, ""), (path, option)
            assert ended.err == f"Error: '{path} {option}' is retired: {replacement}\n"


@pytest.mark.parametrize("line", ["serve", "serve --ray"])
def test_retired_variable_exits_2_with_its_replacement(line, touchstone, monkeypatch):
    for name, replacement in VARIABLES.items():
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            ended = touchstone(line)
        assert (ended.code, ended.out) == (2, ""), name
        assert ended.err == f"Error: {name} is retired: {replacement}\n"


def test_retired_option_of_a_short_name_is_explained(touchstone):
    ended = touchstone("calibrate RUN --method isotonic")
    assert ended.code == 2
    assert ended.err.startswith("Error: 'detectors calibrate --method' is retired: ")


def test_retired_options_are_of_commands_without_them():
    for path, options in OPTIONS.items():
        command = group
        for name in path.split():
            command = command.get_command(click.Context(command), name)
        parameters = command.get_params(click.Context(command))
        present = {option for parameter in parameters for option in parameter.opts}
        assert not present & set(options), path


def test_help_lists_no_retired_command():
    groups = [command for command in group.commands.values() if isinstance(command, click.Group)]
    below = {f"{command.name} {name}" for command in groups for name in command.commands}
    assert not (set(group.commands) | below) & set(COMMANDS)
