"""Leases on S3 stores that let two writers in: they ignore `If-None-Match`, or refuse it."""

import json

import pytest
from PIL import Image

from ray_app.cli.main import main
from ray_app.errors import ExitCode, IdentityError, StorageError
from ray_app.storage import Lease, Store
from tests.make.leases import is_released, read_lease
from tests.storage.unconditional_proxy import REFUSALS, UnconditionalProxy


@pytest.fixture(params=[None, *REFUSALS], ids=["ignored", *map(str, REFUSALS)])
def unconditional(request, s3, monkeypatch, tmp_path):
    with UnconditionalProxy(s3.url, request.param) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Store.open(f"{s3.bucket('unguarded')}/{tmp_path.name}")


def test_store_without_conditional_writes_is_refused_unless_told(unconditional, caplog):
    with pytest.raises(StorageError, match="has no conditional writes") as caught:
        Lease(unconditional).acquire()
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert "unguarded" in caught.value.hint
    assert unconditional.names("lease") == unconditional.names("") == []

    first = Lease(unconditional, unguarded=True)
    with first:
        assert first.facts() == {"unguarded": True}
        assert "nothing stops two commands" in caplog.text
        for second in (Lease(unconditional), Lease(unconditional, unguarded=True)):
            with pytest.raises(IdentityError, match="in use"):
                second.acquire()
        assert read_lease(unconditional)["token"] == first.holder.token
        first.check()
    assert is_released(unconditional)


@pytest.mark.parametrize("unconditional", [None], indirect=True, ids=["ignored"])
def test_command_without_conditional_writes_notes_it(unconditional, tmp_path, capsys):
    Image.effect_noise((96, 80), 50).convert("RGB").save(tmp_path / "a.png")
    words = ["data", "pack", str(tmp_path), "--out", f"{unconditional.url}/out"]
    assert main(words) == ExitCode.CLUSTER
    assert "has no conditional writes" in capsys.readouterr().err
    assert unconditional.names("out") == []
    assert main([*words, "--set", "unguarded=true"]) == ExitCode.DONE
    assert json.loads(unconditional.read("out/summary.json"))["session"]["unguarded"] is True
