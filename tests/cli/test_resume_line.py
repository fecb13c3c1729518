"""The last line of stderr when a run ended in its middle."""

import click
import pytest

from ray_app.cli import main as module
from ray_app.errors import RESUMABLE, ConfigError, StorageError

SIGNED = "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature=0123abcd&X-Amz-Credential=me"


def ended_by(error, monkeypatch, capsys, typed):
    @click.command()
    def score():
        raise error

    monkeypatch.setattr(module, "touchstone", score)
    code = module.main([], typed=typed)
    return code, capsys.readouterr().err.strip().splitlines()


def kept(error):
    error.add_note(RESUMABLE)
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (StorageError("disk full", hint="make space"), 5)],
)
def test_it_is_the_command_as_it_was_typed(error, code, monkeypatch, capsys):
    ended, lines = ended_by(
        kept(error), monkeypatch, capsys, ["python", "jobs/score.py", "my photos", "--out", "run"]
    )
    assert ended == code
    assert lines[-1] == "resume: python jobs/score.py 'my photos' --out run"
    monkeypatch.setattr("sys.argv", ["/usr/bin/touchstone", "score", "photos", "--out", "run"])
    _, lines = ended_by(kept(error), monkeypatch, capsys, None)
    assert lines[-1] == "resume: touchstone score photos --out run"


def test_it_has_no_secrets_in_it(monkeypatch, capsys):
    _, lines = ended_by(
        kept(KeyboardInterrupt()), monkeypatch, capsys, ["touchstone", "score", SIGNED]
    )
    assert lines[-1].startswith("resume: touchstone score ")
    assert "0123abcd" not in lines[-1]


def test_there_is_none_where_nothing_was_kept(monkeypatch, capsys):
    _, lines = ended_by(ConfigError("no source"), monkeypatch, capsys, None)
    assert lines == ["touchstone: no source"]
