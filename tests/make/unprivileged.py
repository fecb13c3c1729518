"""Folders that this process cannot list or enter, also if root runs the tests (`closed`), and
folders in folders (`nested`).

Root may read everything on Linux by two capabilities. They are switched off for this thread, and
for the threads and the forks that it starts meanwhile.
"""

import ctypes
import os
import subprocess
from contextlib import contextmanager

import pytest

_VERSION_3 = 0x20080522  # of the kernel's interface, see capget(2)
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


@contextmanager
def without_read_everything():
    """Give this thread the rights of the file modes alone, also if it is root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0:
        pytest.skip("this system has no capabilities to switch off")
    before = sets[0].effective
    sets[0].effective = before & ~(_DAC_OVERRIDE | _DAC_READ_SEARCH)
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())


@contextmanager
def closed(*folders, mode=0):
    """Inside, the folders have this mode and it holds for this process."""
    modes = [os.stat(folder).st_mode for folder in folders]
    for folder in folders:
        os.chmod(folder, mode)
    try:
        with without_read_everything():
            if os.access(folders[0], os.R_OK | os.X_OK, effective_ids=True):
                pytest.skip("this process may read every folder")
            yield
    finally:
        for folder, before in zip(folders, modes, strict=True):
            os.chmod(folder, before)


@contextmanager
def nested(folder, name, depth):
    """Inside, there are folders in one another below `folder`, and the file x.jpg in the innermost."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=place)
        place, above = os.open(name, os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    try:
        yield
    finally:
        # pytest's own removal is recursive, and fails
        subprocess.run(["rm", "-rf", f"{folder}/{name}"], check=True)
