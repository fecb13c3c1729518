"""Emulators of Google's and Azure's stores, each in a process of its own that ends with the tests', and the variables that find them."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fsspec
import pytest

# https://github.com/Azure/Azurite: the account and key that every installation has
_ACCOUNT, _KEY = "devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "touchstone"
_IGNORING = """
import os, sys
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True)
server.start()
print(server._api._httpd.server_port, flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextlib.contextmanager
def google(command):
    """A bucket on an emulator that prints its port; gcsfs finds it and asks for nobody's credentials."""
    with _process(command) as process, pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks for each bucket's kind, with credentials
        asked = urllib.request.Request(
            f"{url}/storage/v1/b?project=p", json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(asked).close()
        with _anew("gcsfs"):
            yield f"gs://{BUCKET}"


def google_that_ignores_conditions():
    """The emulator on PyPI, which writes whatever `ifGenerationMatch` says."""
    return google([sys.executable, "-c", _IGNORING])


def google_with_conditions():
    """Google's own emulator, where it is installed: TOUCHSTONE_GCS_TESTBENCH names the Python that has it."""
    python = os.environ.get("TOUCHSTONE_GCS_TESTBENCH")
    if not python:
        pytest.skip("TOUCHSTONE_GCS_TESTBENCH names no Python with googleapis-storage-testbench")
    return google([python, str(Path(__file__).with_name("gcs_testbench.py"))])


@contextlib.contextmanager
def azure():
    """A container on Azurite, which TOUCHSTONE_AZURITE or PATH names (npm install azurite)."""
    program = os.environ.get("TOUCHSTONE_AZURITE") or shutil.which("azurite-blob")
    if not program:
        pytest.skip("no azurite-blob on PATH or in TOUCHSTONE_AZURITE")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--silent", "--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry", "--blobHost", "127.0.0.1"]
    with _process([program, *options, "--blobPort", str(port)]), pytest.MonkeyPatch.context() as patch:
        place = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT};"
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", place)
        _await(port)
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(place) as client:
            client.create_container(BUCKET)
        with _anew("adlfs"):
            yield f"az://{BUCKET}"


@contextlib.contextmanager
def _process(command):
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextlib.contextmanager
def _anew(package):
    """fsspec keeps file systems by their arguments, not by the variables that they were made with."""

    def forget():
        for kind in {type(one) for name in ("gs", "az", "abfs") for one in fsspec.get_filesystem_class(name)._cache.values()}:
            kind.clear_instance_cache()

    forget()
    yield
    forget()


def _await(port):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    pytest.fail(f"nothing answers at port {port}")
