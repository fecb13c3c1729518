"""Leases on S3 stores that let two writers in: they ignore `If-None-Match`, or refuse it."""

import json

import pytest
from PIL import Image

from ray_app.cli.main import main
from ray_app.errors import ExitCode, IdentityError, StorageError
from ray_app.storage import Lease, Store
from tests.storage.leases import is_released, read_lease
from tests.storage.unconditional_proxy import REFUSALS, UnconditionalProxy


@pytest.fixture(params=[None, *REFUSALS], ids=["ignored", *map(str, REFUSALS)])
def unconditional(request, s3, monkeypatch):
    with UnconditionalProxy(s3.url, request.param) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Store.open(
            f"{s3.bucket(f'unguarded-{request.param}-{abs(hash(request.node.name))}')}/run"
        )


def test_a_store_that_lets_two_in_is_refused_in_plain_words(unconditional):
    with pytest.raises(StorageError, match="has no conditional writes") as caught:
        Lease(unconditional).acquire()
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert "unguarded" in caught.value.hint
    assert unconditional.names("lease") == unconditional.names("") == []


def test_told_otherwise_it_says_what_is_lost_and_still_notices_a_living_run(unconditional, caplog):
    first = Lease(unconditional, unguarded=True)
    with first:
        assert first.facts() == {"unguarded": True}
        assert "nothing stops two commands from writing into this directory at once" in caplog.text
        for second in (Lease(unconditional), Lease(unconditional, unguarded=True)):
            with pytest.raises(IdentityError, match="in use"):
                second.acquire()
        assert read_lease(unconditional)["token"] == first.holder.token
        first.check()
    assert is_released(unconditional)


@pytest.mark.parametrize("unconditional", [None], indirect=True, ids=["ignored"])
def test_a_command_that_fills_a_directory_says_so_and_its_summary_what_was_lost(
    unconditional, tmp_path, capsys
):
    Image.effect_noise((96, 80), 50).convert("RGB").save(tmp_path / "a.png")
    words = ["data", "pack", str(tmp_path), "--out", f"{unconditional.url}/out"]
    assert main(words) == ExitCode.CLUSTER
    assert "has no conditional writes" in capsys.readouterr().err
    assert unconditional.names("out") == []
    assert main([*words, "--set", "unguarded=true"]) == ExitCode.DONE
    assert json.loads(unconditional.read("out/summary.json"))["session"]["unguarded"] is True
