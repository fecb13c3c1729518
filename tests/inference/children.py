"""Decoder processes for tests: what a child may answer, and how it is stopped."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from ray_app.detectors import load_card
from ray_app.images import ImageLimits
from ray_app.inference.decoder_child import DecodeRequest
from ray_app.inference.decoder_pool import DecoderProcess

LIMITS = ImageLimits()
TINY = load_card("touchstone-tiny").preprocessing  # 256 × 256

START = """
import ctypes, hashlib, json, os, signal, struct, sys
REQUEST, ANSWER = struct.Struct("<Q"), struct.Struct("<QQ")
os.write(1, b"+")
request = sys.stdin.buffer.read(*REQUEST.unpack(sys.stdin.buffer.read(REQUEST.size)))
data = request[4 + int.from_bytes(request[:4], "little"):]
facts = {"sha256": hashlib.sha256(data).hexdigest(), "format": "JPEG", "width": 96, "height": 64}
def say(report, pixels=bytes(256 * 256 * 3), text=None):
    text = text or json.dumps(report).encode()
    os.write(1, ANSWER.pack(len(text), len(pixels)) + text)
    sys.stdout.buffer.write(pixels)
    sys.stdout.flush()
"""


def scripted(script: str) -> type[DecoderProcess]:
    """Return a child that answers as a script says, like one that a hostile file took over.

    The script knows the protocol and the file, `data`.
    """

    class Scripted(DecoderProcess):
        def _command(self) -> list[str]:
            return [sys.executable, "-ISc", START + script + "\nsys.stdin.buffer.read()"]

    return Scripted


def request(*preprocessings, **options) -> DecodeRequest:
    return DecodeRequest(preprocessings=preprocessings or (TINY,), **options)


def state(pid: int) -> str:
    """Return the kernel's letter for a process; Z or X after its end."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def stopped(pid: int) -> int:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state(pid) == "T")
    return pid


def wait_until(condition, limit_s: float = 60.0) -> None:
    deadline, tick = time.monotonic() + limit_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.005)
