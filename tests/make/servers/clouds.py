"""Emulators of Google's and Azure's stores, each in a process of its own that ends with the tests',
and the variables that find them.

`python -m tests.make.servers.clouds` installs the two that know conditional writes into .cache/emulators
(a minute; it takes npm and git, and downloads from npm, PyPI and GitHub; a further argument is
another place of the testbench's source). Tests that need them do so, too.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from pathlib import Path

import fsspec
import pytest

BUCKET = "touchstone"
_HERE = Path(__file__).resolve()
_INSTALLED = _HERE.parents[3] / ".cache" / "emulators"
_AZURITE = _INSTALLED / "node_modules" / ".bin" / "azurite-blob"
# of its own: it pins other versions of half of what Touchstone uses
_TESTBENCH = _INSTALLED / "google" / "bin" / "python"
_TESTBENCH_SOURCE = (
    "git+https://github.com/googleapis/storage-testbench@e8c85072463f1f8378d850db457df598fdcb17a7"
)
# https://github.com/Azure/Azurite: the account and key that every installation has
_ACCOUNT, _KEY = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
_IGNORING = """
import os, sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
os._exit(0)
"""


def install_azurite() -> None:
    options = ["--silent", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix"]
    npm = ["npm", "install", *options, str(_INSTALLED), "azurite@3"]
    subprocess.run(npm, check=True, timeout=200)


def install_testbench(source: str = _TESTBENCH_SOURCE) -> None:
    venv.create(_TESTBENCH.parents[1], with_pip=True, clear=True)
    command = [_TESTBENCH, "-m", "pip", "install", "--quiet", source]
    try:
        subprocess.run(command, check=True, timeout=200)
    except subprocess.SubprocessError:
        shutil.rmtree(_TESTBENCH.parents[1])
        raise


def _program(path: Path, install) -> str:
    try:
        if not path.exists():
            install()
    except (OSError, subprocess.SubprocessError) as error:
        how = "`python -m tests.make.servers.clouds` installs this emulator"
        pytest.skip(f"{how}, and cannot here: {error}")
    return str(path)


@contextlib.contextmanager
def google(command):
    """A bucket on an emulator that prints its port."""
    with _process(command) as process:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        body, kind = json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{url}/storage/v1/b?project=p", body, kind)
        urllib.request.urlopen(asked).close()
        with google_at(url):
            yield f"gs://{BUCKET}"


@contextlib.contextmanager
def google_at(url):
    """gcsfs takes this server for Google's, and asks for nobody's credentials."""
    with pytest.MonkeyPatch.context() as patch, _anew("gs"):
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("NO_GCE_CHECK", "true")
        # else it asks for each bucket's kind, with credentials
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield


def google_that_ignores_conditions():
    """The emulator on PyPI, which writes whatever `ifGenerationMatch` says."""
    return google([sys.executable, "-c", _IGNORING])


def google_with_conditions():
    """Google's own emulator, which is on GitHub alone."""
    server = _HERE.with_name("gcs_testbench.py")
    return google([_program(_TESTBENCH, install_testbench), str(server)])


@contextlib.contextmanager
def azure():
    """A container on Azurite."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--silent", "--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry"]
    options += ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command = [_program(_AZURITE, install_azurite), *options]
    with _process(command), azure_at(f"http://127.0.0.1:{port}") as place:
        _await(port)
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(place) as client:
            client.create_container(BUCKET)
        yield f"az://{BUCKET}"


@contextlib.contextmanager
def azure_at(url):
    """adlfs finds this server by what Azure calls a connection string, which is given."""
    place = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint={url}/{_ACCOUNT};"
    with pytest.MonkeyPatch.context() as patch, _anew("az"):
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", place)
        yield place


@contextlib.contextmanager
def _process(command):
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextlib.contextmanager
def _anew(scheme):
    """fsspec keeps file systems by their arguments, not by the variables that they were made with."""
    kind = fsspec.get_filesystem_class(scheme)
    kind.clear_instance_cache()
    yield
    kind.clear_instance_cache()


def _await(port):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    pytest.fail(f"nothing answers at port {port}")


if __name__ == "__main__":
    install_azurite()
    install_testbench(*sys.argv[1:])
