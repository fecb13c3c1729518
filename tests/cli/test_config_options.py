"""Options that are made from the fields of a config."""

from typing import Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from ray_app.cli import options
from ray_app.cli.config_options import ConfigCommand
from ray_app.config import Frozen


class Server(Frozen):
    workers: int = Field(default=2, ge=1, description="processes that answer")
    wait_s: float | None = Field(default=None, gt=0, description="seconds to wait")


class Settings(Frozen):
    kind: Literal["small"] | Literal["large"] = Field(default="small", description="the size")
    is_dry: bool = Field(default=False, description="only say what would be done")
    has_page: bool = Field(default=True, description="write a page")
    names: tuple[str, ...] = Field(default=(), description="only this name")
    seed: int = Field(default=0, description="the seed")
    layout: str | None = Field(default=None, description="how labels are stated; null = by columns")
    server: Server = Server()


@click.command(
    cls=ConfigCommand,
    config=f"{__name__}:Settings",
    fields={
        "kind": "--kind",
        "is_dry": "--dry-run",
        "has_page": "--page/--no-page",
        "names": "--name NAME",
        "seed": "--seed",
        "layout": "--layout",
        "server.workers": "--workers",
        "server.wait_s": "--wait",
    },
)
@options.overrides
def command(assignments, **given):
    click.echo(options.load_config("score", None, Settings, given, assignments))


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def test_help_shows_type_default_and_description():
    text = " ".join(run("--help").output.split())
    for line in (
        "--kind [small|large] The size. [default: small]",
        "--dry-run Only say what would be done.",
        "--workers INTEGER RANGE Processes that answer. [default: 2] [x>=1]",
        "--wait FLOAT RANGE Seconds to wait. [x>0]",
        "--page / --no-page Write a page.",
        "--name NAME Only this name; repeatable.",
        "--seed INTEGER The seed. [default: 0]",
        "--layout TEXT How labels are stated. [default: by columns]",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Settings()),
        (
            "--kind large --dry-run --workers 3 --set server.wait_s=5",
            Settings(kind="large", is_dry=True, server=Server(workers=3, wait_s=5.0)),
        ),
        ("--workers 3 --set server.workers=4", Settings(server=Server(workers=4))),
        ("--name a --name b --no-page", Settings(names=("a", "b"), has_page=False)),
    ],
    ids=["defaults", "fields", "set-wins", "repeated"],
)
def test_options_set_the_fields_of_a_config(line, expected):
    assert run(*line.split()).output.strip() == str(expected)


@pytest.mark.parametrize("arguments", [("--kind", "huge"), ("--workers", "0"), ("--wait", "0")])
def test_options_reject_values_that_the_field_rejects(arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert f"Invalid value for '{arguments[0]}'" in done.output
