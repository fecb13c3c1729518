"""Clients that people have, which post a large body and return a status and a text."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest

# More than the socket buffers hold: the client still sends when the answer comes.
SENT_BYTES = 8 * 2**20
_POST = ("--data-binary", "@-")
NODE = """
const [url, size] = process.argv.slice(1);
const response = await fetch(url, {method: "POST", body: Buffer.alloc(Number(size), 7)});
console.log(JSON.stringify([response.status, await response.text()]));
"""


def ask_with_urllib(url):
    try:
        request = urllib.request.Request(url, data=bytes(SENT_BYTES))
        return urllib.request.urlopen(request, timeout=20).status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask_with_curl(*options_and_url):
    out = run("curl", "-sS", "--noproxy", "*", "-w", " %{http_code}", *_POST, *options_and_url)
    text, _, status = out.rpartition(" ")
    return int(status), text


def ask_with_node(url):
    return tuple(json.loads(run("node", "--input-type=module", "-e", NODE, url, str(SENT_BYTES))))


def run(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=bytes(SENT_BYTES), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()
