"""What Touchstone sets in the C library has the effect for which it is set."""

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
from ray_app.detectors.private_api import keep_freed_memory

keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [bytearray(16 * 2**20) for _ in range(4)]
        del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


RETURN = """
import numpy as np
import psutil
from ray_app.detectors.private_api import keep_freed_memory, return_freed_memory

keep_freed_memory()
blocks = [np.ones(2**20, np.uint8) for _ in range(256)]
before = psutil.Process().memory_info().rss
del blocks
return_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_page_faults():
    """Without the setting each of 10 rounds faults in 64 MiB, which are 16,384 pages."""
    faults = subprocess.run(
        [sys.executable, "-c", CHURN], capture_output=True, text=True, check=True
    ).stdout
    assert int(faults) < 5_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_returned_on_request():
    """Without the call, the C library keeps all of the 256 MiB."""
    returned = subprocess.run(
        [sys.executable, "-c", RETURN], capture_output=True, text=True, check=True
    ).stdout
    assert int(returned) > 200 * 2**20
