"""What a CPU computes in where nobody says (`cpu_precision`): the one place that decides it.
Imports no torch, which takes seconds.
"""

import os
from functools import cache
from pathlib import Path
from typing import Literal

from ray_app.errors import ConfigError

CPU_PRECISION_VARIABLE = "TOUCHSTONE_CPU_PRECISION"

# Names of the kernel for instructions that multiply bf16 matrices: x86's AVX-512 and AMX, Arm's
# NEON and SVE.
_MULTIPLY_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
_CPUINFO = Path("/proc/cpuinfo")


def cpu_precision() -> Literal["bf16", "fp32"]:
    """What `auto` means on a CPU: bf16 where this one multiplies it faster than fp32, or what
    TOUCHSTONE_CPU_PRECISION says.

    The variable is for scores that are the same on machines of both kinds. Raises ConfigError for
    any other value.
    """
    match os.environ.get(CPU_PRECISION_VARIABLE, ""):
        case "bf16" | "fp32" as stated:
            return stated
        case "":
            return "bf16" if _multiplies_bf16() else "fp32"
        case other:
            raise ConfigError(
                f"{CPU_PRECISION_VARIABLE}={other}: no such precision",
                hint="set it to bf16 or fp32, or unset it",
            )


@cache
def _multiplies_bf16() -> bool:
    try:
        return not _MULTIPLY_BF16.isdisjoint(_CPUINFO.read_text().split())
    except OSError:  # another system than Linux
        return False
